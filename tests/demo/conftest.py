import http.client
import json
import socket
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import quote

import numpy as np
import pytest
import torch
from PIL import Image

from fasegr import build_model, load_cfg

ROOT = Path(__file__).parents[2]
SMALL = [
    *("MODEL.DEVICE", "cpu", "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES", 6, "MODEL.MASK_FORMER.DEC_LAYERS", 6),
    *("MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS", 1, "INPUT.MIN_SIZE_TEST", 64, "MODEL.MASK_FORMER.HIDDEN_DIM", 32),
    *("MODEL.SEM_SEG_HEAD.CONVS_DIM", 32, "MODEL.SEM_SEG_HEAD.MASK_DIM", 32),
]


class Client:
    """Sends requests to a server on this machine."""

    def __init__(self, port: int):
        self.port = port
        self.url = f"http://127.0.0.1:{port}"

    def __call__(self, method, path, body=None, headers=()):
        """Returns the status, the headers, and JSON or bytes."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, body, dict(headers))
            answer = connection.getresponse()
            data = answer.read()
        finally:
            connection.close()
        is_json = answer.headers.get("content-type", "").startswith("application/json") and "attachment" not in str(
            answer.headers.get("content-disposition")
        )
        return SimpleNamespace(
            status=answer.status, headers=answer.headers, content=json.loads(data) if is_json else data
        )

    def segment(self, data: bytes, name="shot.png"):
        return self("POST", f"/api/pictures?name={quote(name)}", data)


def picture(seed: int, size=(64, 80)) -> Image.Image:
    """A picture of two areas and a spot, of random colours."""
    random = np.random.default_rng(seed)
    pixels = np.empty((*size, 3), np.uint8)
    pixels[:] = random.integers(0, 256, 3)
    pixels[size[0] // 2 :] = random.integers(0, 256, 3)
    pixels[10:30, 10:40] = random.integers(0, 256, 3)
    return Image.fromarray(pixels)


@pytest.fixture(scope="session")
def small_model(tmp_path_factory):
    """cfg of a tiny model of the painted scenes' classes, with weights on disk."""
    path = tmp_path_factory.mktemp("model") / "model.pth"
    config = str(ROOT / "configs/quickstart/faseg_scenes.yaml")
    torch.manual_seed(1)
    model = build_model(load_cfg(config, SMALL))
    weights = model.state_dict()
    for name, tensor in weights.items():  # queries that differ, so that several classes are predicted
        if "class_embed.weight" in name or "query_feat" in name:
            tensor.copy_(3 * torch.randn(tensor.shape))
        elif "class_embed.bias" in name:
            tensor[-1] = -20  # none is no-object
        elif "mask_embed" in name:
            tensor *= 3
    torch.save({"model": weights}, path)
    return config, [*SMALL, "MODEL.WEIGHTS", str(path)]


@pytest.fixture(scope="session")
def serve():
    """serve(app) -> Client of a server that runs until the tests end."""
    uvicorn = pytest.importorskip("uvicorn")
    running = []

    def start(app) -> Client:
        listening = socket.create_server(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_level="critical", access_log=False))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        running.append((server, thread))
        return Client(listening.getsockname()[1])

    yield start
    for server, thread in running:
        server.should_exit = server.force_exit = True
        thread.join(10)


@pytest.fixture(scope="session")
def page(small_model, serve, tmp_path_factory):
    """A server of the page with two models (one of them twice), two examples and small limits."""
    pytest.importorskip("starlette")
    from demo.page_results import PageModel
    from demo.page_server import Limits, page_app

    folder = tmp_path_factory.mktemp("examples")
    examples = [folder / "one.png", folder / "two.jpg"]
    for i, path in enumerate(examples):
        picture(i).save(path)
    model = PageModel("FASeg", load_cfg(*small_model))
    limits = Limits(max_pixels=40_000, kept_bytes=3_000_000)
    app = page_app([model, model], examples, limits, ("127.0.0.1", "localhost"))
    client = serve(app)
    client.model, client.examples = model, examples
    return client
