"""Data: sources, the order of examples, augmentation, prefetching."""

from lsm.data.batches import Data, EvalBatches, TrainBatches
from lsm.data.dataset import (
    ArrayDataset,
    Arrays,
    Columns,
    Dataset,
    Read,
    Source,
    Spec,
    SplitSource,
)
from lsm.data.digits import Digits
from lsm.data.divide import Split, SplitBy
from lsm.data.files import Files
from lsm.data.folder import Folder
from lsm.data.prefetch import Prefetcher
from lsm.data.sampling import Poisson, Sampling, Shuffled
from lsm.data.select import Select
from lsm.data.text import CharText, CharWindows
from lsm.data.tfds import Tfds
from lsm.data.tokens import Tokens, TokenWindows
from lsm.data.transforms import (
    AlternatingFlip,
    CenterCrop,
    ColorJitter,
    Cutout,
    Places,
    RandAugment,
    RandomCrop,
    RandomErasing,
    RandomFlip,
    RandomResizedCrop,
    RandomRotate,
    RandomScale,
    Transform,
    TrivialAugment,
)

__all__ = [
    "AlternatingFlip",
    "ArrayDataset",
    "Arrays",
    "CenterCrop",
    "CharText",
    "CharWindows",
    "ColorJitter",
    "Columns",
    "Cutout",
    "Data",
    "Dataset",
    "Digits",
    "EvalBatches",
    "Files",
    "Folder",
    "Places",
    "Poisson",
    "Prefetcher",
    "RandAugment",
    "RandomCrop",
    "RandomErasing",
    "RandomFlip",
    "RandomResizedCrop",
    "RandomRotate",
    "RandomScale",
    "Read",
    "Sampling",
    "Select",
    "Shuffled",
    "Source",
    "Spec",
    "Split",
    "SplitBy",
    "SplitSource",
    "Tfds",
    "TokenWindows",
    "Tokens",
    "TrainBatches",
    "Transform",
    "TrivialAugment",
]
