"""Pictures a second of a PyTorch DataLoader, for `input`: a worker, run as a script.

python benchmarks/input_torch.py 32x32|JPEG|JPEG-crop PLACE BATCH_SIZE WORKERS SECONDS
"""

import sys
import time
from pathlib import Path

import numpy as np
from peer import torchvision
from PIL import Image
from torch.utils.data import DataLoader, Dataset

transforms = torchvision.transforms


class Arrays(Dataset):
    """Pictures in a memory map, handed out as torchvision's own datasets of arrays do."""

    def __init__(self, place: Path):
        self._image, self._label = (
            np.load(place / f"{name}.npy", mmap_mode="r") for name in ("image", "label")
        )
        self._transform = transforms.Compose(
            [
                transforms.RandomCrop(32, padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.PILToTensor(),
            ]
        )

    def __len__(self) -> int:
        return len(self._label)

    def __getitem__(self, i: int) -> tuple:
        return self._transform(Image.fromarray(self._image[i])), int(self._label[i])


def opened(case: str, place: Path) -> Dataset:
    """Returns the pictures of a case, uint8."""
    if case == "32x32":
        return Arrays(place)
    steps = [
        transforms.Resize((224, 224)) if case == "JPEG" else transforms.RandomResizedCrop(224),
        transforms.RandomHorizontalFlip(),
        transforms.PILToTensor(),
    ]
    return torchvision.datasets.ImageFolder(place, transforms.Compose(steps))


def rate(loader: DataLoader, seconds: float) -> float:
    """Returns pictures a second, measured for about `seconds` after the first batches."""
    start, pictures, batches = None, 0, 0
    while True:
        for image, _ in loader:
            now = time.perf_counter()
            if start is None:
                batches += 1
                start = now if batches == 8 else None
                continue
            pictures += len(image)
            if now > start + seconds:
                return pictures / (now - start)


if __name__ == "__main__":
    case, place, batch_size, workers, seconds = sys.argv[1:]
    loader = DataLoader(
        opened(case, Path(place)),
        int(batch_size),
        shuffle=True,
        drop_last=True,
        num_workers=int(workers),
        persistent_workers=int(workers) > 0,
    )
    print(rate(loader, float(seconds)))
