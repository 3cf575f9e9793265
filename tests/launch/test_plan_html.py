"""The page of a plan: read back with html.parser, its figures are the plan's."""

import dataclasses
import html.parser
import importlib.util
import pathlib
import re

import pytest

from launch.plan import compiled, topology
from launch.plan.__main__ import main
from launch.plan.compiled import Request
from launch.plan.html import BARS, html_of
from launch.plan.report import Memory, Plan, Refusal
from launch.plan.sections import amount, count, duration
from lsm import Data, Experiment, Mesh, Train
from lsm.data import Digits
from lsm.models import MLP
from lsm.optim import Adam
from lsm.tasks import Classification

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("libtpu") is None, reason="needs libtpu: pip install 'lsm[plan]'"
    ),
]
ROOT = pathlib.Path(__file__).parents[2]


class Page(html.parser.HTMLParser):
    """Tables as lists of rows under their heading, rectangles by chart, and whether tags close."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tables, self.charts, self.headings, self.links = [], {}, {}, [], []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.links += [v for k, v in attrs.items() if k in ("src", "href", "xlink:href")]
        if tag == "svg" and attrs.get("role") == "img":
            self.chart = {"rects": [], "title": "", "desc": ""}
        if tag == "rect":
            self.chart["rects"].append({k: attrs[k] for k in attrs})
        if tag != "meta":
            self.open.append((tag, attrs))
        if tag == "tr":
            self.row = []
        if tag in ("td", "th"):
            self.row.append("")

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def classes(self):
        return [attrs.get("class") for _, attrs in self.open]

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag
        if tag == "tr":
            self.tables.setdefault(self.headings[-1], []).append(self.row)
        if tag == "svg":
            self.charts[self.chart["title"]] = self.chart

    def handle_data(self, data):
        inside = [tag for tag, _ in self.open]
        self.text += data
        if inside and inside[-1] in ("h1", "h2"):
            self.headings.append(data)
        if "td" in inside or "th" in inside:
            self.row[-1] += data
        if inside[-2:] == ["svg", "title"] or inside[-2:] == ["svg", "desc"]:
            self.chart[inside[-1]] += data


@pytest.fixture(scope="module")
def plan():
    experiment = Experiment(
        name="page <1> & co",
        task=Classification(model=MLP(widths=(512, 512))),
        data=Data(source=Digits(), test=None),
        optimizer=Adam(learning_rate=1e-3),
        train=Train(steps=1000, batch_size=64),
        mesh=Mesh(data=2, fsdp=4),
    )
    overrides = {"name": "<script>alert(1)</script>"}
    request = Request(experiment, "config.py", overrides, price=2.5e6)
    return compiled.plan(request, topology.load("h100:8"))


def rows(page, heading):
    return {row[0]: row[1:] for row in page.tables[heading]}


def test_figures_are_the_plans(plan):
    page = Page(html_of(plan))
    memory = rows(page, "Memory on each device")
    assert memory["parameters"][0] == amount(plan.memory.parameters)
    assert memory["temporaries"][0] == amount(plan.memory.temporaries)
    assert memory["total"][0] == amount(plan.memory.total)
    operations = rows(page, "Time of a step by operation, at the chip's peaks")
    for one in plan.operations:
        texts = [duration(one.seconds), f"{one.count:,}", count(one.flops), amount(one.bytes), "0"]
        assert operations[one.kind] == texts
    roofline = rows(page, "Roofline of a step")
    assert {name: cells[0] for name, cells in roofline.items() if name != "part"} == {
        name: duration(seconds) for name, seconds in vars(plan.roofline).items()
    }
    fast, slow = plan.projection.step_seconds
    projection, (low, high) = rows(page, "Projection"), plan.projection.mfu
    assert projection["step"] == [duration(fast), duration(slow)]
    assert projection["MFU"] == [f"{high:.1%}", f"{low:.1%}"]
    assert projection["USD"] == [f"{usd:,.2f}" for usd in plan.projection.usd]


def test_collectives_are_told_with_their_axes(plan):
    table = Page(html_of(plan)).tables["Collectives of a step"][1:]
    assert [int(row[4].replace(",", "")) for row in table] == [c.times for c in plan.collectives]
    axes = [row[1].removesuffix(" *") for row in table]
    assert axes == [", ".join(one.axes) for one in plan.collectives]


def test_bars_are_to_scale(plan):
    page = Page(html_of(plan))
    bars = page.charts["Memory on each device"]["rects"]
    filled = sum(float(one["width"]) for one in bars)
    assert filled == pytest.approx(BARS * plan.memory.total / plan.memory.capacity, abs=0.1)
    widths = [float(one["width"]) for one in page.charts["Roofline of a step"]["rects"]]
    seconds = list(vars(plan.roofline).values())
    assert [w / max(widths) for w in widths] == pytest.approx(
        [s / max(seconds) for s in seconds], abs=1e-3
    )


def test_every_chart_is_told_in_words_and_as_a_table(plan):
    text = html_of(plan)
    page = Page(text)
    assert len(page.charts) == 3
    for chart in page.charts.values():
        assert chart["title"] and chart["desc"]
    assert re.findall(r"</figure>\s*<(\w+)>", text) == ["table"] * 3


def test_it_stands_alone_and_is_the_same_twice(plan):
    text = html_of(plan)
    assert text == html_of(plan)
    assert Page(text).links == []
    assert not re.search(r"https?:|url\(|@import|<script", text)
    for media in ("prefers-color-scheme: dark", "@media print"):
        assert media in text


def test_what_the_user_wrote_is_escaped(plan):
    text = html_of(plan)
    assert "page &lt;1&gt; &amp; co" in text and "&lt;script&gt;alert(1)" in text
    assert Page(text).headings[0].startswith("Plan of page <1> & co")


def test_it_says_whether_the_plan_fits(plan):
    assert "Fits, with" in html_of(plan) and "ESTIMATE: compiled" in html_of(plan)
    big = Memory(**{**vars(plan.memory), "temporaries": 2 * plan.memory.available})
    page = Page(html_of(dataclasses.replace(plan, memory=big)))
    over = big.total - big.available
    assert f"DOES NOT FIT, by {amount(over)} on each device" in page.text
    bars = page.charts["Memory on each device"]["rects"]
    assert sum(float(one["width"]) for one in bars) <= BARS + 0.1


def test_a_refusal_is_a_page_too(plan):
    refused = Plan(
        run=plan.run,
        topology=plan.topology,
        price=None,
        price_source="",
        basis="compiled",
        refusal=Refusal(
            program="step",
            reason="out of <memory>",
            needed=20 * 2**30,
            available=16 * 2**30,
            largest=((10 * 2**30, "f32[2621440,1024]"),),
        ),
    )
    page = Page(html_of(refused))
    assert "DOES NOT FIT: the compiler refuses the step" in page.text
    assert "out of <memory>" in page.text and "4.00 GiB too much" in page.text
    assert page.tables["The compiler's reason"][1] == ["f32[2621440,1024]", "10.00 GiB"]


def test_the_command_writes_it(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    path = tmp_path / "plan.html"
    command = ["--config=experiments/configs/digits/cnn.py", "--topology=a100:8"]
    assert main([*command, f"--html={path}"]) == 0
    assert "ESTIMATE: compiled" in capsys.readouterr().out
    assert Page(path.read_text()).headings[0].startswith("Plan of digits")
    assert main([*command, f"--html={tmp_path}/no/plan.html"]) == 1
    assert "/no/plan.html: it cannot be written: No such" in capsys.readouterr().err
