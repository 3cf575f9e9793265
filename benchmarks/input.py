"""How many pictures a second are made ready for training: lsm's input against a PyTorch DataLoader.

    python -m benchmarks.input [--folder=DIR] [--seconds=5] [--peer_python=PATH]
    python -m benchmarks.input write docs/data.md
    python -m benchmarks.input check docs/data.md

- 32x32: 50,000 pictures from a memory map, as lsm's cache has them; batches of 128, cropped out of
  4 pixels of padding and mirrored at random;
- JPEG: a tree of pictures with one folder a class, decoded for every batch, resized to 224x224 and
  mirrored at random; batches of 32. Without `--folder` the tree is made: 256 pictures of 500x375,
  of smooth noise;
- JPEG-crop: the same tree, a random window of each picture resized to 224x224, and mirrored at
  random.

Both give uint8 pictures and labels, shuffled. lsm has one thread for each CPU; the DataLoader none,
or one process for each CPU, of which the faster counts. They take turns, and the most pictures a
second of each count. PyTorch and torchvision are optional, and may live in another interpreter
(`--peer_python`). The record is `benchmarks/input.json`.
"""

import dataclasses
import functools
import itertools
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from benchmarks.compare import print_doubts, torchvision_version
from benchmarks.documents import between, keep, kept, origin, wrote_or_checked
from benchmarks.step_time_tables import markdown
from lsm import command_line
from lsm.cpu import cores
from lsm.data import (
    ArrayDataset,
    Dataset,
    Folder,
    Prefetcher,
    RandomCrop,
    RandomFlip,
    RandomResizedCrop,
    TrainBatches,
    Transform,
    cache,
)
from lsm.run.result import git_revision, hardware

RECORD = Path(__file__).with_suffix(".json")
_PEER = Path(__file__).with_name("input_torch.py")
_TURNS = 3


@dataclasses.dataclass(frozen=True)
class Case:
    """One kind of pictures.

    Attributes:
      name: shown in the table, and known to the peer.
      batch_size: pictures in a batch.
      augment: lsm's transforms.
      opened: from the place of the pictures to them.
    """

    name: str
    batch_size: int
    augment: tuple[Transform, ...]
    opened: Callable[[Path], Dataset]


def _arrays(place: Path) -> Dataset:
    image, label = (np.load(place / f"{name}.npy", mmap_mode="r") for name in ("image", "label"))
    return ArrayDataset({"image": image, "label": label})


def _folder(place: Path, size: int | None = 224) -> Dataset:
    cache.MAX_BYTES = 0  # as a tree has it that is too large to be decoded ahead
    return Folder(str(place), size=size).open("train")


CASES = (
    Case("32x32", 128, (RandomCrop(padding=4), RandomFlip()), _arrays),
    Case("JPEG", 32, (RandomFlip(),), _folder),
    Case(
        "JPEG-crop",
        32,
        (RandomResizedCrop(224), RandomFlip()),
        functools.partial(_folder, size=None),
    ),
)


def write_arrays(place: Path) -> Path:
    """Writes 50,000 random pictures and labels; returns their folder."""
    rng = np.random.default_rng(0)
    place.mkdir()
    np.save(place / "image.npy", rng.integers(0, 256, (50_000, 32, 32, 3), np.uint8))
    np.save(place / "label.npy", rng.integers(0, 10, 50_000, np.int32))
    return place


def write_tree(place: Path) -> Path:
    """Writes 256 JPEG pictures of two classes; returns their folder."""
    from PIL import Image

    rng = np.random.default_rng(0)
    for number in range(256):
        folder = place / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        noise = Image.fromarray(rng.integers(0, 256, (94, 125, 3), np.uint8))
        noise.resize((500, 375), Image.Resampling.BICUBIC).save(
            folder / f"{number}.jpg", quality=90
        )
    return place


def lsm_rate(case: Case, place: Path, seconds: float) -> float:
    """Returns the pictures a second that lsm makes ready, measured for about `seconds`."""
    batches = TrainBatches(case.opened(place), case.batch_size, augment=case.augment)
    with Prefetcher(batches.batch_at, itertools.count(), workers=cores()) as prefetcher:
        for _ in itertools.islice(prefetcher, 8):  # what was made ahead, before the clock began
            pass
        start, pictures = time.perf_counter(), 0
        while time.perf_counter() < start + seconds:
            pictures += len(next(prefetcher)["image"])
        return pictures / (time.perf_counter() - start)


def torch_rate(python: str, case: Case, place: Path, seconds: float, workers: int) -> float:
    """Returns the same of a DataLoader with `workers` processes."""
    command = [python, _PEER, case.name, place, case.batch_size, workers, seconds]
    done = subprocess.run([str(part) for part in command], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"input: PyTorch's process ended with {done.returncode}; see above.")
    return float(done.stdout)


def measure(case: Case, place: Path, python: str | None, seconds: float) -> dict[str, float]:
    """Returns the most pictures a second of each; all have taken turns."""
    lsm, torch = [], []
    for _ in range(_TURNS):
        lsm.append(lsm_rate(case, place, seconds))
        for workers in (0, cores()) if python else ():
            torch.append(torch_rate(python, case, place, seconds, workers))
    return {"lsm": max(lsm)} | ({"DataLoader": max(torch)} if torch else {})


def main(argv: Sequence[str] | None = None) -> int:
    """Measures and keeps the record, or does `write` or `check`; returns the exit status."""
    return command_line.run(_act, _flags(), argv, doc=__doc__, words=True)


def _flags() -> flags.FlagValues:
    given = flags.FlagValues()
    flags.DEFINE_string("folder", None, "tree of pictures, CLASS/FILE", given)
    flags.DEFINE_float("seconds", 5.0, "length of a turn", flag_values=given)
    flags.DEFINE_string("peer_python", sys.executable, "interpreter with torchvision", given)
    return given


def table(record: Mapping[str, Any]) -> str:
    """Returns a record as Markdown."""
    rows = [["pictures/s", "lsm", "DataLoader", "lsm / DataLoader"]]
    for name, rates in record["rates"].items():
        peer = rates.get("DataLoader")
        rest = [f"{peer:,.0f}", f"{rates['lsm'] / peer:.2f}"] if peer else ["", ""]
        rows.append([name, f"{rates['lsm']:,.0f}", *rest])
    return f"{origin(record)}.\n\n{markdown(rows)}"


def filled(document: Path) -> str:
    """Returns the text of `document` with the table as the record has it now."""
    return between(document, "input", table(kept(RECORD)))


def _act(given: flags.FlagValues, words: list[str]) -> None:
    if wrote_or_checked(words, filled):
        return
    version = torchvision_version(given.peer_python)
    python, rates = given.peer_python if version else None, {}
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        tree = Path(given.folder) if given.folder else write_tree(place / "tree")
        for case, pictures in zip(CASES, (write_arrays(place / "arrays"), tree, tree), strict=True):
            rates[case.name] = measure(case, pictures, python, given.seconds)
    made = {
        "hardware": hardware(),
        "git_revision": git_revision(),
        "versions": {"torchvision": version or "none"},
        "rates": rates,
    }
    print(table(made))
    print_doubts(given.peer_python, version)
    keep(RECORD, made)


if __name__ == "__main__":
    sys.exit(main())
