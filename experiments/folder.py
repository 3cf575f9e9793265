"""Pictures of one's own, one folder a class.

python -m experiments.folder --config=experiments/configs/folder/simple_cnn.py:PATH
"""

import pathlib
from typing import Any

from lsm import Data, cli
from lsm.data import Folder
from lsm.files import expanded

_HELD_OUT = ("val", "validation", "valid")


def pictures(path: str | None, size: int, **options: Any) -> tuple[Data, int]:
    """Returns the data of a tree, with `options` of `Data`, and how many classes it has.

    Args:
      path: train/CLASS/ and val/CLASS/, or CLASS/ or train/CLASS/ alone, of which a fifth is then
        kept to evaluate on. None is hymenoptera, wherever --data_dir is: it is not opened.
      size: pixels of a side.

    Raises:
      DataError: there is no such tree.
    """
    if path is None:
        source, splits, outputs = Folder("hymenoptera", size), ("train", "val"), 2
    else:
        source = Folder(str(expanded(path, "PATH").absolute()), size)
        splits, outputs = source.splits(), len(source.open("train").classes)
    held_out = next((name for name in _HELD_OUT if name in splits), None)
    train, validation = ("train", held_out) if held_out else ("train[:80%]", "train[80%:]")
    return Data(source=source, train=train, validation=validation, **options), outputs


if __name__ == "__main__":
    cli.main(default=pathlib.Path(__file__).parent / "configs/folder/simple_cnn.py")
