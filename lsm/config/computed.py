"""First parameters that are computed from the training data."""

import abc
import dataclasses
import math
from collections.abc import Mapping

import jax
import numpy as np

from lsm.checks import require
from lsm.data import Dataset
from lsm.errors import ConfigError, listed, nearest
from lsm.tasks import Task


class Computed(abc.ABC):
    """A start that looks at the training data; a frozen dataclass, so that a config can hold it."""

    @abc.abstractmethod
    def arrays(
        self, task: Task, dataset: Dataset, spec: Mapping[str, jax.ShapeDtypeStruct]
    ) -> dict[str, np.ndarray]:
        """Returns the arrays that a run begins with, by path; the others are drawn.

        Args:
          task: what is learnt; its `inputs` are what the model gets.
          dataset: the training split. Every process computes the same of it.
          spec: shape and dtype of all arrays, by path, as `Start` names them.
        """


@dataclasses.dataclass(frozen=True)
class PatchWhitening(Computed):
    """A convolution that makes the patches of pictures uncorrelated, and each of variance 1.

    Its filters are the eigenvectors of the second moments of all patches, each divided by the
    square root of its eigenvalue, and their negatives (Page 2019; Jordan 2024, arXiv:2404.00498).

    Attributes:
      path: of the kernel (H, W, C, 2 x H x W x C).
      examples: pictures, from the first on.
      epsilon: added to the eigenvalues.
    """

    path: str
    examples: int = 5000
    epsilon: float = 5e-4

    def __post_init__(self):
        require(self, examples="[1, inf)", epsilon="[0, inf)")

    def arrays(
        self, task: Task, dataset: Dataset, spec: Mapping[str, jax.ShapeDtypeStruct]
    ) -> dict[str, np.ndarray]:
        """See `Computed.arrays`."""
        if self.path not in spec:
            raise ConfigError(
                f"PatchWhitening.path: the model has no {self.path!r}; it has {listed(spec)}."
                f"{nearest(self.path, spec)}"
            )
        shape = spec[self.path].shape
        if len(shape) != 4 or shape[3] != 2 * math.prod(shape[:3]):
            raise ConfigError(
                f"PatchWhitening.path: {self.path!r} is {shape}; a kernel (H, W, C, 2 x H x W x C) "
                "is needed."
            )
        batch = dataset.take(np.arange(min(self.examples, len(dataset))))
        images_BxHxWxC = np.asarray(task.inputs(batch), np.float32)
        windows = np.lib.stride_tricks.sliding_window_view(images_BxHxWxC, shape[:2], axis=(1, 2))
        patches_NxD = np.moveaxis(windows, 3, 5).reshape(-1, shape[3] // 2).astype(np.float64)
        values_D, vectors_DxD = np.linalg.eigh(patches_NxD.T @ patches_NxD / len(patches_NxD))
        scaled_DxD = vectors_DxD / np.sqrt(values_D + self.epsilon)
        kernel = np.concatenate([scaled_DxD, -scaled_DxD], axis=1)
        return {self.path: kernel.reshape(shape).astype(np.float32)}
