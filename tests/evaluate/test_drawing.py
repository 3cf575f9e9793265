"""The pictures of an evaluation: what they hold, and that they are of the whole split."""

import numpy as np
import pytest

from lsm import evaluate
from lsm.data import images
from lsm.errors import DataError
from lsm.evaluate import Confusion, Mistakes


def some(count=50, channels=3):
    rng = np.random.default_rng(0)
    probability = rng.dirichlet(np.ones(3), count).astype(np.float32)
    image = rng.integers(0, 256, (count, 200, 9, channels), np.uint8)
    label = rng.integers(0, 3, count).astype(np.int32)
    predictions = {"probability": probability, "label": probability.argmax(1)}
    return predictions, {"image": image, "label": label}


def seen(metric, predictions, batch, size):
    accumulator = metric.init()
    for start in range(0, len(batch["label"]), size):
        part = ({k: x[start : start + size] for k, x in of.items()} for of in (predictions, batch))
        accumulator = metric.update(accumulator, *part)
    return accumulator


def test_the_most_confident_mistakes_are_kept_whatever_the_batches():
    predictions, batch = some()
    wrong = np.flatnonzero(predictions["label"] != batch["label"])
    sure = predictions["probability"].max(1)
    expected = wrong[np.argsort(-sure[wrong])][:5]
    for size in (1, 7, 50):
        kept = seen(Mistakes(count=5), predictions, batch, size)
        assert [one[0] for one in kept] == sure[expected].tolist()
        assert [one[1:3] for one in kept] == [
            (batch["label"][i], predictions["label"][i]) for i in expected
        ]
        for one, i in zip(kept, expected, strict=True):  # 200 pixels become 100
            np.testing.assert_array_equal(one[3], batch["image"][i][::2, ::2])


def test_pictures_are_drawn_of_any_channels_of_floats_and_of_nothing():
    names = ("$a", "b", "c")  # matplotlib would read a formula
    confusion, mistakes = Confusion(classes=names), Mistakes(count=2).told(names)
    kept = []
    for channels, dtype in ((1, np.uint8), (3, np.float32)):
        predictions, batch = some(6, channels)
        batch["image"] = batch["image"].astype(dtype)
        kept += seen(mistakes, predictions, batch, 6)
    seen_all = (seen(confusion, predictions, batch, 6), tuple(kept))
    for accumulators in (seen_all, evaluate.init((confusion, mistakes))):
        drawn = evaluate.pictures((confusion, mistakes), accumulators)
        assert drawn.keys() == {"mistakes.png", "confusion.png"}
        assert all(np.ptp(images.decode(picture)) > 0 for picture in drawn.values())


def test_what_is_no_picture_is_one_line():
    predictions, batch = some(6)
    with pytest.raises(DataError, match=r"^Mistakes\.image: \(6, 5, 4, 7\) given, with"):
        seen(Mistakes(), predictions, batch | {"image": np.zeros((6, 5, 4, 7))}, 6)
