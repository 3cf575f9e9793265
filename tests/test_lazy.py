"""`import lsm`: light, and everything is there when it is asked for."""

import pathlib
import subprocess
import sys

import pytest

import lsm

ROOT = pathlib.Path(__file__).parents[1]


def printed(*words):
    done = subprocess.run(
        [sys.executable, *words], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return done.stdout.split()


def test_nothing_heavy_comes_before_a_name_is_asked_for():
    code = "import sys, lsm; print('jax' in sys.modules); lsm.Train; print('jax' in sys.modules)"
    assert printed("-c", code) == ["False", "True"]


def test_an_exported_model_is_loaded_without_what_trains():
    code = "import sys, lsm.export as e; e.load; print(*{'flax', 'optax', 'absl'} & {*sys.modules})"
    assert printed("-c", code) == []


def test_every_name_is_there_and_listed():
    for name in lsm.__all__:
        assert getattr(lsm, name).__module__.startswith("lsm.")
    assert {*lsm.__all__, "__doc__"} <= {*dir(lsm)}
    assert lsm.models.CNN.__module__ == "lsm.models.cnn"  # a room
    with pytest.raises(AttributeError, match="module 'lsm' has no attribute 'nothing'"):
        lsm.nothing


def test_a_command_has_imported_all_while_ctrl_c_waits():
    """So that no package around it is imported outside of that."""
    code = "import sys; sys.orig_argv[:] = ['python', '-m', 'lsm.adapt']; import lsm; print('lsm.train' in sys.modules)"
    assert printed("-c", code) == ["True"]
