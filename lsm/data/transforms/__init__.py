"""Augmentation of pictures on the host, drawn by (seed, step)."""

from lsm.data.transforms.base import IMAGE, Places, Transform
from lsm.data.transforms.colour import ColorJitter
from lsm.data.transforms.geometry import (
    AlternatingFlip,
    RandomCrop,
    RandomFlip,
    RandomRotate,
    RandomScale,
)
from lsm.data.transforms.policies import RandAugment, TrivialAugment
from lsm.data.transforms.windows import Cutout, RandomErasing, RandomResizedCrop

__all__ = [
    "IMAGE",
    "AlternatingFlip",
    "ColorJitter",
    "Cutout",
    "Places",
    "RandAugment",
    "RandomCrop",
    "RandomErasing",
    "RandomFlip",
    "RandomResizedCrop",
    "RandomRotate",
    "RandomScale",
    "Transform",
    "TrivialAugment",
]
