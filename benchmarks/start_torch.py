"""The first step of PyTorch on pictures of torchvision, for `start`: a worker, run as a script.

    python benchmarks/start_torch.py [folder|archive PLACE STARTED]

It prints, as JSON, the seconds that importing and opening the data took, and those from STARTED
(`time.time()`) to the end of the first step. Without arguments it prints torchvision's version.
"""

import json
import sys
import time
from pathlib import Path

import torch
from peer import torchvision
from step_time_torch import make, make_optimizer, make_step
from torch.utils.data import DataLoader

_IMPORTED = time.time()


class Archive(torchvision.datasets.CIFAR10):
    """CIFAR-10's pickled archive, written by `start`: so its checksums are others."""

    meta = torchvision.datasets.CIFAR10.meta | {"md5": None}

    def _check_integrity(self) -> bool:
        return True


def main(kind: str, place: str, started: str) -> None:
    """Opens both splits and makes a step."""
    begun, to_tensor = float(started), torchvision.transforms.ToTensor()
    start = time.time()
    if kind == "folder":
        train, _ = (
            torchvision.datasets.ImageFolder(Path(place, split), to_tensor)
            for split in ("train", "test")
        )
    else:
        train, _ = (Archive(place, train=split, transform=to_tensor) for split in (True, False))
    opened = time.time()
    torch.manual_seed(0)
    model = make("cnn")
    optimizer = make_optimizer("cnn", model)
    step = make_step(model, optimizer, "float32", "cpu", compiled=False, clip=False)
    step(*next(iter(DataLoader(train, batch_size=32, shuffle=True))))
    parts = {"import": _IMPORTED - begun, "data": opened - start, "total": time.time() - begun}
    print(json.dumps(parts))


if __name__ == "__main__":
    main(*sys.argv[1:]) if len(sys.argv) > 1 else print(torchvision.__version__)
