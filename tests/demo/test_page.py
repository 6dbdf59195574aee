"""The page in a browser: Playwright drives the Chromium that is installed."""

import io
import shutil

import numpy as np
import pytest
from PIL import Image

from tests.demo.conftest import picture

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")]

DROP = """({name, bytes, kind}) => {
  const data = new DataTransfer();
  data.items.add(new File([new Uint8Array(bytes)], name, {type: "image/png"}));
  document.querySelector("#drop").dispatchEvent(kind === "paste"
    ? new ClipboardEvent("paste", {clipboardData: data, bubbles: true})
    : new DragEvent("drop", {dataTransfer: data, bubbles: true, cancelable: true}));
}"""
PIXEL = """([x, y]) => {
  const canvas = document.querySelector(".stage canvas");
  return [...canvas.getContext("2d").getImageData(x, y, 1, 1).data];
}"""


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def tab(browser, page):
    """The page, opened; errors in its script or console fail the test."""
    tab = browser.new_page(viewport={"width": 1200, "height": 900}, accept_downloads=True)
    tab.set_default_timeout(20_000)
    problems = []
    tab.on("pageerror", lambda error: problems.append(str(error)))
    tab.on("console", lambda m: problems.append(m.text) if m.type == "error" and "status of 4" not in m.text else None)
    tab.goto(page.url)
    yield tab
    tab.close()
    assert not problems


def drop(tab, name, data: bytes | int, kind="drop"):
    """A file of these bytes, or of so many."""
    tab.wait_for_selector(".thumbnails button")
    tab.evaluate(DROP, {"name": name, "bytes": data if isinstance(data, int) else list(data), "kind": kind})


def png(image) -> bytes:
    data = io.BytesIO()
    image.save(data, "PNG")
    return data.getvalue()


def test_an_example_painted_hidden_and_downloaded(tab, page):
    labels = page.model.predictor(page.examples[0])["sem_seg"].argmax(0).numpy()
    tab.get_by_role("button", name="one.png").click()
    tab.wait_for_selector(".card")
    assert tab.locator(".card").count() == 2  # the models side by side
    # inside a segment, the paint is its colour, as opaque as the slider says
    inside = np.ones_like(labels, bool)
    for axis in (0, 1):
        for step in (-1, 1):
            inside &= np.roll(labels, step, axis) == labels
    inside[[0, -1]] = inside[:, [0, -1]] = False
    y, x = map(int, np.argwhere(inside)[0])
    name, color = page.model.predictor.class_names[labels[y, x]], page.model.predictor.colors[labels[y, x]]
    got = tab.evaluate(PIXEL, [x, y])
    assert got[3] == round(255 * 0.55) and np.abs(np.array(got[:3]) - color).max() <= 2
    tab.locator("#opacity").fill("100")
    assert tab.evaluate(PIXEL, [x, y]) == [*color.tolist(), 255]
    # the legend has the class with its area, and hides it in all models
    entry = tab.locator(f'.legend li[data-name="{name}"]')
    share = 100 * (labels == labels[y, x]).mean()
    assert entry.first.locator(".share").inner_text() == (f"{share:.1f} %" if share < 9.95 else f"{share:.0f} %")
    entry.first.locator("label").click()
    assert tab.evaluate(PIXEL, [x, y])[3] == 0
    assert entry.count() == 2 and not entry.nth(1).locator("input").is_checked()
    # and so does the file
    with tab.expect_download() as download:
        tab.get_by_role("link", name="Overlay").first.click()
    drawn = np.asarray(Image.open(download.value.path()).convert("RGB")).astype(int)
    scale = 6  # small pictures are enlarged
    original = np.asarray(Image.open(page.examples[0]).convert("RGB")).astype(int)
    ys, xs = np.nonzero(inside & (labels == labels[y, x]))
    differences = np.abs(drawn[ys * scale + 3, xs * scale + 3] - original[ys, xs]).max(1)
    assert np.median(differences) < 40


def test_a_click_shows_where_the_query_looks(tab):
    tab.get_by_role("button", name="two.jpg").click()
    tab.wait_for_selector(".card")
    tab.locator(".stage canvas").nth(1).click(position={"x": 20, "y": 20})
    tab.wait_for_selector("#attention figure")
    assert tab.locator("#attention figure").count() == 7
    assert tab.locator("#attention-title").inner_text().startswith("Where query ")
    assert "omega, 1/4" in tab.locator("#attention .panels").inner_text()
    assert tab.evaluate("[...document.querySelectorAll('#attention img')].every(image => image.naturalWidth > 0)")
    tab.get_by_role("button", name="Close").click()
    assert not tab.locator("#attention").is_visible()
    tab.locator(".legend button").first.click()  # for those who use no mouse
    tab.wait_for_selector("#attention:not([hidden])")


@pytest.mark.parametrize("kind", ["drop", "paste"])
def test_pictures_that_are_dropped_or_pasted(tab, kind):
    drop(tab, "<b>mine.png", png(picture(9)), kind)
    tab.wait_for_selector(".card")
    assert tab.locator("#size").inner_text() == "<b>mine.png, 80 × 64"
    assert tab.locator("#status").is_hidden() and tab.locator("#error").is_hidden()


def test_errors_are_sentences_and_the_page_goes_on(tab, page, monkeypatch):
    for name, data, sentence in (
        ("notes.png", b"no image", "notes.png: cannot be read as an image"),
        ("large.png", png(Image.new("L", (300, 200))), "300 x 200 pixels, more than the 40,000"),
        ("huge.png", 1_300_000, "huge.png has 1 MB, more than the 1 MB"),
    ):
        drop(tab, name, data)
        tab.wait_for_function("name => document.querySelector('#error').textContent.includes(name)", arg=sentence)
        assert tab.locator("#status").is_hidden() and tab.locator(".card").count() == 0
    tab.get_by_role("button", name="one.png").click()
    tab.wait_for_selector(".card")
    assert tab.locator("#error").is_hidden()
    # a result that the server keeps no longer
    tab.route("**/attention*", lambda route: route.fulfill(status=410, json={"error": "It is gone."}))
    tab.locator(".stage canvas").first.click(position={"x": 20, "y": 20})
    tab.get_by_role("button", name="Segment it again").click()
    tab.wait_for_selector("#error", state="hidden")


def test_confidence(tab):
    tab.get_by_role("button", name="one.png").click()
    tab.wait_for_selector(".card")
    before = tab.evaluate(PIXEL, [5, 5])
    tab.get_by_role("button", name="Confidence").click()
    assert tab.evaluate(PIXEL, [5, 5]) != before and tab.get_by_text("unsure").is_visible()
    tab.get_by_role("button", name="Picture", exact=True).click()
    assert tab.evaluate(PIXEL, [5, 5])[3] == 0 and not tab.get_by_text("unsure").is_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone_nothing_sticks_out(browser, page, scheme):
    phone = browser.new_page(viewport={"width": 360, "height": 740}, color_scheme=scheme)
    phone.goto(page.url)
    phone.get_by_role("button", name="one.png").click()
    phone.wait_for_selector(".card")
    phone.locator(".stage canvas").first.click(position={"x": 20, "y": 20})
    phone.wait_for_selector("#attention figure")
    assert phone.evaluate("document.documentElement.scrollWidth <= innerWidth")
    paper = phone.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (int(paper.split("(")[1].split(",")[0]) > 128) == (scheme == "light")
    phone.close()
