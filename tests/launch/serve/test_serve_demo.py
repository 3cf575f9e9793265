"""The page to try models: its policy, what it can try, and all of it in a real browser."""

import dataclasses
import re
import shutil

import numpy as np
import pytest

pytest.importorskip("tokenizers", reason="the model's tokenizer")

from serving import SECRETS, Double, Tensor, serving
from writing import ANSWER, CONTEXT, run

from launch.serve import demo
from launch.serve.writers import Room

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
SIDE = 4


class Halves:
    """Says which half of a picture is brighter, and by how much."""

    labels = ("left", "right")

    def __init__(self):
        self.signature = Double().signature
        self.signature.inputs.clear()
        self.signature.inputs["image"] = Tensor(("b", SIDE, SIDE, 1), np.dtype(np.uint8))
        self.signature.outputs.clear()
        self.signature.outputs["probability"] = Tensor(("b", 2), np.dtype(np.float32))
        self.seen = []

    def __call__(self, inputs):
        x_BxHxWxC = inputs["image"].astype(np.float32)
        self.seen.append(inputs["image"][0, :, :, 0])
        halves_Bx2 = x_BxHxWxC.reshape(-1, SIDE, 2, SIDE // 2).sum((1, 3)) + 1e-6
        return {"probability": halves_Bx2 / halves_Bx2.sum(1, keepdims=True)}


@pytest.fixture(scope="module")
def halves():
    return Halves()


@pytest.fixture(scope="module")
def served(tmp_path_factory, halves):
    path = tmp_path_factory.mktemp("demo")
    loads = {"halves": lambda folder: halves, "double": lambda folder: Double()}
    model, room = run(path / "tokenizer", sharp=0.5), Room(slots=2, tokens=CONTEXT)
    encoder = dataclasses.replace(model.inputs.encoder, chat=None)
    untold = dataclasses.replace(model, inputs=dataclasses.replace(model.inputs, encoder=encoder))
    runs, more = {"chain": model, "untold": untold}, [demo.declare]
    with serving(path, loads, runs=runs, room=room, more=more) as server:
        yield server


def test_the_page_is_open_and_nothing_else_is(served):
    status, headers, page = served.request("GET", "/demo", key=None)
    assert (status, page.decode()) == (200, demo.PAGE)
    policy = dict(part.split(" ", 1) for part in headers["Content-Security-Policy"].split("; "))
    assert policy["default-src"] == policy["frame-ancestors"] == "'none'"
    assert policy["connect-src"] == "'self'"
    assert "unsafe" not in headers["Content-Security-Policy"]
    assert not re.search(r"https?://|\bsrc=|@import|localStorage|sessionStorage|cookie", demo.PAGE)
    assert served.request("GET", "/demo/models", key=None)[0] == 401
    assert served.request("GET", "/demo/models", key="metrics")[0] == 403


def test_what_can_be_tried(served):
    told = {one.pop("name"): one for one in served.json("GET", "/demo/models")[1]["models"]}
    assert told.keys() == {"chain", "untold", "halves"}
    assert told["chain"] == {"kind": "text", "chat": True, "room": CONTEXT}
    assert told["untold"] == {"kind": "text", "chat": False, "room": CONTEXT}
    assert told["halves"]["shape"] == [SIDE, SIDE, 1]
    assert told["halves"]["labels"] == ["left", "right"]


def test_the_page_asks_for_no_more_than_there_is_room_for(served):
    [most] = re.findall(r"max_tokens: (\w+)", demo.PAGE)
    assert f"const {most} = Math.min(256, model.room >> 1);" in demo.PAGE
    asked = {"model": "untold", "prompt": "go", "max_tokens": min(256, CONTEXT >> 1)}
    assert served.json("POST", "/v1/completions", asked)[0] == 200


def test_it_is_off_unless_asked_for(tmp_path):
    with serving(tmp_path) as server:
        assert server.request("GET", "/demo", key="infer")[0] == 404
        assert server.request("GET", "/demo", key=None)[0] == 401


@pytest.fixture
def tab():
    if CHROMIUM is None:
        pytest.skip("needs Chromium")
    api = pytest.importorskip("playwright.sync_api", reason="Playwright drives the browser")
    with api.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened.new_page(viewport={"width": 360, "height": 740})
        opened.close()


@pytest.mark.slow
def test_in_a_browser(served, halves, tab, tmp_path):
    from PIL import Image
    from playwright.sync_api import expect

    asked, failed = [], []
    tab.on("request", lambda request: asked.append(request.url))
    tab.on("pageerror", lambda error: failed.append(str(error)))
    tab.goto(f"http://127.0.0.1:{served.port}/demo")
    state = tab.locator("#state")
    expect(state).to_have_text("A key is needed.")
    tab.locator("#key").fill("wrong")
    tab.get_by_text("Open").click()
    expect(state).to_contain_text("a key is needed, and none or a wrong one given")
    tab.locator("#key").fill(SECRETS["infer"][0])
    tab.get_by_text("Open").click()

    tab.locator("#model").select_option("chain")
    tab.locator("#prompt").fill("hello")
    tab.get_by_role("button", name="Write").click()
    expect(tab.locator("#answer")).to_have_text(ANSWER)
    expect(tab.locator("#stop")).to_be_disabled()
    tab.locator("#model").select_option("untold")
    tab.locator("#prompt").fill("go")
    tab.get_by_role("button", name="Write").click()
    expect(tab.locator("#answer")).to_contain_text(ANSWER)  # nothing tells it where that ends

    tab.locator("#model").select_option("halves")
    Image.fromarray(np.repeat([[0, 0, 200, 200]], 4, 0).astype(np.uint8)).save(tmp_path / "a.png")
    tab.locator("#file").set_input_files(tmp_path / "a.png")
    expect(tab.locator("li.first .name")).to_have_text("right")
    seen = halves.seen[-1]
    assert seen[:, 0].max() < 20 < 180 < seen[:, 3].min()  # the browser smooths between
    tab.get_by_text("Clear").click()
    expect(tab.locator("li")).to_have_count(0)
    box = tab.locator("#pad").bounding_box()
    x, y = box["x"] + 0.3 * box["width"], box["y"]
    tab.mouse.move(x, y + 0.2 * box["height"])
    tab.mouse.down()
    tab.mouse.move(x, y + 0.8 * box["height"], steps=5)
    tab.mouse.up()
    expect(tab.locator("li.first .share")).to_have_text(re.compile(r"5\d\.\d %"))  # in the middle
    assert tab.evaluate("document.documentElement.scrollWidth") <= 360
    assert not failed
    assert {url.split("/")[2] for url in asked if url.startswith("http")} == {
        f"127.0.0.1:{served.port}"
    }
    assert tab.evaluate("[localStorage.length, sessionStorage.length, document.cookie]") == [
        0,
        0,
        "",
    ]
