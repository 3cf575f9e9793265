"""Handwritten digits that come with scikit-learn: real data that needs no download."""

import dataclasses
import functools

import numpy as np

from lsm.data.dataset import ArrayDataset, Dataset, PathLike
from lsm.data.source import SplitSource

_TEST = 360


@dataclasses.dataclass(frozen=True)
class Digits(SplitSource):
    """Optical recognition of handwritten digits (Alpaydin and Kaynak, 1998; UCI, its test set).

    1,797 pictures by 13 writers: `image` uint8 (8, 8, 1), `label` int32. The stored 0..16 are
    scaled to 0..255, round(x * 255 / 16), so that dividing by 255 gives 0..1 as for other pictures.

    The original order, which is by writer, is mixed by a fixed permutation (the order of the first
    1,797 raw numbers of NumPy's Philox with key 0). The last 360 are the split "test", the first
    1,437 "train".
    """

    def __str__(self) -> str:
        return "Digits"

    def shards(self, data_dir: PathLike | None = None) -> dict[str, list[int]]:
        """See `SplitSource.shards`."""
        image, _ = _load()
        return {"train": [len(image) - _TEST], "test": [_TEST]}

    def open_split(self, name: str, data_dir: PathLike | None = None) -> Dataset:
        """See `SplitSource.open_split`."""
        image, label = _load()
        part = slice(-_TEST, None) if name == "test" else slice(None, -_TEST)
        classes = [str(digit) for digit in range(10)]
        return ArrayDataset({"image": image[part], "label": label[part]}, classes)


@functools.cache
def _load() -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    pixels = np.rint(images * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)
    # Raw numbers: NumPy may change what a Generator's permutation makes of them, not these.
    order = np.argsort(np.random.Philox(key=0).random_raw(len(pixels)), kind="stable")
    return pixels[order], labels[order].astype(np.int32)
