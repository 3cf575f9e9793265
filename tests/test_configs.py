"""Every config behind a result row: cut down to six steps, on eight devices, resumed to the bit."""

import dataclasses
import pathlib
import shutil

import jax
import numpy as np
import pytest

import lsm
from lsm import Callback, Checkpoint, Evaluation, Mesh, Start, StopTraining
from lsm.config import flags
from lsm.data import Texts

ROOT = pathlib.Path(__file__).parents[1]
LEFT_OUT = (
    "folder_simple_cnn",  # gigabytes for each of its checkpoints; its shards have a test
    *("linear_line", "linear_line_best", "linear_slope", "linear_slope_best"),  # of five examples
)


def named():
    from benchmarks.cases import CASES

    return sorted(set(CASES) - set(LEFT_OUT))


@pytest.fixture(scope="module")
def data_dir(tfds_dir, tmp_path_factory):
    """The prepared datasets, and the folders of pictures beside them."""
    folder = tmp_path_factory.mktemp("data")
    for found in [*tfds_dir.iterdir(), *tfds_dir.parent.glob("imagefolder/*"), ROOT / "runs"]:
        (folder / found.name).symlink_to(found)
    return folder


def stop(moment):
    if moment.step >= 6:
        raise StopTraining


def short(name, data_dir):
    """The experiment of a case that stops after six steps, without its evaluations."""
    from benchmarks.cases import CASES, CONFIGS

    made = flags.load(str(ROOT / CONFIGS / CASES[name].config))
    # What another run or a package gives is not here; its own computations are.
    start = None if isinstance(made.start, Start) else made.start
    folder = isinstance(made.data.source, Texts) and getattr(made.data.source.vocabulary, "path", 0)
    if folder and not (data_dir / folder).exists():
        pytest.skip(f"needs {folder}; the config says how to get it")
    return dataclasses.replace(
        made,
        data=dataclasses.replace(made.data, validation=None, test=None),
        train=dataclasses.replace(made.train, batch_size=32, log_every=3),
        mesh=Mesh(data=4, fsdp=2),
        evaluation=Evaluation(),
        checkpoint=Checkpoint(every=3),
        callbacks=(Callback(after_row=stop),),
        start=start,
        writers=(),
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", named())
def test_a_config_runs_on_eight_devices_and_resumes_bitwise(name, data_dir, tmp_path):
    made, whole, half = short(name, data_dir), tmp_path / "whole", tmp_path / "half"
    lsm.fit(made, whole, data_dir=data_dir)
    shutil.copytree(whole, half)
    shutil.rmtree(half / "checkpoints/6")
    (half / "result.json").unlink()
    assert lsm.fit(made, half, data_dir=data_dir).step == 6
    runs = [lsm.load(path, experiment=made, step="last") for path in (whole, half)]
    first, second = ((run.params, run.model_state) for run in runs)
    jax.tree.map(np.testing.assert_array_equal, first, second)
    shutil.rmtree(whole)
    shutil.rmtree(half)
