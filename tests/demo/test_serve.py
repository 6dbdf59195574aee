import asyncio
import gzip
import importlib.util
import io
import json
import os
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

from starlette.requests import ClientDisconnect

from demo import page_results, serve
from demo.page_results import PageModel
from demo.page_server import Kept, Limits, Queue, Refused, page_app
from fasegr import Predictor, load_cfg
from fasegr.data.augmentation import ResizeShortestEdge
from fasegr.evaluation.calibration import confidence
from fasegr.modeling.meta_arch.instance_inference import Instances
from fasegr.modeling.meta_arch.panoptic_inference import PanopticSegmentation
from fasegr.utils.memory import current_memory
from tests.demo.conftest import picture

pytestmark = pytest.mark.slow

REQUESTS = int(os.environ.get("FASEGR_SERVE_REQUESTS", 10))


def png(image) -> bytes:
    data = io.BytesIO()
    image.save(data, "PNG")
    return data.getvalue()


def segment_map(page, answer, model=0) -> np.ndarray:
    """Class of each pixel, from the map that the page paints."""
    got = page("GET", f"/api/pictures/{answer['id']}/{model}/maps/segments")
    assert got.headers["content-encoding"] == "gzip"
    numbers = np.frombuffer(gzip.decompress(got.content), "<u2").reshape(answer["view"])
    return np.array([segment["label"] for segment in answer["models"][model]["segments"]])[numbers]


def test_an_answer_is_the_predictors(page):
    image = picture(3)
    result = page.model.predictor(image)
    labels = result["sem_seg"].argmax(0).numpy()
    answer = page.segment(png(image), "a b ü.png").content
    assert answer["name"] == "a b ü.png" and answer["size"] == answer["view"] == [64, 80]
    assert len(answer["models"]) == 2
    np.testing.assert_array_equal(segment_map(page, answer, 1), labels)
    areas = {segment["label"]: segment["area"] for segment in answer["models"][0]["segments"]}
    assert areas == {int(c): int((labels == c).sum()) for c in np.unique(labels)}
    names = {segment["label"]: segment["name"] for segment in answer["models"][0]["segments"]}
    assert all(page.model.predictor.class_names[label] == name for label, name in names.items())
    colors = {segment["label"]: segment["color"] for segment in answer["models"][0]["segments"]}
    assert any(colors) and all(page.model.predictor.colors[label].tolist() == color for label, color in colors.items())

    base = f"/api/pictures/{answer['id']}/0"
    sure = np.frombuffer(gzip.decompress(page("GET", f"{base}/maps/confidence").content), np.uint8).reshape(64, 80)
    expected = confidence(result["sem_seg"], torch.from_numpy(labels)).numpy()
    assert np.abs(sure / 255 - expected).max() <= 0.5 / 255 + 1e-6

    downloaded = page("GET", f"{base}/files/labels.png")
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(downloaded.content))), labels)
    assert "a%20b%20%C3%BC_labels.png" in downloaded.headers["content-disposition"]
    overlay = Image.open(io.BytesIO(page("GET", f"{base}/files/overlay.png?alpha=0.7").content))
    np.testing.assert_array_equal(np.asarray(overlay), np.asarray(page.model.predictor.draw(image, result, 0.7)))
    coco = json.loads(page("GET", f"{base}/files/coco.json").content)
    assert {annotation["area"] for annotation in coco["annotations"]} <= set(areas.values())
    assert coco["images"][0]["file_name"] == "a b ü.png" and len(coco["annotations"]) == len(areas)
    shown = Image.open(io.BytesIO(page("GET", f"/api/pictures/{answer['id']}/picture.jpg").content))
    assert np.abs(np.asarray(shown).astype(int) - np.asarray(image)).mean() < 4


def test_hidden_classes_are_not_in_the_overlay(page):
    image = Image.new("RGB", (400, 300), (9, 9, 9))
    page_limit = page.segment(png(image.resize((200, 150)))).content
    hide = ",".join(str(segment["label"]) for segment in page_limit["models"][0]["segments"])
    drawn = page("GET", f"/api/pictures/{page_limit['id']}/0/files/overlay.png?alpha=1&hide={hide}").content
    assert np.asarray(Image.open(io.BytesIO(drawn)))[:150, :200].max() == 9


def test_a_large_picture_is_shown_smaller(page, monkeypatch):
    monkeypatch.setattr(page_results, "LONGEST_VIEW", 40)
    image = picture(4)
    answer = page.segment(png(image)).content
    assert answer["size"] == [64, 80] and answer["view"] == [32, 40]
    labels = page.model.predictor(image)["sem_seg"].argmax(0).numpy()
    np.testing.assert_array_equal(segment_map(page, answer), labels[1::2, 1::2])
    full = page("GET", f"/api/pictures/{answer['id']}/0/files/labels.png").content
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(full))), labels)


def test_where_a_query_looks(page):
    answer = page.segment(png(picture(5))).content
    labels = segment_map(page, answer)
    for y, x in ((0.1, 0.1), (0.9, 0.9)):
        got = page("GET", f"/api/pictures/{answer['id']}/0/attention?x={x}&y={y}").content
        assert got["name"] == page.model.predictor.class_names[labels[int(64 * y), int(80 * x)]]
        titles = [panel["title"] for panel in got["panels"]]
        assert [title.split(",")[0] for title in titles[1:4]] == ["layer 3", "layer 4", "layer 5"]
        assert titles[4] == "omega, 1/4" and "of 384 pixels" in got["panels"][4]["note"]  # 64 x 96, by 4
        assert all(panel["image"].startswith("data:image/jpeg;base64,") for panel in got["panels"])


def test_the_query_is_the_one_with_most_of_the_score_at_the_point(page):
    image = picture(6)
    found, record = page.model.segment(image), page.model.attention(image)
    y, x = 20, 20
    label = found.segments[found.index[y, x]]["label"]
    got = page.model.panels(record, found, (x + 0.5) / 80, (y + 0.5) / 64)
    mask_probs = record.mask_probs.float()[:, y, x]  # panels have the size of a picture of 80 pixels
    assert got["query"] == int((record.class_probs[:, label] * mask_probs).argmax())


def test_examples(page):
    assert page("GET", "/api/about").content["examples"] == ["one.png", "two.jpg"]
    assert page("GET", "/api/examples/1").headers["content-type"] == "image/jpeg"
    answer = page("POST", "/api/examples/0").content
    labels = page.model.predictor(page.examples[0])["sem_seg"].argmax(0).numpy()
    np.testing.assert_array_equal(segment_map(page, answer), labels)


def test_what_is_refused_says_why(page):
    whole = png(picture(7))
    for body, status, sentence in (
        (b"", 400, "holds no picture"),
        (b"no image at all", 400, "shot.png: cannot be read as an image"),
        (whole[: len(whole) // 2], 400, "shot.png: the image data is damaged or cut short"),
        (png(Image.new("L", (300, 200))), 413, "300 x 200 pixels, more than the 40,000"),
        (b"x" * 1_300_000, 413, "more than 1 MB"),
    ):
        got = page.segment(body)
        assert got.status == status and sentence in got.content["error"], got.content
        assert "/tmp" not in got.content["error"]
    key = page.segment(whole).content["id"]
    for method, path, status, sentence in (
        ("GET", "/api/pictures/gone/picture.jpg", 410, "no longer keeps"),
        ("GET", "/nothing", 404, "Not Found"),
        ("GET", "/../serve.py", 404, "Not Found"),
        ("PUT", "/api/pictures", 405, "Not Allowed"),
        ("POST", "/api/examples/2", 404, "2 examples"),
        ("GET", f"/api/pictures/{key}/2/maps/segments", 404, "2 models"),
        ("GET", f"/api/pictures/{key}/0/maps/depth", 404, "no confidence"),
        ("GET", f"/api/pictures/{key}/0/files/model.pth", 404, "overlay.png"),
        ("GET", f"/api/pictures/{key}/0/files/overlay.png?alpha=nan", 400, "alpha is nan"),
        ("GET", f"/api/pictures/{key}/0/files/overlay.png?hide=a", 400, "hide is 'a'"),
        ("GET", f"/api/pictures/{key}/0/attention?x=0.5", 400, "y is None"),
        ("GET", f"/api/pictures/{key}/0/attention?x=1.5&y=0", 400, "x is 1.5"),
    ):
        got = page(method, path)
        assert got.status == status and sentence in got.content["error"], (path, got.content)


def test_other_sites_cannot_use_the_server(page):
    """A page of another site in the same browser: by a name that leads here, or by its scripts."""
    for headers in ({"Host": "evil.example"}, {"Origin": "https://evil.example"}, {"Origin": "null"}):
        got = page("POST", "/api/examples/0", headers=headers)
        assert got.status == 403 and "own page" in got.content["error"]
    own = {"Host": f"localhost:{page.port}", "Origin": f"http://localhost:{page.port}"}
    assert page("POST", "/api/examples/0", headers=own).status == 200


def test_many_requests_four_at_a_time(page):
    """One in ten is broken. Answers stay those of the predictor, and memory stays flat. FASEGR_SERVE_REQUESTS=200."""
    pictures = [picture(seed, (64 + seed, 80)) for seed in range(5)]
    expected = [page.model.predictor(image)["sem_seg"].argmax(0).numpy() for image in pictures]
    bodies = [png(image) for image in pictures]

    def request(number: int) -> None:
        if number % 10 == 9:
            body = (b"", b"text", bodies[0][:99], png(Image.new("L", (300, 200))))[number // 10 % 4]
            assert page.segment(body).status in (400, 413)
            return
        which = number % 5
        answer = page.segment(bodies[which]).content
        if number % 4 == 2:
            assert len(page("GET", f"/api/pictures/{answer['id']}/0/attention?x=0.3&y=0.3").content["panels"]) == 7
        np.testing.assert_array_equal(segment_map(page, answer, number % 2), expected[which])

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(request, range(5)))  # what is kept for the next request is there now
        before = current_memory(torch.device("cpu"))
        list(threads.map(request, range(REQUESTS)))
    assert page("GET", "/api/queue").content == {"waiting": 0}
    assert current_memory(torch.device("cpu")) - before < 40_000_000


class Asker:
    """A request whose sender has gone, or not."""

    def __init__(self, gone=False):
        self.gone = gone

    async def is_disconnected(self):
        return self.gone


def test_the_queue_is_in_order_and_full_at_its_limit():
    queue, done, go_on = Queue(2), [], threading.Event()

    async def run():
        jobs = [
            asyncio.ensure_future(queue.run(Asker(), lambda i=i: (go_on.wait(9), done.append(i)))) for i in range(3)
        ]
        await asyncio.sleep(0)
        with pytest.raises(Refused, match="2 pictures are waiting"):
            await queue.run(Asker(), lambda: done.append("refused"))
        go_on.set()
        await asyncio.gather(*jobs)

    asyncio.run(run())
    assert done == [0, 1, 2] and queue.waiting == 0


def test_who_has_gone_is_not_waited_for(monkeypatch):
    queue, done, begun, go_on = Queue(4), [], threading.Event(), threading.Event()
    wait = asyncio.wait
    monkeypatch.setattr(asyncio, "wait", lambda jobs, timeout: wait(jobs, timeout=0.01))

    async def run():
        job = lambda: (begun.set(), go_on.wait(9), done.append("begun"))  # noqa: E731
        first = asyncio.ensure_future(queue.run(Asker(gone=True), job))
        await asyncio.to_thread(begun.wait, 9)
        with pytest.raises(ClientDisconnect):
            await queue.run(Asker(gone=True), lambda: done.append("not begun"))
        go_on.set()
        await first

    asyncio.run(run())
    assert done == ["begun"] and queue.waiting == 0


def test_results_are_kept_up_to_a_number_of_bytes():
    kept = Kept(100)
    keys = [kept.add(SimpleNamespace(nbytes=40)) for _ in range(3)]
    with pytest.raises(Refused, match="no longer keeps"):
        kept.get(keys[0])
    kept.get(keys[1])  # is now the newest
    newest = kept.add(SimpleNamespace(nbytes=1000))
    assert kept.get(newest).nbytes == 1000
    with pytest.raises(Refused):
        kept.get(keys[1])


@pytest.fixture
def model_of(monkeypatch, small_model):
    """model_of(result) -> a PageModel whose predictor gives that result."""

    def build(result, *options):
        model = SimpleNamespace(eval=lambda: lambda samples: [dict(result)])
        predictor = Predictor(model=model, resize=ResizeShortestEdge(4, 6), class_names=["dog", "cat"])
        monkeypatch.setattr(page_results, "Predictor", lambda cfg: predictor)
        return PageModel("objects", load_cfg(small_model[0], [*small_model[1], *options]))

    return build


def test_instances(model_of):
    """One of a low score is left out; where two overlap, the smaller one is in front."""
    masks = torch.zeros(3, 4, 6, dtype=torch.bool)
    masks[0, :, :4] = masks[1, 1:3, 2:] = masks[2] = True
    instances = Instances(torch.tensor([0.9, 0.75, 0.3]), torch.tensor([1, 1, 0]), masks)
    result = {"instances": instances, "sem_seg_labels": torch.zeros(4, 6, dtype=torch.uint8)}
    model = model_of(result, "MODEL.MASK_FORMER.TEST.INSTANCE_ON", True)
    found = model.segment(Image.new("RGB", (6, 4)))
    assert [(s["name"], s["area"], s["score"]) for s in found.segments] == [("cat", 12, 0.9), ("cat", 8, 0.75)]
    assert found.segments[0]["color"] != found.segments[1]["color"]
    assert found.index[1].tolist() == [0, 0, 1, 1, 1, 1] and found.index[0, 5] == page_results.NOTHING
    assert found.sure is None and not model.shows_attention
    coco = json.loads(model.coco("a.jpg", found))
    assert [annotation["score"] for annotation in coco["annotations"]] == pytest.approx([0.9, 0.75])


def test_panoptic_segments(model_of):
    ids = torch.tensor([[1, 1, 0], [1, 2, 2]], dtype=torch.int32)
    segments = [{"id": 1, "category_id": 1, "isthing": True}, {"id": 2, "category_id": 0, "isthing": False}]
    found = model_of({"panoptic_seg": PanopticSegmentation(ids, segments)}).segment(Image.new("RGB", (3, 2)))
    assert [(s["name"], s["area"]) for s in found.segments] == [("cat", 3), ("dog", 2)]
    assert found.index.tolist() == [[0, 0, page_results.NOTHING], [0, 1, 1]]


def test_a_failing_model_does_not_end_the_server(serve, model_of, monkeypatch):
    model = model_of({"sem_seg": torch.rand(2, 4, 6)})
    page = serve(page_app([model], [], Limits(), None))
    for error, status, sentence in (
        (torch.OutOfMemoryError("out of memory"), 507, "6 x 4 pixels, does not fit into memory"),
        (RuntimeError("a bug"), 500, "its log says why"),
    ):

        def fail(image, error=error):
            raise error

        with monkeypatch.context() as patch:
            patch.setattr(model, "segment", fail)
            got = page.segment(png(Image.new("RGB", (6, 4))))
            assert got.status == status and sentence in got.content["error"]
        assert page.segment(png(Image.new("RGB", (6, 4)))).status == 200


@pytest.fixture
def start(monkeypatch, small_model, tmp_path):
    """start(*arguments) -> (exit code, what uvicorn was started with)."""
    monkeypatch.setattr(serve, "tune_process", lambda **kw: None)  # a setting of the whole process
    monkeypatch.chdir(tmp_path)
    import uvicorn

    started = []
    monkeypatch.setattr(uvicorn.Server, "run", lambda self, sockets: started.extend((self.config.app, *sockets)))

    def start(*arguments):
        config, options = small_model
        try:
            code = serve.main(["--config-file", config, *map(str, arguments), "--opts", *map(str, options)])
        except SystemExit as exit:
            code = exit.code
        for each in started:
            if isinstance(each, socket.socket):
                each.close()
        return code, started

    return start


def test_the_program(start, tmp_path, capsys):
    picture(0).save(tmp_path / "a.png")
    code, (app, listening) = start("--port", 0, "--examples", "a.png")
    assert code == 0 and app is not None and listening is not None
    printed = capsys.readouterr().out
    assert "The page is at http://127.0.0.1:" in printed and "no password" not in printed
    assert start("--port", 0, "--host", "0.0.0.0", "--examples")[0] == 0
    assert "no password" in capsys.readouterr().out


def test_only_the_loopback_refuses_names_of_others():
    assert "localhost" in serve.allowed_hosts("127.0.0.1")
    assert serve.allowed_hosts("0.0.0.0") is None


def test_what_keeps_it_from_starting(start, tmp_path, capsys, monkeypatch):
    (tmp_path / "broken.png").write_text("no image")
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        for arguments, complaint in (
            (("--port", port), f"--port {port}: cannot listen there"),
            (("--port", 70000), "--port is 70000"),
            (("--port", 0, "--max-pixels", 0), "--max-pixels is 0"),
            (("--port", 0, "--examples", "missing.png"), "missing.png: no such file"),
            (("--port", 0, "--examples", "broken.png"), "broken.png: cannot be read"),
            (("--port", 0, "--names", "a", "b"), "--names has 2"),
        ):
            code, started = start(*arguments)
            assert code == 2 and not started
            assert complaint in capsys.readouterr().err
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "uvicorn" else find_spec(name))
    assert start("--port", 0)[0] == 2
    assert "the page needs uvicorn: pip install -r requirements-serve.txt" in capsys.readouterr().err
