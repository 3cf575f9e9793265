"""How long it is from the start of a process to its first step: lsm against PyTorch, on CIFAR-10.

    python -m benchmarks.start [--data_dir=DIR] [--turns=3] [--peer_python=PATH]

Both train the tutorial CNN, with Adam, on batches of 32, and have opened the test split before the
first step. In turns, each in a process of its own, it times

- lsm, cold: the experiment `cifar` as users run it, with nothing decoded or compiled before;
- lsm, warm: the same once more;
- torchvision, folder: an `ImageFolder` of the same pictures as PNG files, which are decoded when
  they are asked for;
- torchvision, archive: its `CIFAR10`, of the pickled arrays.

lsm decodes and compiles at the same time, so that the parts are more than the whole.
The loaders of torchvision work in the process itself, because starting others takes longer than the
first batch. The shortest time of each counts. Files are in memory for both sides (the system's page
cache). PyTorch and torchvision are optional, and may live in another interpreter (`--peer_python`).
"""

import json
import os
import pickle
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from benchmarks.compare import print_doubts, torchvision_version
from benchmarks.step_time_tables import markdown
from lsm import command_line
from lsm.cpu import cores
from lsm.data import Tfds, images

_NAMES = ("lsm, cold", "lsm, warm", "torchvision, folder", "torchvision, archive")
_PARTS = ("import", "data", "compile", "total")
_PEER = Path(__file__).with_name("start_torch.py")


def write_pictures(data_dir: str | None, place: Path) -> None:
    """Writes CIFAR-10 as `place/folder/SPLIT/CLASS/N.png` and as torchvision's pickled archive."""
    archive = place / "archive" / "cifar-10-batches-py"
    archive.mkdir(parents=True)
    files = {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]}
    for split, names in files.items():
        dataset = Tfds("cifar10").open(split, data_dir)
        columns = dataset.take(np.arange(len(dataset)))
        folders = [place / "folder" / split / name for name in dataset.classes]
        for folder in folders:
            folder.mkdir(parents=True)
        for number, label in enumerate(columns["label"]):
            png = images.encode_png(columns["image"][number])
            (folders[label] / f"{number:05}.png").write_bytes(png)
        rows = columns["image"].transpose(0, 3, 1, 2).reshape(len(dataset), -1)
        for name, part in zip(names, np.split(np.arange(len(dataset)), len(names)), strict=True):
            batch = {"data": rows[part], "labels": columns["label"][part].tolist()}
            (archive / name).write_bytes(pickle.dumps(batch))
    (archive / "batches.meta").write_bytes(pickle.dumps({"label_names": list(dataset.classes)}))


def first_lsm(data_dir: str | None, workdir: Path, cache: Path) -> dict[str, float]:
    """Returns the seconds of the parts of a start of `experiments.cifar`, and "total"."""
    root = Path(__file__).parents[1]
    command = [sys.executable, "-m", "experiments.cifar", f"--workdir={workdir}"]
    command += [f"--data_dir={data_dir}"] if data_dir else []
    config = Path(__file__).with_name("start_lsm.py")
    # Wall time: other clocks may begin anew in every process.
    command.append(f"--config={config}:{time.time()}")
    return _last_line(command, cwd=root, env=os.environ | {"LSM_CACHE": str(cache)})


def first_torch(python: str, kind: str, place: Path) -> dict[str, float]:
    """Returns the same of PyTorch on pictures in `place` / `kind`, "folder" or "archive"."""
    return _last_line([python, _PEER, kind, place / kind, str(time.time())])


def _last_line(command: Sequence[str | Path], **options: Any) -> dict[str, float]:
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, **options)
    if done.returncode:
        raise SystemExit(f"start: a process ended with {done.returncode}; see above for why.")
    return json.loads(done.stdout.splitlines()[-1])


def measure(data_dir: str | None, python: str | None, turns: int) -> dict[str, dict[str, float]]:
    """Returns the parts of the shortest start of each contender; all have taken turns."""
    times: dict[str, list[dict[str, float]]] = {name: [] for name in _NAMES[: 4 if python else 2]}
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        if python:
            write_pictures(data_dir, place)
        for turn in range(turns):
            cache = place / f"cache-{turn}"
            for name, parts in times.items():
                kind = name.split()[-1]
                if name.startswith("lsm"):
                    parts.append(first_lsm(data_dir, place / f"{kind}-{turn}", cache))
                else:
                    parts.append(first_torch(python, kind, place))
            shown = ", ".join(f"{name} {parts[-1]['total']:.2f}" for name, parts in times.items())
            print(f"turn {turn + 1}, s: {shown}", file=sys.stderr, flush=True)
    return {name: min(parts, key=lambda part: part["total"]) for name, parts in times.items()}


def table(times: Mapping[str, Mapping[str, float]]) -> list[list[str]]:
    """Returns rows: what each took, in parts, and as multiples of torchvision's two."""
    peers = [name for name in times if name.startswith("torchvision")]
    rows = [["s", *_PARTS, *(f"/ {name}" for name in peers)]]
    for name, parts in times.items():
        shown = [f"{parts[part]:.2f}" if part in parts else "" for part in _PARTS]
        ratios = [f"{parts['total'] / times[peer]['total']:.2f}" for peer in peers]
        rows.append([name, *shown, *ratios])
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark and prints its table; returns the exit status."""
    return command_line.run(_act, _flags(), argv, doc=__doc__)


def _flags() -> flags.FlagValues:
    given = flags.FlagValues()
    flags.DEFINE_string("data_dir", None, "where CIFAR-10 is prepared", given)
    flags.DEFINE_integer("turns", 3, "starts of each", lower_bound=1, flag_values=given)
    flags.DEFINE_string("peer_python", sys.executable, "interpreter with torchvision", given)
    return given


def _act(given: flags.FlagValues, _: list[str]) -> None:
    version = torchvision_version(given.peer_python)
    times = measure(given.data_dir, given.peer_python if version else None, given.turns)
    print(f"{cores()} CPUs ({platform.machine()}), torchvision {version or 'none'}")
    print("Seconds from the start of the process to the end of its first step, and ratios.\n")
    print(markdown(table(times)))
    print_doubts(given.peer_python, version)


if __name__ == "__main__":
    sys.exit(main())
