"""The journal: an edit shows, a line that a kill has cut short goes."""

import json

import pytest

from launch.command import LaunchError
from launch.retrain.journal import Journal


@pytest.fixture
def path(tmp_path):
    journal = Journal(tmp_path / "work/journal.jsonl")
    for number in range(3):
        journal.append(1, f"step {number}", "begun", value=float(number), missing=float("nan"))
    return tmp_path / "work/journal.jsonl"


def test_it_is_read_as_it_was_written(path):
    journal = Journal(path)
    assert [(r["step"], r["value"]) for r in journal.records] == [
        ("step 0", 0), ("step 1", 1), ("step 2", 2),
    ]  # fmt: skip
    assert journal.records[0]["missing"] is None and "@" in journal.records[0]["by"]
    assert len({r["hash"] for r in journal.records}) == 3
    journal.append(2, "step 0", "done")
    again = Journal(path)
    assert again.head == journal.head
    assert len(again.found("step 0", "done")) == 1 == len(again.found("step 0", "begun", 1))
    assert not again.found("step 0", "done", 1)


def edited(lines):
    record = json.loads(lines[1])
    lines[1] = json.dumps(record | {"value": 9.0})


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (edited, 2),
        (lambda lines: lines.pop(0), 1),
        (lambda lines: lines.pop(1), 2),
        (lambda lines: lines.insert(1, lines[0]), 2),
        (lambda lines: lines.reverse(), 1),
        (lambda lines: lines.__setitem__(2, "[]"), 3),
    ],
)
def test_an_edit_shows(path, change, line):
    lines = path.read_text().splitlines()
    change(lines)
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(LaunchError, match=f"line {line} is not what was written"):
        Journal(path)


def test_a_line_that_was_cut_short_goes(path):
    whole = path.read_bytes()
    last = whole.splitlines(keepends=True)[-1]
    path.write_bytes(whole[:-20])
    assert [r["step"] for r in Journal(path).records] == ["step 0", "step 1"]
    assert path.read_bytes() == whole[: -len(last)]
