"""A run's experiment, found again from its workdir alone."""

import json
import logging
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

import lsm
from lsm.config import flags
from lsm.config.origin import Origin, experiment_of, origin_of
from lsm.errors import ConfigError

CONFIG = """
import flax.linen as nn
from lsm import Data, Experiment, Train
from lsm.data import Digits
from lsm.optim import SGD
from lsm.tasks import Classification

class Own(nn.Module):
    width: int = 8
    @nn.compact
    def __call__(self, x, train=False):
        return nn.Dense(10)(nn.relu(nn.Dense(self.width)(x.reshape(len(x), -1))))

def get_config(arg=None):
    return Experiment(
        name="own", task=Classification(model=Own(int(arg or 8))), data=Data(source=Digits()),
        optimizer=SGD(learning_rate=0.1), train=Train(steps=3), writers=(),
    )
"""


@pytest.fixture
def run(tmp_path):
    """A config file, and the workdir of a run of it with an argument and an override."""
    file, workdir = tmp_path / "own_config.py", tmp_path / "run"
    file.write_text(CONFIG)
    spec, overrides = f"{file}:16", {"train.seed": "3"}
    lsm.fit(flags.load(spec, overrides), workdir, origin=Origin.of(spec, overrides))
    return file, workdir


def test_the_experiment_is_the_file_with_its_argument_and_overrides(run, caplog):
    _, workdir = run
    found = experiment_of(workdir)
    assert found.task.model.width == 16 and found.train.seed == 3
    pixels = np.zeros((2, 8, 8, 1), np.uint8)
    assert lsm.load(workdir).predict(pixels)["label"].shape == (2,)
    assert str(workdir.parent / "own_config.py") not in caplog.text


def test_a_file_that_has_changed_is_said(run, caplog):
    file, workdir = run
    file.write_text(CONFIG + "# a remark\n")
    with caplog.at_level(logging.WARNING):
        assert experiment_of(workdir).task.model.width == 16
    assert f"{file} has changed since the run began; the config" in caplog.text
    # Another config now, and the model that it defines may be another too.
    file.write_text(CONFIG.replace("learning_rate=0.1", "learning_rate=0.2"))
    with pytest.raises(ConfigError, match=r"Own cannot be .*has changed .*rate: 0.1 -> 0.2"):
        experiment_of(workdir)


def test_without_its_file_it_is_made_of_the_json(tmp_path, caplog):
    file, workdir = tmp_path / "digits_config.py", tmp_path / "run"
    file.write_text(pathlib.Path("experiments/configs/digits/cnn.py").read_text())
    overrides = {"train.steps": "1", "task.model.widths": "(4,)"}
    lsm.fit(flags.load(str(file), overrides), workdir, origin=Origin.of(str(file), overrides))
    file.unlink()
    with caplog.at_level(logging.WARNING):
        found = experiment_of(workdir)
    assert found.task.model.widths == (4,) and found.train.steps == 1
    assert f"{file} is not there any more. The experiment is made of {workdir}" in caplog.text


def test_what_cannot_be_found_again_is_one_line(run, tmp_path):
    file, workdir = run
    program = (
        "import lsm.config.origin as o, pathlib, sys; o.experiment_of(pathlib.Path(sys.argv[1]))"
    )
    file.unlink()
    done = subprocess.run(
        [sys.executable, "-c", program, workdir], capture_output=True, text=True, check=False
    )
    assert "is not there any more" in done.stderr.splitlines()[-1]
    (workdir / "origin.json").write_text('{"config": 3, "colour": 4}')
    with pytest.raises(ConfigError, match=r"origin.json is damaged .*colour"):
        origin_of(workdir)
    with pytest.raises(ConfigError, match=r"--workdir: no run in .*; train there first"):
        experiment_of(tmp_path)


@pytest.mark.slow
def test_a_run_from_python_keeps_where_its_data_is(tmp_path):
    lsm.fit(flags.load("experiments/configs/digits/cnn.py", {"train.steps": "1"}), tmp_path / "run")
    assert origin_of(tmp_path / "run") == Origin()
    assert experiment_of(tmp_path / "run").train.steps == 1


@pytest.mark.slow
def test_a_workdir_is_enough_for_what_comes_after_training(tmp_path):
    root = pathlib.Path.cwd()

    def command(*words, folder=tmp_path, module="experiments.digits"):
        done = subprocess.run(
            [sys.executable, "-m", module, *words],
            capture_output=True,
            text=True,
            cwd=folder,
            env=os.environ | {"PYTHONPATH": str(root)},
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()[-1]

    rows = "".join(f"{i / 9},{'ab'[i % 2]}\n" for i in range(32))
    for name in ("train", "test"):
        (tmp_path / f"data-{name}.csv").write_text("x,kind\n" + rows)
    (tmp_path / "own.py").write_text(
        CONFIG.replace(
            "Digits()", "Files('data-*.csv', {'x': ('x',), 'label': 'kind'}, ('label',))"
        )
        .replace("import Digits", "import Files")
        .replace("model=Own(int(arg or 8))", "model=Own(4), input='x'")
        .replace("Train(steps=3)", "Train(steps=3, batch_size=8)")
    )
    train = ("--config=own.py", "--workdir=run", "--config.train.steps=4")
    done = command(*train, module="lsm")
    assert command(*train) == done  # already
    assert command("--workdir=run", module="lsm") == done.replace(" run", f" {tmp_path / 'run'}")
    longer = ("--config.train.steps=6", "--allow_config_change")
    assert "completed at step 6" in command("--workdir=run", *longer, module="lsm")
    assert origin_of(tmp_path / "run").overrides == {"train.steps": "6"}
    figures = json.loads((tmp_path / "run/result.json").read_text())["metrics"]["test"]
    # From another folder too: relative paths are those of where the run began.
    (elsewhere := tmp_path / "elsewhere").mkdir()
    (elsewhere / "new.csv").write_text("x\n1\n2\n")
    for folder, workdir in ((tmp_path, "run"), (elsewhere, "../run")):
        evaluated = command("--mode=eval", f"--workdir={workdir}", folder=folder)
        assert f"test accuracy {figures['accuracy']:.4f}" in evaluated
    asked = ("--mode=predict", "--workdir=../run", "--input=new.csv", "--output=out.csv")
    assert command(*asked, folder=elsewhere).endswith("elsewhere/out.csv")
    assert len((elsewhere / "out.csv").read_text().splitlines()) == 3
    assert command("--mode=table", "--workdir=run").startswith("total")
    assert command("--mode=predict", "--workdir=run").endswith("test.jsonl")
