"""Whole datasets, decoded by several threads."""

import io
import sys
import threading

import jax
import numpy as np
import pytest

from lsm.command_line import waiting
from lsm.data import decode
from lsm.data.dataset import Dataset
from lsm.errors import DataError


class Squares(Dataset):
    """x = i ** 2; the example `damaged` cannot be read."""

    spec: dict = {"x": jax.ShapeDtypeStruct((), np.int32)}  # noqa: RUF012

    def __init__(self, length: int, damaged: int = -1):
        self.length, self.damaged, self.threads = length, damaged, set()

    def __len__(self):
        return self.length

    def take(self, indices):
        self.threads.add(threading.current_thread())
        if self.damaged in indices:
            raise DataError(f"example {self.damaged} is damaged")
        return {"x": np.asarray(indices, np.int32) ** 2}


@pytest.mark.parametrize("length", [0, 1, 9, 10, 1001])
def test_chunks_come_in_order(length, monkeypatch):
    monkeypatch.setattr(decode, "_BYTES", 40)  # ten examples
    monkeypatch.setattr(decode, "cores", lambda: 3)
    squares = Squares(length)
    chunks = [chunk["x"] for chunk in decode.chunks("squares", squares)]
    assert [len(chunk) for chunk in chunks] == [10] * (length // 10) + [length % 10] * bool(
        length % 10
    )
    np.testing.assert_array_equal(np.concatenate([*chunks, []]), np.arange(length) ** 2)
    assert threading.main_thread() not in squares.threads


def test_an_error_is_the_first_in_order_and_ends_it(monkeypatch):
    monkeypatch.setattr(decode, "_BYTES", 40)
    chunks = decode.chunks("squares", Squares(10_000, damaged=25))
    assert len(next(chunks)["x"]) == len(next(chunks)["x"]) == 10
    with pytest.raises(DataError, match="example 25 is damaged"):
        next(chunks)


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(("patience", "drawn"), [(-1.0, True), (60.0, False)])
def test_a_bar_is_drawn_on_a_terminal_once_it_takes_long(patience, drawn, monkeypatch):
    monkeypatch.setattr(decode, "_BYTES", 40)
    monkeypatch.setattr(waiting, "PATIENCE", patience)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert sum(len(chunk["x"]) for chunk in decode.chunks("squares", Squares(35))) == 35
    shown = sys.stderr.getvalue()
    assert ("decoding squares" in shown and "35/35" in shown) == drawn
    assert bool(shown) == drawn


def test_nothing_is_drawn_elsewhere(monkeypatch):
    monkeypatch.setattr(waiting, "PATIENCE", -1.0)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert len(list(decode.chunks("squares", Squares(35)))) == 1
    assert not sys.stderr.getvalue()
