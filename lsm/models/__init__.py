"""Architectures, one a file: pure Linen modules called as `module.apply(variables, x, train)`.

A Transformer is arranged from the parts in `transformer` and `block`; see docs/models.md.
"""

from lsm.models.airbench import Airbench
from lsm.models.attention import Mask, attend
from lsm.models.batch_norm import BatchNorm
from lsm.models.bert import BERT, Classifier, Embedder, MaskedLM, TokenClassifier
from lsm.models.block import Attention, Block, CrossAttention, Mlp
from lsm.models.cache import Cache, Caches
from lsm.models.cnn import CNN
from lsm.models.convnext import ConvNeXt
from lsm.models.encoder_decoder import EncoderDecoder
from lsm.models.gpt import GPT
from lsm.models.lora import Lora
from lsm.models.mixer import Mixer
from lsm.models.mlp import MLP
from lsm.models.pipeline import run_layers
from lsm.models.quantisation import QuantisationAware, Quantised
from lsm.models.recurrent import Recurrent
from lsm.models.resnet import ResNet, WideResNet
from lsm.models.sequences import Sequences
from lsm.models.stack import Stack
from lsm.models.text_classifier import TextClassifier
from lsm.models.transformer import Transformer
from lsm.models.views import Views
from lsm.models.vit import Convolutions, ViT

__all__ = [
    "BERT",
    "CNN",
    "GPT",
    "MLP",
    "Airbench",
    "Attention",
    "BatchNorm",
    "Block",
    "Cache",
    "Caches",
    "Classifier",
    "ConvNeXt",
    "Convolutions",
    "CrossAttention",
    "Embedder",
    "EncoderDecoder",
    "Lora",
    "Mask",
    "MaskedLM",
    "Mixer",
    "Mlp",
    "QuantisationAware",
    "Quantised",
    "Recurrent",
    "ResNet",
    "Sequences",
    "Stack",
    "TextClassifier",
    "TokenClassifier",
    "Transformer",
    "ViT",
    "Views",
    "WideResNet",
    "attend",
    "run_layers",
]
