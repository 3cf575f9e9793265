"""The benchmark of servers: its tables are those of its record, and a server that ends is told."""

import json
import pathlib
import sys

import pytest

pytest.importorskip("starlette", reason="the extra `serve` is not installed")

from benchmarks import serve
from lsm.errors import ProcessError

PAGE = pathlib.Path(__file__).parents[1] / "docs/serving.md"


def test_a_page_with_other_figures_is_found_and_mended(tmp_path, monkeypatch):
    record = json.loads(serve.RECORD.read_text())
    record["pictures"]["lsm"]["8"]["rate"] *= 2
    monkeypatch.setattr(serve, "RECORD", tmp_path / "serve.json")
    serve.RECORD.write_text(json.dumps(record))
    page = tmp_path / "page.md"
    page.write_text(PAGE.read_text())
    assert serve.main(["check", str(page)]) == 1
    assert serve.main(["write", str(page)]) == 0 == serve.main(["check", str(page)])
    assert page.read_text() != PAGE.read_text()


def test_a_server_that_ends_is_told_with_its_last_words():
    command = [sys.executable, "-c", "print('hello'); raise SystemExit('no such model')"]
    with (
        pytest.raises(ProcessError, match="no such model"),
        serve.running(command, serve._free_port(), b""),
    ):
        pytest.fail("nobody answers")
