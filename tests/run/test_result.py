"""The record of a run: fingerprints, hardware, versions, revisions, and the file."""

import dataclasses
import hashlib
import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lsm.errors import TrainingError
from lsm.run import result
from lsm.run.result import Result, fingerprint, git_revision

RESULT = Result(
    metrics={"test": {"accuracy": 0.9178, "loss": 0.25}},
    step=15620,
    wall_time=601.5,
    fingerprint="0" * 64,
    seed=1,
    stopped="completed",
    git_revision="abc+dirty",
    versions={"jax": "0.12.0"},
    hardware={"platform": "cpu", "device_count": 1},
    best_step=15000,
    goodput={"goodput": 0.9, "wall_time": 601.5},
)

# ------------------------------------------------------------------- fingerprint


def test_fingerprint_is_the_sha256_of_the_bytes_in_path_order():
    kernel_2x3 = np.arange(6, dtype=np.float32).reshape(2, 3)
    bias_3 = np.ones(3, dtype=np.float32)
    params = {"dense_1": {"kernel": kernel_2x3, "bias": bias_3}, "Dense": {"kernel": bias_3}}
    # "Dense/kernel" < "dense_1/bias" < "dense_1/kernel", as Python compares strings.
    content = bias_3.tobytes() + bias_3.tobytes() + kernel_2x3.tobytes()
    assert fingerprint(params) == hashlib.sha256(content).hexdigest()


def test_paths_are_sorted_as_whole_strings_not_key_by_key():
    # "a-b/x" < "a/x" as strings ("-" is before "/"), though the key "a" is before "a-b".
    params = {"a": {"x": np.float32(1)}, "a-b": {"x": np.float32(2)}}
    content = np.float32(2).tobytes() + np.float32(1).tobytes()
    assert fingerprint(params) == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8", "float8_e4m3fn"])
def test_fingerprint_of_every_dtype_tells_one_bit(dtype):
    array = jnp.arange(8).astype(dtype)
    raw = np.asarray(array).view(np.uint8)
    assert fingerprint({"x": array}) == hashlib.sha256(raw.tobytes()).hexdigest()
    raw = raw.copy()
    raw[-1] ^= 1
    assert fingerprint({"x": array}) != hashlib.sha256(raw.tobytes()).hexdigest()


def test_fingerprint_does_not_depend_on_memory_layout_or_byte_order():
    array = np.arange(6, dtype="<f4").reshape(2, 3)
    expected = fingerprint({"x": array})
    assert fingerprint({"x": np.asfortranarray(array)}) == expected
    assert fingerprint({"x": array.astype(">f4")}) == expected


def test_fingerprint_does_not_depend_on_sharding():
    """In a process of its own, because the number of devices is fixed once jax is in use."""
    code = """if True:
        import jax, numpy as np
        from jax.sharding import NamedSharding, PartitionSpec as P
        from lsm.run.result import fingerprint
        mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
        x = np.arange(64, dtype=np.float32).reshape(8, 8)
        for spec in (P("data"), P(None, "data"), P()):
            print(fingerprint({"x": jax.device_put(x, NamedSharding(mesh, spec))}))
    """
    path = os.pathsep.join(filter(None, sys.path))
    env = os.environ | {"JAX_NUM_CPU_DEVICES": "4", "JAX_PLATFORMS": "cpu", "PYTHONPATH": path}
    run = [sys.executable, "-c", code]
    lines = subprocess.run(run, env=env, capture_output=True, text=True, check=True).stdout.split()
    x = np.arange(64, dtype=np.float32)
    assert lines == [hashlib.sha256(x.tobytes()).hexdigest()] * 3


# ------------------------------------------------------------------- surroundings


def test_hardware_describes_the_devices_and_the_host():
    hardware = result.hardware()
    assert hardware["platform"] == jax.default_backend()
    assert hardware["device_count"] == jax.device_count()
    assert hardware["process_count"] == 1
    assert hardware["cpu"]
    assert 1 <= hardware["cores"] <= os.cpu_count()
    assert hardware["memory_gib"] > 0.1
    json.dumps(hardware)


def test_versions_are_those_of_the_imported_libraries():
    versions = result.versions()
    assert versions["python"] == ".".join(map(str, sys.version_info[:3]))
    assert (versions["jax"], versions["numpy"]) == (jax.__version__, np.__version__)
    assert set(versions) >= {"lsm", "jaxlib", "flax", "optax", "orbax-checkpoint"}


@pytest.fixture
def checkout(tmp_path):
    """A git repository with a copy of this module in lsm/; returns the folder lsm/."""
    if not shutil.which("git"):
        pytest.skip("git is not installed")
    source = tmp_path / "repository" / "lsm"
    source.mkdir(parents=True)
    shutil.copy(result.__file__, source / "result.py")
    git(source, "init", "--quiet")
    git(source, "add", "result.py")
    git(source, "commit", "--quiet", "--message=first")
    return source


def git(folder: Path, *command: str) -> str:
    author = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    command = ["git", "-C", str(folder), *author, *command]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_git_revision(checkout):
    commit = git(checkout, "rev-parse", "HEAD")
    assert git_revision(checkout) == commit
    (checkout.parent / "notes.txt").write_text("a file that changes no figure")
    assert git_revision(checkout) == commit
    (checkout / "new.py").write_text("")
    assert git_revision(checkout) == commit + "+dirty"


def test_git_revision_of_a_changed_file_is_dirty(checkout):
    with (checkout / "result.py").open("a") as file:
        file.write("# changed\n")
    assert git_revision(checkout) == git(checkout, "rev-parse", "HEAD") + "+dirty"


def test_git_revision_is_none_for_an_lsm_that_the_repository_does_not_hold(checkout, tmp_path):
    installed = checkout.parent / "venv" / "lsm"
    installed.mkdir(parents=True)
    shutil.copy(result.__file__, installed)
    assert git_revision(installed) is None
    outside = tmp_path / "elsewhere"
    outside.mkdir()
    assert git_revision(outside) is None


def test_git_revision_is_none_without_git(checkout, monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert git_revision(checkout) is None


def test_git_revision_inside_a_hook_of_another_repository(checkout, monkeypatch):
    monkeypatch.setenv("GIT_DIR", "/nowhere")
    revision = git_revision(checkout)
    monkeypatch.delenv("GIT_DIR")
    assert revision == git(checkout, "rev-parse", "HEAD")


# ------------------------------------------------------------------- result.json


def test_result_goes_to_disk_and_back(tmp_path):
    path = RESULT.save(tmp_path)
    assert path == tmp_path / "result.json"
    assert Result.load(tmp_path) == RESULT
    assert json.loads(path.read_text())["metrics"]["test"]["accuracy"] == 0.9178
    assert [file.name for file in tmp_path.iterdir()] == ["result.json"]


def test_figures_that_are_not_finite_are_null_in_the_file_and_nan_when_read(tmp_path):
    metrics = {"test": {"loss": np.float32("nan"), "norm": math.inf, "accuracy": np.float32(0.5)}}
    path = dataclasses.replace(RESULT, metrics=metrics).save(tmp_path)
    assert json.loads(path.read_text())["metrics"]["test"] == {
        "loss": None,
        "norm": None,
        "accuracy": 0.5,
    }
    read = Result.load(tmp_path).metrics["test"]
    assert math.isnan(read["loss"])
    assert math.isnan(read["norm"])


@pytest.mark.parametrize("content", [None, "", "[]", "{}", '{"metrics": {}, "colour": 1}'])
def test_what_is_not_a_result_is_told_in_one_line(tmp_path, content):
    if content is not None:
        (tmp_path / "result.json").write_text(content)
    with pytest.raises(TrainingError, match=r"result\.json: (cannot be read|not the result)") as e:
        Result.load(tmp_path)
    assert "\n" not in str(e.value)


def test_a_result_that_cannot_be_written_is_told_in_one_line(tmp_path):
    with pytest.raises(TrainingError, match=r"no_folder/result\.json: cannot be written: No such"):
        RESULT.save(tmp_path / "no_folder")
