"""Entities, read strictly: counted by hand, and as seqeval does where it is installed."""

import math

import numpy as np
import pytest

from lsm.errors import ConfigError, DataError
from lsm.evaluate import EntityF1

TAGS = ("O", "B-PER", "I-PER", "B-ORG", "I-ORG")


def figures(labels, said, metric=EntityF1(tags=TAGS)):
    batches = {"label": np.atleast_2d(labels)}, {"label": np.atleast_2d(said)}
    return metric.compute(metric.update(metric.init(), batches[1], batches[0]))


def test_by_hand():
    # B-PER I-PER, B-ORG, B-PER: one found whole, one cut short, one missed; a stray I-ORG is none.
    labels = [1, 2, 0, 3, 0, 0, 1, 0]
    said = [1, 2, 0, 3, 4, 0, 0, 4]
    assert figures(labels, said) == pytest.approx(
        {"entity_f1": 2 / 5, "entity_precision": 1 / 2, "entity_recall": 1 / 3}
    )


def test_what_has_no_label_is_passed_over():
    # [CLS], a word of two tokens, a word: only first tokens are labelled.
    labels, said = [-1, 1, -1, 2, -1], [0, 1, 0, 2, 4]
    assert figures(labels, said)["entity_f1"] == 1


def test_weights():
    """Tokens of weight 0 are passed over; an example's is that of its entities."""
    metric, labels, said = (
        EntityF1(tags=TAGS),
        np.array([[1, 3], [1, 0]]),
        np.array([[1, 0], [0, 3]]),
    )

    def weighed(weight):
        batch = {"label": labels, "weight": np.float32(weight)}
        return metric.compute(metric.update(metric.init(), {"label": said}, batch))

    assert weighed([[1, 0], [0, 0]])["entity_f1"] == 1
    # One of two entities is found in the first, one of one missed and one made up in the second.
    assert weighed([1.0, 0.5]) == pytest.approx(
        {"entity_f1": 2 / (1.5 + 2.5), "entity_precision": 1 / 1.5, "entity_recall": 1 / 2.5}
    )
    with pytest.raises(DataError, match="EntityF1: weights of tokens are given that are neither"):
        weighed([[1, 0.5], [0, 0]])


def test_nothing_is_nan():
    assert all(math.isnan(x) for x in figures([0, 0], [0, 0]).values())


def test_as_seqeval():
    metrics = pytest.importorskip("seqeval.metrics", reason="seqeval is the reference")
    from seqeval.scheme import IOB2

    random = np.random.default_rng(0)
    labels, said = random.integers(0, 5, (2, 30, 12))
    said = np.where(random.random(said.shape) < 0.6, labels, said)
    rows = [[[TAGS[k] for k in row] for row in x] for x in (labels, said)]
    found = figures(labels, said)
    for name in ("f1", "precision", "recall"):
        score = getattr(metrics, f"{name}_score")(*rows, mode="strict", scheme=IOB2)
        assert found[f"entity_{name}"] == pytest.approx(score)


def test_tags_of_another_scheme():
    with pytest.raises(ConfigError, match=r"EntityF1\.tags: \['S-PER'\] given"):
        EntityF1(tags=("O", "S-PER"))


def test_padding_that_is_predicted_as_none_is_passed_over():
    # Padded by 0, which is a tag where the tags begin with one.
    metric = EntityF1(tags=("B-PER", "O"))
    assert figures([0, 1, 0, 0], [0, 1, -1, -1], metric)["entity_recall"] == 1
