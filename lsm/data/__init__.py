"""Data: sources, the order of examples, augmentation, prefetching."""

from lsm.data.arrays import Arrays
from lsm.data.batches import Data, EvalBatches, TrainBatches
from lsm.data.dataset import ArrayDataset, Columns, Dataset, Read, Spec
from lsm.data.digits import Digits
from lsm.data.divide import Split, SplitBy
from lsm.data.files import Files
from lsm.data.folder import Folder
from lsm.data.prefetch import Prefetcher
from lsm.data.sampling import ByLength, Poisson, Sampling, Shuffled
from lsm.data.select import Select
from lsm.data.source import Source, SplitSource
from lsm.data.text import CharText, CharWindows
from lsm.data.texts.chats import Chats, Preferences
from lsm.data.texts.sentences import Sentences
from lsm.data.texts.source import Texts
from lsm.data.texts.vocabulary import Characters, Subwords, Vocabulary, Words
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
    "ByLength",
    "CenterCrop",
    "CharText",
    "CharWindows",
    "Characters",
    "Chats",
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
    "Preferences",
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
    "Sentences",
    "Shuffled",
    "Source",
    "Spec",
    "Split",
    "SplitBy",
    "SplitSource",
    "Subwords",
    "Texts",
    "Tfds",
    "TokenWindows",
    "Tokens",
    "TrainBatches",
    "Transform",
    "TrivialAugment",
    "Vocabulary",
    "Words",
]
