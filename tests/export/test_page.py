"""The page to draw on, in a real browser without a server."""

import math
import shutil
import subprocess

import numpy as np
import pytest

import lsm
from lsm.data import Digits
from lsm.export import page as pages

pytestmark = pytest.mark.slow

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.fixture(scope="module")
def runtime(tmp_path_factory):
    """The package of onnxruntime-web."""
    if shutil.which("npm") is None:
        pytest.skip("needs npm, to get onnxruntime-web")
    folder = tmp_path_factory.mktemp("npm")
    words = ["npm", "pack", "onnxruntime-web@1.30.0"]
    if subprocess.run(words, cwd=folder, capture_output=True).returncode:
        pytest.skip("needs onnxruntime-web, which npm cannot get here")
    (package,) = folder.iterdir()
    return package


@pytest.fixture(scope="module")
def page(runtime, digits, convert, tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    model, file = folder / "digits.onnx", folder / "digits.html"
    convert("lsm.export.onnx", f"--workdir={digits}", f"--out={model}")
    convert("lsm.export.page", f"--model={model}", f"--runtime={runtime}", f"--out={file}")
    return file


@pytest.fixture
def browser():
    if CHROMIUM is None:
        pytest.skip("needs Chromium")
    api = pytest.importorskip("playwright.sync_api", reason="Playwright drives the browser")
    with api.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


def draw(tab, points):
    box = tab.locator("#pad").bounding_box()
    places = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in points]
    tab.mouse.move(*places[0])
    tab.mouse.down()
    for place in places[1:]:
        tab.mouse.move(*place, steps=5)
    tab.mouse.up()


def seen(tab):
    """The picture that the network got, (8, 8, 1), and the shares that the page shows, in %."""
    pixels = tab.evaluate(
        "() => Array.from(document.getElementById('seen').getContext('2d')"
        ".getImageData(0, 0, 8, 8).data)"
    )
    shares = [float(text.removesuffix(" %")) for text in tab.locator(".share").all_inner_texts()]
    return np.array(pixels, np.uint8).reshape(8, 8, 4)[..., :1], shares


CIRCLE = [
    (0.5 + 0.2 * math.sin(i * math.pi / 8), 0.5 - 0.3 * math.cos(i * math.pi / 8))
    for i in range(17)
]


def test_what_is_drawn_is_told_as_the_run_tells_it_and_nothing_is_fetched(page, digits, browser):
    from playwright.sync_api import expect

    tab, asked, failed = browser.new_page(viewport={"width": 360, "height": 740}), [], []
    tab.on("request", lambda request: asked.append(request.url))
    tab.on("pageerror", lambda error: failed.append(str(error)))
    tab.goto(page.as_uri())
    state, run = tab.locator("#state"), lsm.load(digits)
    expect(state).to_have_text("Ready.", timeout=60_000)
    for points, digit in ((CIRCLE, 0), ([(0.5, 0.2), (0.5, 0.8)], 1)):
        draw(tab, points)
        expect(tab.locator("li.first span").first).to_have_text(str(digit), timeout=30_000)
        picture, shares = seen(tab)
        expected = run.predict({"image": picture[None]})["probability"][0]
        np.testing.assert_allclose(shares, 100 * expected, atol=0.06)
        tab.click("#clear")
        expect(tab.locator("li.first")).to_have_count(0)
    assert not failed
    assert [url for url in asked if not url.startswith("blob:")] == [page.as_uri()]
    wide = tab.evaluate("() => document.documentElement.scrollWidth")
    assert wide <= 360


def test_another_package_or_model_is_refused(runtime, page, convert, tmp_path):
    other = tmp_path / "other.tgz"
    other.write_bytes(runtime.read_bytes() + b"x")
    model = page.with_name("digits.onnx")
    words = [f"--model={model}", f"--runtime={other}", f"--out={tmp_path / 'a.html'}"]
    assert "--runtime: not onnxruntime-web 1.30.0" in convert("lsm.export.page", *words, fails=True)
    words[:2] = [f"--model={other}", f"--runtime={runtime}"]
    assert "--model: not an ONNX file" in convert("lsm.export.page", *words, fails=True)
    assert not (tmp_path / "a.html").exists()


def test_what_is_read_is_not_written_over(tmp_path, capsys):
    model, runtime = tmp_path / "a.onnx", tmp_path / "b.tgz"
    for path in (model, runtime):
        path.write_bytes(b"as it was")
    words = [f"--model={model}", f"--runtime={runtime}"]
    for path in (model, runtime):
        assert pages.main([*words, f"--out={path}"]) == 1
        assert "is one of the files that are read" in capsys.readouterr().err
        assert path.read_bytes() == b"as it was"


def test_the_digits_of_the_source_fill_their_pictures():
    # So that the page may cut what is drawn to its bounds: `--box=1`.
    pictures = Digits().open("train").take(np.arange(200))["image"]
    rows = (pictures > 0).any(axis=(2, 3))
    assert rows[:, 0].mean() > 0.95 and rows[:, -1].mean() > 0.95
