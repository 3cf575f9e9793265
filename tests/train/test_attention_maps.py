"""Pictures of attention: which weights are drawn, and under which names."""

import dataclasses

import jax
import numpy as np
import pytest

import lsm
from lsm import Data, Experiment, Mesh, Train
from lsm.data import Arrays
from lsm.errors import ConfigError
from lsm.mesh import make_mesh
from lsm.optim import SGD
from lsm.train import attention
from lsm.train.trained import Trained
from tests.tasks.test_function import TASK as ANOTHER
from tests.tasks.test_sequence_to_sequence import MODEL, TASK, parameters, texts


@pytest.fixture
def trained():
    mesh = make_mesh(Mesh(data=1), jax.devices()[:1])
    experiment = Experiment(
        name="copies",
        task=TASK,
        data=Data(source=Arrays(train=texts(4)), test=None),
        optimizer=SGD(learning_rate=0.01),
        train=Train(steps=1, batch_size=4),
    )
    return Trained(experiment, 0, parameters(), {}, mesh)


def test_the_pictures_show_what_the_search_looked_at(trained, tmp_path, monkeypatch):
    batch, drawn = texts(3, seed=5), []

    def draw(*args):
        drawn.append(args)
        return real(*args)

    real = attention.draw_attention
    monkeypatch.setattr(attention, "draw_attention", draw)
    given = {name: batch[name] for name in ("source", "source_length")}
    paths = attention.attention_maps(trained, given, tmp_path)
    assert [path.name for path in paths] == [f"attention_{k}.png" for k in (1, 2, 3)]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)
    found = trained.predict(given)
    for row, (weights, source, target) in enumerate(drawn):
        s, t = batch["source_length"][row], found["length"][row]
        assert source == [str(k) for k in batch["source"][row, :s]]
        assert target == [str(k) for k in found["tokens"][row, :t]]
        np.testing.assert_allclose(weights.sum(1), 1, atol=1e-5)
    # Teacher forcing on what was found, alone and without padding.
    row = int(np.argmin(batch["source_length"]))
    s, t = batch["source_length"][row], found["length"][row]
    read = np.array([[2, *found["tokens"][row, : t - 1]]])
    one = lsm.models.Sequences(batch["source"][row : row + 1, :s], np.array([s]))
    weigh = jax.jit(lambda *given: MODEL.apply(*given, method="attention"))
    maps = weigh({"params": trained.params}, (one, read))
    np.testing.assert_allclose(drawn[row][0], maps[0].mean(0), atol=1e-5)


def test_another_task_is_told(trained, tmp_path):
    experiment = dataclasses.replace(trained.experiment, task=ANOTHER)
    other = dataclasses.replace(trained, experiment=experiment)
    with pytest.raises(ConfigError, match="the task is Function; SequenceToSequence is needed"):
        attention.attention_maps(other, {}, tmp_path)
