"""Changes of colour."""

import dataclasses

import numpy as np

from lsm.checks import require
from lsm.data.dataset import Columns
from lsm.data.transforms import operations
from lsm.data.transforms.base import Transform
from lsm.data.transforms.operations import Picture, each

_CHANGES = (
    operations.brightness,
    operations.contrast,
    operations.saturation,
    operations.hue,
)


@dataclasses.dataclass(frozen=True)
class ColorJitter(Transform):
    """Changes brightness, contrast, saturation and hue, in an order by chance, as in torchvision.

    Of column `image`, uint8 of 1 or 3 channels; grey pictures have no saturation and no hue.

    Attributes:
      brightness: the factor is uniform in 1 - brightness (at least 0) to 1 + brightness.
      contrast: likewise.
      saturation: likewise.
      hue: the turn, as a share of the circle of hues, is uniform in -hue to hue; at most 0.5.
    """

    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0

    def __post_init__(self):
        require(self, brightness="[0, inf)", contrast="[0, inf)", saturation="[0, inf)")
        require(self, hue="[0, 0.5]")

    def draw(self, rng: np.random.Generator, examples: int) -> Columns:
        """See `Transform.draw`."""
        most = np.array([self.brightness, self.contrast, self.saturation])
        factors = rng.uniform(np.maximum(0, 1 - most), 1 + most, (examples, 3))
        turns = rng.uniform(-self.hue, self.hue, (examples, 1))
        order = rng.permuted(np.tile(np.arange(4), (examples, 1)), axis=1)
        return {"amounts": np.concatenate([factors, turns], axis=1), "order": order}

    def apply(self, batch: Columns, drawn: Columns) -> Columns:
        """See `Transform.apply`."""
        return each(self, batch, self._jittered, drawn["amounts"], drawn["order"])

    def _jittered(self, picture: Picture, amounts: np.ndarray, order: np.ndarray) -> Picture:
        asked = (self.brightness, self.contrast, self.saturation, self.hue)
        for number in order.tolist():
            if asked[number]:
                picture = _CHANGES[number](picture, float(amounts[number]))
        return picture
