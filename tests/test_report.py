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

from lsm import report
from lsm.errors import TrainingError

RESULT = report.Result(
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
    assert report.fingerprint(params) == hashlib.sha256(content).hexdigest()


def test_paths_are_sorted_as_whole_strings_not_key_by_key():
    # "a-b/x" < "a/x" as strings ("-" is before "/"), though the key "a" is before "a-b".
    params = {"a": {"x": np.float32(1)}, "a-b": {"x": np.float32(2)}}
    content = np.float32(2).tobytes() + np.float32(1).tobytes()
    assert report.fingerprint(params) == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8", "float8_e4m3fn"])
def test_fingerprint_of_every_dtype_tells_one_bit(dtype):
    array = jnp.arange(8).astype(dtype)
    raw = np.asarray(array).view(np.uint8)
    assert report.fingerprint({"x": array}) == hashlib.sha256(raw.tobytes()).hexdigest()
    raw = raw.copy()
    raw[-1] ^= 1
    assert report.fingerprint({"x": array}) != hashlib.sha256(raw.tobytes()).hexdigest()


def test_fingerprint_does_not_depend_on_memory_layout_or_byte_order():
    array = np.arange(6, dtype="<f4").reshape(2, 3)
    expected = report.fingerprint({"x": array})
    assert report.fingerprint({"x": np.asfortranarray(array)}) == expected
    assert report.fingerprint({"x": array.astype(">f4")}) == expected


def test_fingerprint_does_not_depend_on_sharding():
    """In a process of its own, because the number of devices is fixed once jax is in use."""
    code = """if True:
        import jax, numpy as np
        from jax.sharding import NamedSharding, PartitionSpec as P
        from lsm import report
        mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
        x = np.arange(64, dtype=np.float32).reshape(8, 8)
        for spec in (P("data"), P(None, "data"), P()):
            print(report.fingerprint({"x": jax.device_put(x, NamedSharding(mesh, spec))}))
    """
    path = os.pathsep.join(filter(None, sys.path))
    env = os.environ | {"JAX_NUM_CPU_DEVICES": "4", "JAX_PLATFORMS": "cpu", "PYTHONPATH": path}
    run = [sys.executable, "-c", code]
    lines = subprocess.run(run, env=env, capture_output=True, text=True, check=True).stdout.split()
    x = np.arange(64, dtype=np.float32)
    assert lines == [hashlib.sha256(x.tobytes()).hexdigest()] * 3


# ------------------------------------------------------------------- surroundings


def test_hardware_describes_the_devices_and_the_host():
    hardware = report.hardware()
    assert hardware["platform"] == jax.default_backend()
    assert hardware["device_count"] == jax.device_count()
    assert hardware["process_count"] == 1
    assert hardware["cpu"]
    assert 1 <= hardware["cores"] <= os.cpu_count()
    assert hardware["memory_gib"] > 0.1
    json.dumps(hardware)


def test_versions_are_those_of_the_imported_libraries():
    versions = report.versions()
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
    shutil.copy(report.__file__, source / "report.py")
    git(source, "init", "--quiet")
    git(source, "add", "report.py")
    git(source, "commit", "--quiet", "--message=first")
    return source


def git(folder: Path, *command: str) -> str:
    author = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    command = ["git", "-C", str(folder), *author, *command]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_git_revision(checkout):
    commit = git(checkout, "rev-parse", "HEAD")
    assert report.git_revision(checkout) == commit
    (checkout.parent / "notes.txt").write_text("a file that changes no figure")
    assert report.git_revision(checkout) == commit
    (checkout / "new.py").write_text("")
    assert report.git_revision(checkout) == commit + "+dirty"


def test_git_revision_of_a_changed_file_is_dirty(checkout):
    with (checkout / "report.py").open("a") as file:
        file.write("# changed\n")
    assert report.git_revision(checkout) == git(checkout, "rev-parse", "HEAD") + "+dirty"


def test_git_revision_is_none_for_an_lsm_that_the_repository_does_not_hold(checkout, tmp_path):
    installed = checkout.parent / "venv" / "lsm"
    installed.mkdir(parents=True)
    shutil.copy(report.__file__, installed)
    assert report.git_revision(installed) is None
    outside = tmp_path / "elsewhere"
    outside.mkdir()
    assert report.git_revision(outside) is None


def test_git_revision_is_none_without_git(checkout, monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert report.git_revision(checkout) is None


def test_git_revision_inside_a_hook_of_another_repository(checkout, monkeypatch):
    monkeypatch.setenv("GIT_DIR", "/nowhere")
    revision = report.git_revision(checkout)
    monkeypatch.delenv("GIT_DIR")
    assert revision == git(checkout, "rev-parse", "HEAD")


# ------------------------------------------------------------------- result.json


def test_result_goes_to_disk_and_back(tmp_path):
    path = RESULT.save(tmp_path)
    assert path == tmp_path / "result.json"
    assert report.Result.load(tmp_path) == RESULT
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
    read = report.Result.load(tmp_path).metrics["test"]
    assert math.isnan(read["loss"])
    assert math.isnan(read["norm"])


@pytest.mark.parametrize("content", [None, "", "[]", "{}", '{"metrics": {}, "colour": 1}'])
def test_what_is_not_a_result_is_told_in_one_line(tmp_path, content):
    if content is not None:
        (tmp_path / "result.json").write_text(content)
    with pytest.raises(TrainingError, match=r"result\.json: (cannot be read|not the result)") as e:
        report.Result.load(tmp_path)
    assert "\n" not in str(e.value)


def test_a_result_that_cannot_be_written_is_told_in_one_line(tmp_path):
    with pytest.raises(TrainingError, match=r"no_folder/result\.json: cannot be written: No such"):
        RESULT.save(tmp_path / "no_folder")


# ------------------------------------------------------------------- curves


def write_rows(workdir, rows):
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def training_rows(count):
    return [{"step": s, "split": "train", "loss": 1 / s, "accuracy": 0.5} for s in range(1, count)]


def drawn_axes(monkeypatch, workdir):
    """Draws the curves; returns the panels of the figure and the size of the picture."""
    from matplotlib.figure import Figure
    from PIL import Image

    figures, savefig = [], Figure.savefig

    def keep(figure, *args, **kwargs):
        figures.append(figure)
        savefig(figure, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", keep)
    path = report.plot_curves(workdir)
    assert path == workdir / "curves.png"
    with Image.open(path) as picture:
        picture.load()
        return {axes.get_title(): axes for axes in figures[0].axes}, picture.size


def test_curves_of_loss_and_accuracy_over_all_splits(tmp_path, monkeypatch):
    rows = training_rows(20)
    rows += [{"step": s, "split": "validation", "loss": 2.0, "accuracy": 0.4} for s in (10, 19)]
    rows += [{"step": 19, "split": "test", "loss": None, "accuracy": 0.45}]
    write_rows(tmp_path, rows)
    axes, (width, height) = drawn_axes(monkeypatch, tmp_path)
    assert list(axes) == ["loss", "accuracy"]
    assert width > 1.5 * height
    legend = [text.get_text() for text in axes["accuracy"].get_legend().get_texts()]
    assert legend == ["train 50.00 %", "validation 40.00 %", "test 45.00 %"]
    train, validation, test = axes["loss"].get_lines()
    np.testing.assert_allclose(train.get_xdata(), np.arange(1, 20))
    np.testing.assert_allclose(train.get_ydata(), 1 / np.arange(1, 20))
    np.testing.assert_allclose(validation.get_xdata(), [10, 19])
    np.testing.assert_allclose(test.get_ydata(), [np.nan])


def test_a_panel_for_what_evaluations_report_and_none_for_speed(tmp_path, monkeypatch):
    rows = [{"step": 1, "split": "train", "loss": 1.0, "examples_per_sec": 9.0, "lr": 0.1}]
    rows += [{"step": 1, "split": "validation", **{f"figure_{n}": 1.0 for n in range(9)}}]
    write_rows(tmp_path, rows)
    axes, _ = drawn_axes(monkeypatch, tmp_path)
    assert list(axes) == ["loss", *(f"figure {n}" for n in range(5))]


def test_the_row_of_the_goodput_is_not_drawn(tmp_path, monkeypatch):
    rows = [{"step": 1, "split": "train", "loss": 1.0}]
    write_rows(tmp_path, [*rows, {"step": 1, "split": "goodput", "wall_time": 3.0}])
    axes, _ = drawn_axes(monkeypatch, tmp_path)
    assert list(axes) == ["loss"]


def test_a_dense_training_curve_is_smoothed_by_a_centred_mean(tmp_path, monkeypatch):
    rows = [{"step": s, "split": "train", "loss": float(s + s % 2)} for s in range(1, 401)]
    write_rows(tmp_path, rows)
    axes, _ = drawn_axes(monkeypatch, tmp_path)
    raw, smooth = axes["loss"].get_lines()
    assert len(raw.get_xdata()) == 400
    # Means of 10 = 400 // 40 values s + s % 2: on average 0.5 above the middle of their steps,
    # which is half a step after the step they are drawn at.
    np.testing.assert_allclose(smooth.get_ydata(), smooth.get_xdata() + 1.0)


@pytest.mark.parametrize(("last", "scale"), [(0.5, "linear"), (0.01, "log"), (-1.0, "linear")])
def test_a_logarithmic_scale_only_where_it_helps(tmp_path, monkeypatch, last, scale):
    write_rows(
        tmp_path, [{"step": s, "split": "train", "loss": x} for s, x in [(1, 2.0), (2, last)]]
    )
    axes, _ = drawn_axes(monkeypatch, tmp_path)
    assert axes["loss"].get_yscale() == scale


def test_drawing_leaves_pyplot_alone(tmp_path):
    write_rows(tmp_path, training_rows(3))
    code = "import sys; from lsm.report import plot_curves; plot_curves(sys.argv[1]); "
    code += "print('matplotlib.pyplot' in sys.modules)"
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "MPLBACKEND": "agg"}
    command = [sys.executable, "-c", code, str(tmp_path)]
    out = subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout
    assert out.strip() == "False"


@pytest.mark.parametrize("rows", [None, [], [{"step": 1, "split": "train", "lr": 0.1}]])
def test_no_curves_to_draw_is_one_line(tmp_path, rows):
    if rows is not None:
        write_rows(tmp_path, rows)
    with pytest.raises(TrainingError, match=r"metrics\.jsonl: no row has a loss"):
        report.plot_curves(tmp_path)
