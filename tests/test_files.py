"""Paths as they are given on a command line."""

import os
import pathlib
import time

import pytest

from lsm.data import cache
from lsm.data.tokenize import Packing
from lsm.errors import ConfigError
from lsm.files import expanded, remove_old


def test_what_was_left_a_day_ago_goes_and_what_is_in_work_stays(tmp_path):
    for name, age in ((".writing-a", 2), (".writing-b", 2), ("entry", 2)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x").write_text("x")
        for path in (tmp_path / name / "x", tmp_path / name):
            os.utime(path, times=(time.time() - age * 86_400,) * 2)
    (tmp_path / ".writing-b" / "y").write_text("y")  # now
    remove_old(tmp_path, ".writing-*")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".writing-b", "entry"]


def test_a_tilde_is_the_home_directory(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert expanded("~/x", "--out") == tmp_path / "x"
    assert expanded("x/~", "--out") == pathlib.Path("x/~")
    monkeypatch.setenv("LSM_CACHE", "~/my cache")
    assert cache.root() == tmp_path / "my cache"
    for nothing in ("", None):
        monkeypatch.setenv("LSM_CACHE", "") if nothing == "" else monkeypatch.delenv("LSM_CACHE")
        assert cache.root() == tmp_path / ".cache/lsm"


def test_what_is_no_path_is_one_line(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    given = {
        "": "is empty",
        "x" * 10_000: "File name too long",
        "x/" * 10_000: "File name too long",
        "a\0b": "null byte",
        "~no_such_user/x": "home directory",
        str(tmp_path / "loop/x"): "symbolic links",
    }
    for path, reason in given.items():
        with pytest.raises(ConfigError, match=f"^--out: .*{reason}") as error:
            expanded(path, "--out")
        assert "\n" not in str(error.value) and len(str(error.value)) < 200
    # What is not there, or cannot be looked at, is for whoever opens it to say.
    (tmp_path / "file").write_text("")
    for path in ("gone/x", "file/x"):
        assert expanded(tmp_path / path, "--out") == tmp_path / path


@pytest.mark.parametrize("split", ["", ".", "..", "a/b", "/", "a/"])
def test_a_split_is_a_folder_inside_out(split):
    with pytest.raises(ConfigError, match=f"^--split: {split!r} is no name of a folder"):
        Packing("tokenizer", split=split)
