"""Augmentation of pictures on the host, drawn by (seed, step)."""

from lsm.data.transforms.base import IMAGE, Places, Transform, changed
from lsm.data.transforms.colour import ColorJitter
from lsm.data.transforms.geometry import (
    AlternatingFlip,
    RandomCrop,
    RandomFlip,
    RandomRotate,
    RandomScale,
)
from lsm.data.transforms.policies import RandAugment, TrivialAugment
from lsm.data.transforms.windows import CenterCrop, Cutout, RandomErasing, RandomResizedCrop

__all__ = [
    "IMAGE",
    "AlternatingFlip",
    "CenterCrop",
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
    "changed",
]
