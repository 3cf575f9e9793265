"""Architectures, one a file: pure Linen modules called as `module.apply(variables, x, train)`."""

from lsm.models.cnn import CNN
from lsm.models.gpt import GPT
from lsm.models.mlp import MLP

__all__ = ["CNN", "GPT", "MLP"]
