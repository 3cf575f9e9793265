"""The tables of chains in the docs are those of their records, of the recipes as they are."""

import json
import pathlib

import pytest

from benchmarks import chains
from lsm.compress.chain import STATE
from lsm.compress.rows import Row
from lsm.config import schema

PAGE = pathlib.Path(__file__).parents[2] / "docs/compress.md"
SIZE = {"parameters": 10, "nonzero": 10, "bytes": 40, "compressed": 30}
LATENCY = {str(rows): {"median": 1.0, "p95": 2.0} for rows in (1, 32)}


def state(tmp_path, links, small=2, **changes):
    rows = [
        {
            "name": f"{number} link",
            "workdir": f"/somewhere/{number}_link",
            "value": 0.9,
            "size": SIZE | ({"bytes": small} if number else {}),
            "latency": LATENCY,
            "ratios": {"1": 1.0, "32": 1.0},
            "seconds": None,
        }
        for number in range(links + 1)
    ]
    saved = {
        "recipe": schema.to_json(chains.recipe_of("digits")),
        "rows": rows,
        "hardware": {"platform": "cpu", "cpu": "a CPU", "cores": 2},
        "versions": {},
        "git_revision": "0123456789abcdef",
    }
    (tmp_path / STATE).write_text(json.dumps(saved | changes))
    return str(tmp_path)


def test_the_tables_of_the_page_are_those_of_the_records():
    assert chains.main(["check", str(PAGE)]) == 0


@pytest.mark.parametrize("path", sorted(chains.RECORDS.glob("*.json")), ids=lambda p: p.stem)
def test_a_record_is_of_all_links_of_its_recipe(path):
    rows = [Row.from_json(row) for row in json.loads(path.read_text())["rows"]]
    kinds = [type(link).__name__.lower() for link in chains.recipe_of(path.stem).links]
    assert [row.name.partition(" ")[2] for row in rows] == ["source", *kinds]


def test_what_is_kept_is_in_the_table_and_no_path_is(tmp_path, monkeypatch):
    monkeypatch.setattr(chains, "RECORDS", tmp_path / "records")
    assert "not run yet" in chains.table("digits")
    assert chains.main(["keep", "digits", state(tmp_path, 2)]) == 0
    assert "a CPU, 2 cores; at 0123456789." in chains.table("digits")
    assert "somewhere" not in (tmp_path / "records/digits.json").read_text()


def test_a_chain_that_is_not_done_or_another_is_not_kept(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(chains, "RECORDS", tmp_path / "records")
    assert chains.main(["keep", "digits", state(tmp_path, 1)]) == 1
    assert "1 of 2 links are done" in capsys.readouterr().err
    other = schema.to_json(chains.recipe_of("cifar"))
    assert chains.main(["keep", "digits", state(tmp_path, 2, recipe=other)]) == 1
    assert "made by another recipe" in capsys.readouterr().err
    assert chains.main(["keep", "digits", state(tmp_path, 2, small=40)]) == 1
    assert "1 link: share of the bytes: 1.000, allowed: 0.3 at the most." in capsys.readouterr().err
    assert chains.main(["keep", "digits"]) == 1
    assert not (tmp_path / "records").exists()
