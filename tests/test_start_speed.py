"""The table of `benchmarks.start`, and what it writes for torchvision."""

import pickle

import numpy as np
from PIL import Image

from benchmarks import start
from lsm.data import Tfds


def test_ratios_are_of_the_totals():
    times = {
        "lsm, cold": {"import": 1.0, "data": 2.0, "compile": 3.0, "total": 8.0},
        "torchvision, folder": {"import": 3.0, "data": 0.5, "total": 4.0},
        "torchvision, archive": {"import": 3.0, "data": 1.5, "total": 5.0},
    }
    head, cold, folder, _ = start.table(times)
    assert head[-2:] == ["/ torchvision, folder", "/ torchvision, archive"]
    assert cold == ["lsm, cold", "1.00", "2.00", "3.00", "8.00", "2.00", "1.60"]
    assert folder == ["torchvision, folder", "3.00", "0.50", "", "4.00", "1.00", "0.80"]


def test_torchvision_gets_the_same_pictures(tfds_dir, tmp_path, monkeypatch):
    monkeypatch.setenv("LSM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("lsm.data.cache.MAX_BYTES", 0)
    whole = Tfds("cifar10")

    class Some:
        def open(self, split, data_dir):
            return whole.open(f"{split}[:20]", data_dir)

    monkeypatch.setattr(start, "Tfds", lambda name: Some())
    start.write_pictures(tfds_dir, tmp_path)
    columns = whole.open("train[:20]", tfds_dir).take(np.arange(20))
    files = {int(file.stem): file for file in (tmp_path / "folder/train").glob("*/*.png")}
    place = tmp_path / "archive/cifar-10-batches-py"
    batches = [pickle.loads((place / f"data_batch_{i}").read_bytes()) for i in range(1, 6)]
    rows = np.concatenate([batch["data"] for batch in batches])
    classes = whole.open("test", tfds_dir).classes
    assert sorted(files) == list(range(20))
    for number, (picture, label) in enumerate(zip(columns["image"], columns["label"], strict=True)):
        np.testing.assert_array_equal(np.asarray(Image.open(files[number])), picture)
        np.testing.assert_array_equal(rows[number].reshape(3, 32, 32).transpose(1, 2, 0), picture)
        assert files[number].parent.name == classes[label]
    labels = np.concatenate([batch["labels"] for batch in batches])
    np.testing.assert_array_equal(labels, columns["label"])
