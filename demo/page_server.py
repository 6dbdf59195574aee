"""The server of the page: takes pictures, runs models one at a time, and keeps the last results for a while.

Answers are JSON, maps and pictures; an error is {"error": a sentence}. What it keeps is bounded: pictures that are sent
by their number of pixels, the queue by its length, results by their bytes, after which the oldest are dropped.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from urllib.parse import quote

import matplotlib
import numpy as np
import torch
from PIL import Image
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from demo.page_results import PageModel, Segmentation, compressed, jpeg, sampled, view_size
from fasegr.data.image_io import image_size, open_image
from fasegr.visualization.attention import AttentionRecord

__all__ = ["Limits", "page_app"]

logger = logging.getLogger(__name__)

PAGE = Path(__file__).resolve().parent / "page"
FILES = {"/": "index.html", "/page.css": "page.css", "/page.js": "page.js"}
UPLOAD_SECONDS = 120
T = TypeVar("T")


class Limits(NamedTuple):
    """max_pixels: of a picture. queue: jobs that may wait. kept_bytes: of results; the newest is always kept."""

    max_pixels: int = 16_000_000
    queue: int = 16
    kept_bytes: int = 256 << 20

    @property
    def max_bytes(self) -> int:
        return 4 * self.max_pixels + (1 << 20)  # no sensible file of a picture is larger


class Refused(Exception):
    """An answer other than 200. sentence: what is wrong and what to do."""

    def __init__(self, status: int, sentence: str):
        super().__init__(sentence)
        self.status = status


class Picture:
    """A picture and its results, one for each model. All is ready but what costs time and is not always asked for."""

    def __init__(self, name: str, image: Image.Image, found: list[Segmentation]):
        self.name, self.image, self.found = name, image, found
        size = view_size(image)
        self.view = jpeg(image.resize(size[::-1], Image.Resampling.LANCZOS) if size[::-1] != image.size else image)
        self.maps = [
            {"segments": compressed(sampled(f.index, size))}
            | ({} if f.sure is None else {"confidence": compressed(sampled(f.sure, size))})
            for f in found
        ]
        self.view_size = size
        self.attention: dict[int, AttentionRecord] = {}

    @property
    def nbytes(self) -> int:
        pixels = 3 * self.image.width * self.image.height
        maps = sum(len(data) for maps in self.maps for data in maps.values())
        records = sum(
            tensor.nbytes
            for record in self.attention.values()
            for tensor in (
                record.mask_probs,
                *(t for layer in record.layers for t in (layer.attention, layer.positional)),
            )
        )
        return pixels + len(self.view) + maps + sum(found.nbytes for found in self.found) + records


class Kept:
    """The last pictures by their keys, as many as `limit` bytes hold, and at least one."""

    def __init__(self, limit: int):
        self.limit = limit
        self._pictures: OrderedDict[str, Picture] = OrderedDict()
        self._lock = threading.Lock()  # jobs run in a thread of their own

    def add(self, picture: Picture) -> str:
        key = secrets.token_urlsafe(16)
        with self._lock:
            self._pictures[key] = picture
        self.shrink()
        return key

    def get(self, key: str) -> Picture:
        with self._lock:
            if key not in self._pictures:
                raise Refused(410, "The server no longer keeps this result; segment the picture again.")
            self._pictures.move_to_end(key)
            return self._pictures[key]

    def shrink(self) -> None:
        with self._lock:
            sizes = {key: picture.nbytes for key, picture in self._pictures.items()}
            while len(self._pictures) > 1 and sum(sizes.values()) > self.limit:
                key, _ = self._pictures.popitem(last=False)
                del sizes[key]


class Queue:
    """Runs jobs one at a time, in the order in which they come, in one thread."""

    def __init__(self, limit: int):
        self.limit = limit
        self.waiting = 0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="model")

    async def run(self, request: Request, job: Callable[[], T]) -> T:
        """The job's result. One whose asker has gone is not begun. Raises Refused if the queue is full."""
        if self.waiting > self.limit:
            raise Refused(503, f"The server is busy: {self.limit} pictures are waiting. Try again in a moment.")
        self.waiting += 1
        try:
            running = self._thread.submit(job)
            answer = asyncio.wrap_future(running)
            while not (await asyncio.wait({answer}, timeout=1))[0]:
                if await request.is_disconnected() and running.cancel():
                    raise ClientDisconnect
            return await answer
        finally:
            self.waiting -= 1


class _Guard:
    """Lets requests through that name this server, and come from its page or from no page: a page of another site that
    the same browser shows can send requests to the loopback too. Answers get headers for browsers."""

    HEADERS = (
        (b"x-content-type-options", b"nosniff"),
        (b"referrer-policy", b"no-referrer"),
        (
            b"content-security-policy",
            b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
            b"connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        ),
    )

    def __init__(self, app, hosts: Sequence[str] | None):
        self.app, self.hosts = app, hosts

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        host, origin = headers.get(b"host", ""), headers.get(b"origin")
        name = host.rsplit(":", 1)[0] if not host.endswith("]") else host
        foreign_host = self.hosts is not None and name.lower() not in self.hosts
        if foreign_host or (origin is not None and origin.split("://", 1)[-1] != host):
            answer = JSONResponse({"error": "This server answers only to its own page."}, 403)
            await answer(scope, receive, send)
            return

        async def send_with_headers(message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *self.HEADERS]
            await send(message)

        await self.app(scope, receive, send_with_headers)


class _Page:
    """The handlers of requests."""

    def __init__(self, models: Sequence[PageModel], examples: Sequence[Path], limits: Limits):
        self.models, self.limits = list(models), limits
        self.examples = list(examples)
        self.thumbnails = [_thumbnail(path) for path in examples]
        self.queue, self.kept = Queue(limits.queue), Kept(limits.kept_bytes)

    async def about(self, request: Request) -> Response:
        heat = (255 * matplotlib.colormaps["viridis"](np.arange(256))[:, :3]).round().astype(int).tolist()
        return JSONResponse(
            {
                "models": [{"name": model.name, "attention": model.shows_attention} for model in self.models],
                "examples": [path.name for path in self.examples],
                "max_pixels": self.limits.max_pixels,
                "max_bytes": self.limits.max_bytes,
                "heat": heat,
            }
        )

    async def waiting(self, request: Request) -> Response:
        return JSONResponse({"waiting": self.queue.waiting})

    async def thumbnail(self, request: Request) -> Response:
        return Response(self.thumbnails[self._example(request)], media_type="image/jpeg")

    async def segment_example(self, request: Request) -> Response:
        path = self.examples[self._example(request)]
        return await self._segment(request, path, path.name)

    async def segment(self, request: Request) -> Response:
        name = Path(request.query_params.get("name", "")).name[-120:] or "picture"
        with tempfile.TemporaryDirectory(prefix="fasegr-") as folder:
            path = Path(folder) / "picture"
            await self._receive(request, path)
            return await self._segment(request, path, name)

    async def _receive(self, request: Request, path: Path) -> None:
        too_large = Refused(
            413,
            f"The file has more than {self.limits.max_bytes / 1e6:.0f} MB, the most that this server takes; make the "
            "picture smaller.",
        )
        length = request.headers.get("content-length", "")
        if length.isdigit() and int(length) > self.limits.max_bytes:
            raise too_large
        received = 0

        async def receive() -> None:
            nonlocal received
            with open(path, "wb") as file:
                async for part in request.stream():
                    received += len(part)
                    if received > self.limits.max_bytes:
                        raise too_large
                    file.write(part)

        try:
            await asyncio.wait_for(receive(), UPLOAD_SECONDS)
        except asyncio.TimeoutError:
            raise Refused(408, f"The picture did not arrive within {UPLOAD_SECONDS} seconds; try again.") from None
        if not received:
            raise Refused(400, "The request holds no picture; send the bytes of an image file.")

    async def _segment(self, request: Request, path: Path, name: str) -> Response:
        key, picture = await self.queue.run(request, lambda: self._new_picture(path, name))
        return JSONResponse(
            {
                "id": key,
                "name": picture.name,
                "size": [picture.image.height, picture.image.width],
                "view": picture.view_size,
                "models": [
                    {
                        "segments": found.segments,
                        "confidence": found.sure is not None,
                        "labels": "sem_seg_labels" in found.result,
                        "seconds": round(found.seconds, 3),
                    }
                    for found in picture.found
                ],
            }
        )

    def _new_picture(self, path: Path, name: str) -> tuple[str, Picture]:
        try:
            height, width = image_size(path)
            if height * width > self.limits.max_pixels:
                raise Refused(
                    413,
                    f"{name} has {width} x {height} pixels, more than the {self.limits.max_pixels:,} that this server "
                    "takes; make it smaller.",
                )
            image = open_image(path)
        except (OSError, ValueError) as error:
            raise Refused(400, str(error).replace(str(path), name)) from error
        try:
            picture = Picture(name, image, [model.segment(image) for model in self.models])
        except (torch.OutOfMemoryError, MemoryError) as error:
            logger.exception("%s x %s pixels", width, height)
            raise Refused(
                507, f"{name}, {width} x {height} pixels, does not fit into memory; make it smaller."
            ) from error
        return self.kept.add(picture), picture

    async def picture(self, request: Request) -> Response:
        return Response(self._picture(request).view, media_type="image/jpeg")

    async def map(self, request: Request) -> Response:
        picture, number = self._picture(request), self._model(request)
        kind = request.path_params["kind"]
        if kind not in picture.maps[number]:
            raise Refused(404, f"{self.models[number].name} gives no scores by class, and so no confidence.")
        headers = {"content-encoding": "gzip"}
        return Response(picture.maps[number][kind], headers=headers, media_type="application/octet-stream")

    async def attention(self, request: Request) -> Response:
        picture, number = self._picture(request), self._model(request)
        model = self.models[number]
        if not model.shows_attention:
            raise Refused(
                400, f"{model.name} segments a picture in several passes, so there is no one place where a query looks."
            )
        x, y = (_share(request, name) for name in ("x", "y"))

        def look() -> dict[str, Any]:
            if number not in picture.attention:
                picture.attention[number] = model.attention(picture.image)
                self.kept.shrink()
            return model.panels(picture.attention[number], picture.found[number], x, y)

        try:
            return JSONResponse(await self.queue.run(request, look))
        except ValueError as error:
            raise Refused(400, f"{str(error)[0].upper()}{str(error)[1:]}.") from error

    async def download(self, request: Request) -> Response:
        picture, number = self._picture(request), self._model(request)
        model, found = self.models[number], picture.found[number]
        kind = request.path_params["file"]
        if kind == "overlay.png":
            alpha = _share(request, "alpha", 0.5)
            hidden = request.query_params.get("hide", "")
            if hidden and not all(part.isdecimal() for part in hidden.split(",")):
                raise Refused(400, f"hide is {hidden!r}; expected numbers of classes, such as 0,3.")
            classes = [int(part) for part in hidden.split(",") if part]
            data = await self.queue.run(request, lambda: model.overlay(picture.image, found, alpha, classes))
        elif kind == "labels.png":
            if "sem_seg_labels" not in found.result:
                raise Refused(404, f"{model.name} predicts no class for each pixel.")
            data = await self.queue.run(request, lambda: model.labels(found))
        elif kind == "coco.json":
            data = await self.queue.run(request, lambda: model.coco(picture.name, found))
        else:
            raise Refused(404, "There are overlay.png, labels.png and coco.json.")
        name = f"{Path(picture.name).stem}_{kind}"
        kind = "application/json" if kind.endswith("json") else "image/png"
        headers = {"content-disposition": f"attachment; filename*=UTF-8''{quote(name, safe='')}"}
        return Response(data, media_type=kind, headers=headers)

    def _picture(self, request: Request) -> Picture:
        return self.kept.get(request.path_params["key"])

    def _model(self, request: Request) -> int:
        number = request.path_params["model"]
        if number >= len(self.models):
            raise Refused(404, f"There are {len(self.models)} models, counted from 0.")
        return number

    def _example(self, request: Request) -> int:
        number = request.path_params["number"]
        if number >= len(self.examples):
            raise Refused(404, f"There are {len(self.examples)} examples, counted from 0.")
        return number


def _share(request: Request, name: str, default: float | None = None) -> float:
    text = request.query_params.get(name)
    value = default
    with suppress(ValueError):
        value = default if text is None else float(text)
    if value is None or not 0 <= value <= 1 or (text is not None and text.strip().lower() == "nan"):
        raise Refused(400, f"{name} is {text}; expected a number from 0 to 1.")
    return value


def _thumbnail(path: Path) -> bytes:
    image = open_image(path)
    image.thumbnail((320, 320))
    return jpeg(image)


async def _sentence(request: Request, error: Exception) -> Response:
    if isinstance(error, Refused):
        headers = {"retry-after": "5"} if error.status == 503 else None
        return JSONResponse({"error": str(error)}, error.status, headers)
    if isinstance(error, HTTPException):
        return JSONResponse({"error": f"{error.detail}: {request.method} {request.url.path}"}, error.status_code)
    if isinstance(error, ClientDisconnect):
        return Response(status_code=499)  # nobody reads it
    return JSONResponse({"error": "The server failed on this request; its log says why."}, 500)


def page_app(
    models: Sequence[PageModel], examples: Sequence[Path], limits: Limits, hosts: Sequence[str] | None
) -> Starlette:
    """The application. examples: image files. hosts: what may be in the Host header of a request, None for anything."""
    page = _Page(models, examples, limits)

    def file(name: str):
        return lambda request: FileResponse(PAGE / name, headers={"cache-control": "no-cache"})

    result = "/api/pictures/{key}/{model:int}"
    routes = [
        *(Route(path, file(name)) for path, name in FILES.items()),
        Route("/api/about", page.about),
        Route("/api/queue", page.waiting),
        Route("/api/examples/{number:int}", page.thumbnail),
        Route("/api/examples/{number:int}", page.segment_example, methods=["POST"]),
        Route("/api/pictures", page.segment, methods=["POST"]),
        Route("/api/pictures/{key}/picture.jpg", page.picture),
        Route(result + "/maps/{kind}", page.map),
        Route(result + "/attention", page.attention),
        Route(result + "/files/{file}", page.download),
    ]
    return Starlette(
        routes=routes,
        middleware=[Middleware(_Guard, hosts=hosts)],
        exception_handlers={Refused: _sentence, HTTPException: _sentence, ClientDisconnect: _sentence, 500: _sentence},
    )
