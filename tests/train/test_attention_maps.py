"""Pictures of attention: which weights are drawn, and under which names."""

import numpy as np
import pytest

import lsm
from lsm.errors import ConfigError
from lsm.train import attention
from tests.tasks.test_function import experiment as another
from tests.tasks.test_sequence_to_sequence import MODEL, experiment, texts


def test_the_pictures_show_what_the_search_looked_at(tmp_path, monkeypatch):
    lsm.fit(experiment(), tmp_path / "run")
    trained = lsm.load(tmp_path / "run", experiment=experiment())
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
        read = np.array([[2, *found["tokens"][row, : t - 1]]])
        one = lsm.models.Sequences(batch["source"][row : row + 1, :s], np.array([s]))
        maps = MODEL.apply({"params": trained.params}, (one, read), method="attention")
        np.testing.assert_allclose(weights, maps[0].mean(0), atol=1e-5)


def test_another_task_is_told(tmp_path):
    lsm.fit(another(), tmp_path)
    with pytest.raises(ConfigError, match="the task is Function; SequenceToSequence is needed"):
        attention.attention_maps(lsm.load(tmp_path, experiment=another()), {}, tmp_path)
