"""Checkpoints that cannot be written, and folders that are not what their name says."""

import contextlib
import logging
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from lsm.errors import CheckpointError, TrainingError
from lsm.files import atomic_write
from lsm.run.checkpoint import Checkpoints
from lsm.run.saved import checksums

STATE = {"w": jnp.arange(4.0)}
ABSTRACT = {"w": jax.ShapeDtypeStruct((4,), jnp.float32)}


def test_a_copied_step_is_neither_read_nor_in_the_way_without_a_word(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(100, STATE, {"epoch": 1})
    checkpoints.close()
    shutil.copytree(tmp_path / "100", tmp_path / "300")
    checkpoints = Checkpoints(tmp_path)
    for read in (checkpoints.progress, lambda step: checkpoints.restore(ABSTRACT, step)):
        with pytest.raises(CheckpointError, match=r"300 cannot be read .*copy of step 100.*remove"):
            read(300)
    with pytest.raises(CheckpointError, match=r"cannot save step 120 .* a later step, 300"):
        checkpoints.save(120, STATE, {})
    checkpoints.close()
    shutil.rmtree(tmp_path / "300")
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(120, STATE, {})
    checkpoints.wait()
    assert checkpoints.steps() == [100, 120]
    np.testing.assert_array_equal(checkpoints.restore(ABSTRACT, 120)["w"], STATE["w"])
    checkpoints.close()


FILLS = """
import contextlib, shutil, sys, pathlib, jax
from lsm import command_line
from lsm.run.checkpoint import Checkpoints
from lsm.run.saved import checksums

def act():
    disk = pathlib.Path(sys.argv[1])
    Checkpoints._check_space = lambda *_: None  # as of a disk that fills up meanwhile
    checkpoints = Checkpoints(disk / "checkpoints")
    checkpoints.save(1, {"w": jax.numpy.ones(4)}, {})
    checkpoints.wait()
    (disk / "other").write_bytes(bytes(shutil.disk_usage(disk).free - 1_500_000))
    state = {str(i): jax.random.normal(jax.random.key(i), (1 << 17,)) for i in range(8)}
    with contextlib.closing(checkpoints):
        checkpoints.save(2, state, {})

sys.exit(command_line.status(act))
"""


@pytest.mark.slow
def test_a_disk_that_fills_up_during_a_save_is_one_line(tmp_path):
    mount = ["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(tmp_path)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs the right to mount a small file system")
    try:
        command = [sys.executable, "-c", FILLS, str(tmp_path)]
        done = subprocess.run(command, capture_output=True, text=True)
        left = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)
    assert done.returncode == 1 and done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith(f"error: cannot save to {tmp_path}/checkpoints: ")
    assert done.stderr.endswith("step 1 is intact.\n") and "No space left" in done.stderr
    assert left == ["1"]


def test_a_disk_error_does_not_speak_of_checkpoints(tmp_path):
    """`lsm.data.tokenize` has none."""
    with pytest.raises(TrainingError) as error:
        atomic_write(tmp_path, b"")
    assert "checkpoint" not in str(error.value)
    assert "run the same command again; it goes on from what was saved." in str(error.value)


def test_a_read_that_fails_after_another_is_not_told_of(tmp_path, caplog):
    """By asyncio, whenever it collects the task: the error of the first has been raised."""
    with contextlib.closing(Checkpoints(tmp_path)):
        asyncio = logging.getLogger("asyncio")
        asyncio.error("Task exception was never retrieved\nfuture: orbax/checkpoint/x.py")
        asyncio.error("Future exception was never retrieved\nfuture: x [tensorstore_spec='{}']")
        asyncio.error("Task exception was never retrieved\nfuture: mine.py")
    assert [record.getMessage()[-7:] for record in caplog.records] == ["mine.py"]


def test_a_checksum_is_the_sum_that_earlier_versions_saved():
    w_AxBxC = np.random.default_rng(0).normal(size=(3, 5, 7)).astype("f")
    bits = [int(x) for x in w_AxBxC.view(np.uint32).ravel()]
    expected = sum(x * (2 * place + 1) for place, x in enumerate(bits)) % 2**32
    assert int(checksums({"w": w_AxBxC})["w"]) == expected


def test_checksums_write_nothing_out():
    """Else they take ten times as long, and as much memory as the state."""
    state = {name: jax.ShapeDtypeStruct((512, 512), jnp.float32) for name in "ab"}
    memory = jax.jit(checksums).lower(state).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 1 << 14


def test_checkpoints_are_written_plain_and_read_compressed_too(tmp_path, monkeypatch):
    state = {"w": jnp.zeros((1 << 20,))}
    with monkeypatch.context() as earlier:
        handler = ocp.PyTreeCheckpointHandler
        earlier.setattr(ocp, "PyTreeCheckpointHandler", lambda **_: handler())
        with contextlib.closing(Checkpoints(tmp_path)) as checkpoints:
            checkpoints.save(1, state, {})
    with contextlib.closing(Checkpoints(tmp_path)) as checkpoints:
        checkpoints.save(2, checkpoints.restore(state, 1), {})
        checkpoints.wait()
        np.testing.assert_array_equal(checkpoints.restore(state, 2)["w"], state["w"])
    sizes = [_bytes(tmp_path / step) for step in "12"]
    assert sizes[0] < 1 << 20 and sizes[1] >= 4 << 20


def _bytes(folder):
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
