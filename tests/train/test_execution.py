"""Several steps in one dispatch: the same bits, rows and checkpoints as one by one."""

import dataclasses
import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest

import lsm
from lsm import Data, Evaluation, Experiment, Mesh, Train
from lsm.config import schema
from lsm.data import ArrayDataset, Arrays, CharWindows, Digits, Poisson, RandomCrop
from lsm.errors import ConfigError, TrainingError
from lsm.mesh import Fsdp, Rule, place
from lsm.models import CNN, MLP
from lsm.optim import Adam, Cosine, WarmUp
from lsm.tasks import Classification
from lsm.train.execution import compile_ahead, execution
from lsm.train.throughput import Throughput
from lsm.train.trainer import Trainer
from lsm.writers import Jsonl


def experiment(steps_per_execution="auto", steps=31, **changes):
    """Pauses everywhere: rows at 7, 14, ..., evaluation at 10, 20, ..., checkpoints at 15 and 30."""
    train = Train(steps=steps, batch_size=64, log_every=7, steps_per_execution=steps_per_execution)
    fields = {
        "name": "small",
        "task": Classification(model=MLP(widths=(32,), dropout=0.1)),
        "data": Data(source=Digits(), train="train[:80%]", validation="train[80%:]"),
        "optimizer": Adam(learning_rate=3e-3, schedule=WarmUp("20%", then=Cosine())),
        "train": train,
        "evaluation": Evaluation(every=10, monitor="accuracy"),
        "checkpoint": lsm.Checkpoint(every=15, keep=9),
        "writers": (Jsonl(),),
    }
    return Experiment(**fields | changes)


def story(config, workdir):
    """Trains; returns the digest of the parameters, all figures but speeds, and what is saved."""
    result = lsm.fit(config, workdir)
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    kept = ("step", "split", "loss", "accuracy", "learning_rate")
    figures = [{k: v for k, v in row.items() if k in kept} for row in rows]
    saved = sorted(path.name for path in (workdir / "checkpoints").iterdir())
    return result.fingerprint, figures, saved


CONVOLVES = Classification(model=CNN(widths=(4, 8), convs=1))
FSDP = Mesh(data=2, fsdp=4, rules=(Rule(".*", Fsdp(min_size=1)),))


def assert_the_same_however_many(numbers, changes, tmp_path):
    one, *others = (
        story(experiment(most, **changes), tmp_path / str(most)) for most in (1, *numbers)
    )
    pauses = [row["step"] for row in one[1] if row["split"] == "train"]
    assert pauses == [7, 10, 14, 15, 20, 21, 28, 30, 31]
    for other in others:
        assert other == one


@pytest.mark.parametrize("ahead", [True, False])
def test_the_first_calls_find_what_was_compiled_ahead(ahead, caplog):
    trainer = Trainer.of(experiment(1, mesh=FSDP), None)
    if ahead:
        compile_ahead(trainer, Throughput.of(trainer))
    batch = place(trainer.train.batch_at(0), trainer.program.batch)
    with jax.log_compiles():
        trainer.program.step(trainer.program.init(), batch)
    assert ("Finished XLA compilation" in caplog.text) is not ahead


def test_the_same_to_the_bit_as_one_by_one(tmp_path):
    assert_the_same_however_many(["auto"], {}, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"mesh": FSDP},
        {"data": Data(source=Digits(), augment=(RandomCrop(padding=1),))},
        {"data": Data(source=Digits(), sampling=Poisson(expected=20))},
    ],
    ids=["fsdp", "augmented", "weights"],
)
def test_the_same_to_the_bit_however_many(changes, tmp_path):
    assert_the_same_however_many([3, 64], changes, tmp_path)


SHORT = Throughput(flops=1e7, devices=1, peak=None)


@pytest.mark.parametrize(
    ("throughput", "changes", "most"),
    [
        (SHORT, {}, 32),
        (SHORT, {"steps": 20}, 20),
        (Throughput(1e8, 1, None), {}, 5),  # of 2 ms each
        (Throughput(1e8, 8, None), {}, 32),
        (Throughput(1e9, 1, None), {}, 1),
        (Throughput(1e12, 1, 1e15), {}, 3),
        (SHORT, {"task": CONVOLVES}, 1),  # on a CPU, where this is
        (SHORT, {"mesh": Mesh(data=8, offload=True)}, 1),
        (SHORT, {"steps_per_execution": 1}, 1),
        (Throughput(1e12, 1, None), {"steps_per_execution": 7}, 7),
    ],
)
def test_auto_takes_what_fills_ten_milliseconds(throughput, changes, most):
    config = experiment(**{"steps": 100} | changes)
    assert execution(Trainer.of(config, None), throughput).most == most


def test_a_convolution_on_a_cpu_is_told(caplog):
    assert execution(Trainer.of(experiment(8, task=CONVOLVES), None), SHORT).most == 1
    assert "train.steps_per_execution: 1 instead of 8; in a loop on a CPU" in caplog.text


def test_what_is_in_memory_is_read_on_the_devices(monkeypatch):
    rng = np.random.default_rng(0)
    columns = {"image": rng.integers(0, 256, (50, 3, 3), np.uint8), "label": np.arange(50)}
    text = rng.integers(0, 9, 40, np.int32)
    for dataset in (ArrayDataset(columns), CharWindows(text, 6, tuple("abcdefghi"))):
        held, read = dataset.resident()
        indices = rng.integers(0, len(dataset), 20).astype(np.int32)
        found, wanted = read(held, indices), dataset.take(indices)
        assert found.keys() == wanted.keys()
        for name, x in wanted.items():
            np.testing.assert_array_equal(found[name], x)
    assert Digits().open("train").rows(3, 9).resident() is not None

    class Inverted(ArrayDataset):
        def take(self, indices):
            return super().take(indices) | {"image": 255 - self.columns["image"][indices]}

    own = Inverted(columns)
    assert own.resident() is None and own.rows(1, 9).resident() is None, "they are not its columns"
    np.testing.assert_array_equal(
        own.rows(1, 9).take(np.arange(2))["image"], 255 - columns["image"][1:3]
    )
    trainer = Trainer.of(experiment(), None)
    assert execution(trainer, SHORT).prepare(range(1, 3)).keys() == {"examples"}
    monkeypatch.setattr("lsm.train.execution._FITS", 1000)
    prepared = execution(trainer, SHORT).prepare(range(2, 4))
    assert prepared["image"].shape == (31, 64, 8, 8, 1)
    np.testing.assert_array_equal(prepared["image"][1], trainer.train.batch_at(2)["image"])


@pytest.mark.slow
def test_a_run_goes_on_with_another_number(tmp_path, monkeypatch):
    whole = story(experiment(1), tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr("lsm.train.interrupt.Interrupt.stops_after", lambda self, step: step >= 12)
        assert lsm.fit(experiment(4), tmp_path / "parts").stopped == "interrupted"
    assert "14" in {path.name for path in (tmp_path / "parts/checkpoints").iterdir()}
    assert lsm.fit(experiment(64), tmp_path / "parts").fingerprint == whole[0]


def test_a_bad_loss_is_told_with_its_own_step(tmp_path):
    columns = {"image": np.ones((64, 4, 4, 1), np.float32), "label": np.zeros(64, np.int32)}
    columns["image"][5, 2, 2] = np.nan
    config = experiment(
        64, data=Data(source=Arrays(columns), test=None), train=None, evaluation=Evaluation()
    )
    train = Train(steps=30, batch_size=8, log_every=30, steps_per_execution=64)
    config = dataclasses.replace(config, train=train)
    batches = Trainer.of(config, None).train
    step = next(i for i in range(30) if not np.isfinite(batches.batch_at(i)["image"]).all())
    with pytest.raises(
        TrainingError, match=rf"^step {step + 1}: the loss is not finite; its batch"
    ):
        lsm.fit(config, tmp_path)


@pytest.mark.parametrize("given", [0, -1, 5000, 2.5, "always"])
def test_a_number_that_cannot_be_is_one_line(given):
    with pytest.raises(ConfigError, match="steps_per_execution: .* given(; allowed: |, which is )"):
        schema.check(experiment(given))


PROGRAM = """
import sys
import lsm
from experiments.configs.digits import cnn
from lsm import Data, Train
from lsm.data import Arrays
from lsm.models.families import gpt2
from lsm.tasks import LanguageModelling
import dataclasses, numpy as np
tokens = np.random.default_rng(0).integers(0, 65, (500, 33), np.int32)
model = gpt2(vocabulary=65, context=32, width=64, heads=4, layers=2, dropout=0.1)
config = dataclasses.replace(
    cnn.get_config(),
    task=LanguageModelling(model=model),
    data=Data(source=Arrays({"tokens": tokens}), test=None),
    train=Train(steps=40, batch_size=8, steps_per_execution=int(sys.argv[1])),
    evaluation=lsm.Evaluation(),
)
print(lsm.fit(config, sys.argv[2]).fingerprint)
"""


@pytest.mark.slow
def test_the_same_bits_with_all_optimisations(tmp_path):
    """As users run it: other tests compile without LLVM's optimisations."""
    environment = os.environ | {"XLA_FLAGS": "", "JAX_NUM_CPU_DEVICES": "1"}
    digests = set()
    for most in ("1", "16"):
        command = [sys.executable, "-c", PROGRAM, most, str(tmp_path / most)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        digests.add(done.stdout.splitlines()[-1])
    assert len(digests) == 1
