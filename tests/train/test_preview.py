import dataclasses
import io

import numpy as np
import pytest
from PIL import Image

import lsm
from lsm.config import Train
from lsm.data import AlternatingFlip, Data, Digits, RandomCrop, TrainBatches
from lsm.errors import ConfigError
from lsm.models import MLP
from lsm.optim import Adam
from lsm.tasks import Classification, Function, Mixup
from lsm.train import preview


def experiment(**changes):
    fields = {
        "name": "small",
        "task": Classification(model=MLP(), mean=0.5, std=0.25),
        "data": Data(source=Digits(), augment=(RandomCrop(1), AlternatingFlip())),
        "optimizer": Adam(learning_rate=1e-3),
        "train": Train(steps=30, batch_size=80, seed=3),
    }
    return lsm.Experiment(**fields | changes)


def shown(config):
    """The cells of a preview of pictures 8 x 8: pixels (64, 8, 8) and captions (64, 14, 128)."""
    sheet = np.asarray(Image.open(io.BytesIO(preview(config))))[..., 0]
    cells = sheet.reshape(8, 128 + 1 + 14, 8, 129).swapaxes(1, 2).reshape(64, 143, 129)
    return cells[:, 8:128:16, 8:128:16], cells[:, 128:142, :128]


def test_the_first_batch_is_shown_as_the_network_gets_it():
    config = experiment()
    pixels, captions = shown(config)
    data = config.data
    batch = TrainBatches(data.source.open("train"), 80, 3, data.augment).batch_at(0)
    np.testing.assert_array_equal(pixels, batch["image"][:64, ..., 0])
    by_label = {}
    for label, caption in zip(batch["label"].tolist(), captions, strict=False):
        assert caption.min() < 100 and (by_label.setdefault(label, caption) == caption).all()
    assert len({caption.tobytes() for caption in by_label.values()}) == 10


def test_what_reads_no_pictures_has_no_preview():
    flat = Function(model=MLP(), loss_fn=lambda outputs, batch: outputs, input="label")
    with pytest.raises(ConfigError, match=r"--mode=preview: the inputs of Function are \(80,\)"):
        preview(experiment(task=flat))


@pytest.mark.slow
def test_micro_batches_are_mixed_each_by_itself():
    train = Train(steps=30, batch_size=160, seed=3)
    plain = experiment(train=train)
    mixed = dataclasses.replace(plain, task=Classification(model=MLP(), mix=(Mixup(1.0),)))
    halves = dataclasses.replace(mixed, train=dataclasses.replace(train, accumulation=2))
    (raw, _), (whole, names), (half, _) = (shown(one) for one in (plain, mixed, halves))
    shares = []
    # Rows 0, 2, 4, ... are the first half: its row 1 is row 2, mixed with row 0.
    for picture, own in ((whole[1], raw[1]), (half[1], raw[2])):
        two = np.stack([own.ravel(), raw[0].ravel()], axis=1).astype(float)
        found, off, *_ = np.linalg.lstsq(two, picture.ravel().astype(float))
        assert abs(found.sum() - 1) < 0.01 and off < 64 * 0.3  # of rounding
        shares.append(found[0])
    assert abs(shares[0] - shares[1]) > 1e-3
    assert names[1][:, 50:].min() < 100  # "3 80%, 5 20%" is longer than a name
