"""Runs with augmentation of every kind, whole."""

import dataclasses

import jax
import numpy as np
import pytest
from PIL import Image

import lsm
from lsm.config import Checkpoint, Evaluation, Train
from lsm.data import (
    AlternatingFlip,
    Arrays,
    CenterCrop,
    ColorJitter,
    Data,
    Digits,
    RandAugment,
    RandomCrop,
    RandomErasing,
    RandomResizedCrop,
)
from lsm.models import MLP
from lsm.optim import Adam
from lsm.tasks import Classification, CutMix, Mixup
from lsm.train import load, predict_run

MIXED = Classification(model=MLP(widths=(16,)), mix=(Mixup(), CutMix()), label_smoothing=0.1)


def experiment(steps, **changes):
    augment = (RandomCrop(1), AlternatingFlip(), RandAugment(), RandomErasing())
    fields = {
        "name": "augmented",
        "task": MIXED,
        "data": Data(source=Digits(), augment=augment, test=None),
        "optimizer": Adam(learning_rate=1e-3),
        "train": Train(steps=steps, batch_size=64, log_every=2),
        "checkpoint": Checkpoint(every=3),
        "writers": (),
    }
    return lsm.Experiment(**fields | changes)


@pytest.mark.slow
def test_a_run_goes_on_to_the_bit(tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    lsm.fit(experiment(6), whole)
    lsm.fit(experiment(3), parts)
    lsm.fit(experiment(6), parts, allow_config_change=True)
    straight, resumed = (load(run, step="last").params for run in (whole, parts))
    jax.tree.map(np.testing.assert_array_equal, straight, resumed)


@pytest.mark.slow
def test_pictures_of_any_size_train_evaluate_and_are_predicted_alike(tmp_path):
    rng = np.random.default_rng(0)
    pictures = np.empty(40, object)
    for row in range(40):
        height, width = rng.integers(9, 20, 2)
        pictures[row] = rng.integers(0, 256, (height, width, 3)).astype(np.uint8)
    columns = {"image": pictures, "label": np.arange(40, dtype=np.int32) % 10}
    data = Data(
        source=Arrays(train=columns, test=columns),
        augment=(RandomResizedCrop(8), ColorJitter(0.4, 0.4, 0.4, 0.1)),
        evaluate=(CenterCrop(8, resize=9),),
    )
    train = Train(steps=3, batch_size=16)
    config = experiment(3, data=data, train=train, evaluation=Evaluation(monitor="accuracy"))
    assert lsm.fit(config, tmp_path / "run").metrics["test"]["accuracy"] >= 0
    _, files = predict_run(config, tmp_path / "run")
    first = lsm.files.parsed_json(files["test"].read_text().splitlines()[0])
    Image.fromarray(pictures[0]).save(tmp_path / "0.png")
    found = load(tmp_path / "run", experiment=config).predict(tmp_path / "0.png")
    np.testing.assert_allclose(found["probability"][0], first["probability"], rtol=1e-5)
    with pytest.raises(
        lsm.errors.DataError, match="task.input: the examples are arrays of different shapes"
    ):
        plain = dataclasses.replace(data, evaluate=())
        lsm.fit(dataclasses.replace(config, data=plain), tmp_path / "other")
