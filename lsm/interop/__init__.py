"""Files of other libraries: safetensors, and how these call and lay out the arrays of a model."""

from lsm.interop.bert import HuggingFaceBERT
from lsm.interop.convnets import timm_convnext, torchvision_convnext, torchvision_resnet
from lsm.interop.export import save_model
from lsm.interop.names import Names, Source, Torch, by_key_head, transposed
from lsm.interop.opened import Published, open_model
from lsm.interop.table import Table
from lsm.interop.tensors import Tensors, open_tensors
from lsm.interop.timm import TimmViT, timm_mixer

__all__ = [
    "HuggingFaceBERT",
    "Names",
    "Published",
    "Source",
    "Table",
    "Tensors",
    "TimmViT",
    "Torch",
    "by_key_head",
    "open_model",
    "open_tensors",
    "save_model",
    "timm_convnext",
    "timm_mixer",
    "torchvision_convnext",
    "torchvision_resnet",
    "transposed",
]
