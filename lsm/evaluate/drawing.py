"""What an evaluation shows as pictures: the confusion matrix, and the most confident mistakes."""

import dataclasses
import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from lsm.checks import require
from lsm.errors import DataError
from lsm.evaluate.base import Arrays, Metric, take
from lsm.evaluate.classification import confused, named

_MOST_COUNTS = 25  # classes of which a count stands in each cell
_SIDE = 128  # pixels that are kept of a longer side


@dataclasses.dataclass(frozen=True)
class Confusion(Metric):
    """How many examples of each class were taken for which: "confusion/cat/dog" for cats as dogs.

    These are K x K figures. At the end of a run `confusion.png` shows them, each row by its shares.

    Attributes:
      label: column with int labels (N,) in [0, K).
      prediction: predicted int labels (N,).
      classes: names; () takes those that the data has.
    """

    label: str = "label"
    prediction: str = "label"
    classes: tuple[str, ...] = ()

    @property
    def columns(self) -> tuple[str, ...]:
        """See `Metric.columns`."""
        return (self.label,)

    def told(self, classes: Sequence[str]) -> "Confusion":
        """See `Metric.told`."""
        return named(self, classes)

    def init(self) -> np.ndarray:
        """Returns the empty matrix (K, K): weights of examples, by (label, prediction)."""
        return np.zeros((len(named(self, ()).classes),) * 2)

    def update(self, accumulator: np.ndarray, predictions: Arrays, batch: Arrays) -> np.ndarray:
        """See `Metric.update`."""
        columns, most = (self.label, self.prediction), len(self.classes)
        return confused(accumulator, predictions, batch, *columns, field="Confusion", classes=most)

    def compute(self, accumulator: np.ndarray) -> dict[str, float]:
        """Returns "confusion/LABEL/PREDICTION" of every pair."""
        return {
            f"confusion/{label}/{predicted}": float(accumulator[i, j])
            for i, label in enumerate(self.classes)
            for j, predicted in enumerate(self.classes)
        }

    def pictures(self, accumulator: np.ndarray) -> dict[str, bytes]:
        """Returns "confusion.png"."""
        count = len(self.classes)
        side = min(4 + 0.4 * count, 24)
        figure = figure_of(side, side, "tight")
        axes = figure.add_subplot()
        total_Kx1 = accumulator.sum(1, keepdims=True)
        share_KxK = accumulator / np.where(total_Kx1 == 0, 1, total_Kx1)
        axes.imshow(share_KxK, cmap="Blues", vmin=0, vmax=1)
        axes.set(xlabel="predicted", ylabel="label")
        size = 9 if count <= _MOST_COUNTS else max(2, 240 / count)
        axes.set_xticks(range(count), map(_plain, self.classes), rotation=90, fontsize=size)
        axes.set_yticks(range(count), map(_plain, self.classes), fontsize=size)
        for i, j in np.ndindex(*accumulator.shape) if count <= _MOST_COUNTS else ():
            color = "white" if share_KxK[i, j] > 0.5 else "black"
            told = {"ha": "center", "va": "center", "fontsize": 8, "color": color}
            axes.text(j, i, f"{accumulator[i, j]:.6g}", **told)
        return {"confusion.png": png(figure)}


@dataclasses.dataclass(frozen=True)
class Mistakes(Metric):
    """The mistakes of which the model was most confident: `mistakes.png` at the end of a run.

    It has no figures, and keeps `count` pictures, of at most 128 pixels a side; of equals the
    first.

    Attributes:
      count: pictures at the most, 1 to 100.
      image: column with pictures (N, H, W) or (N, H, W, C), of 1, 3 or 4 channels.
      label: column with int labels (N,) in [0, K).
      prediction: probabilities (N, K).
      classes: names; () takes those that the data has.
    """

    count: int = 36
    image: str = "image"
    label: str = "label"
    prediction: str = "probability"
    classes: tuple[str, ...] = ()

    def __post_init__(self):
        require(self, count="[1, 100]")

    @property
    def columns(self) -> tuple[str, ...]:
        """See `Metric.columns`."""
        return (self.label, self.image)

    def told(self, classes: Sequence[str]) -> "Mistakes":
        """See `Metric.told`."""
        return named(self, classes)

    def init(self) -> tuple:
        """Returns (): (probability, label, prediction, picture) of each mistake will follow."""
        return ()

    def update(self, accumulator: tuple, predictions: Arrays, batch: Arrays) -> tuple:
        """See `Metric.update`."""
        labels_N = take(batch, self.label, "Mistakes.label")
        pictures = take(batch, self.image, "Mistakes.image")
        scores_NxK = take(predictions, self.prediction, "Mistakes.prediction")
        if scores_NxK.ndim != 2 or not (pictures.ndim == 3 or pictures.shape[3:] in _CHANNELS):
            raise DataError(
                f"Mistakes.image: {pictures.shape} given, with probabilities {scores_NxK.shape}; "
                "pictures (N, H, W, 1, 3 or 4) and (N, K) are needed."
            )
        predicted_N, sure_N = scores_NxK.argmax(1), scores_NxK.max(1)
        wrong = np.flatnonzero(predicted_N != labels_N)
        wrong = wrong[np.argsort(-sure_N[wrong], kind="stable")][: self.count]
        found = [
            (float(sure_N[i]), int(labels_N[i]), int(predicted_N[i]), _smaller(pictures[i]))
            for i in wrong
        ]
        return tuple(sorted([*accumulator, *found], key=lambda one: -one[0])[: self.count])

    def compute(self, accumulator: tuple) -> dict[str, float]:
        """Returns no figures."""
        del accumulator
        return {}

    def pictures(self, accumulator: tuple) -> dict[str, bytes]:
        """Returns "mistakes.png", each picture under "LABEL as PREDICTION" and the probability."""
        across = max(1, int(np.ceil(np.sqrt(len(accumulator)))))
        side = 1.8 * max(across, 2)
        figure = figure_of(side, side, "tight")
        if not accumulator:
            figure.suptitle("no mistakes")
        for place, (sure, label, predicted, picture) in enumerate(accumulator, 1):
            axes = figure.add_subplot(across, across, place)
            axes.imshow(picture, cmap="gray", interpolation="nearest")
            axes.axis("off")
            names = " as ".join(_plain(self.classes[k]) for k in (label, predicted))
            axes.set_title(f"{names}\n{sure:.3f}", fontsize=7)
        return {"mistakes.png": png(figure)}


_CHANNELS = ((1,), (3,), (4,))


def _smaller(picture: np.ndarray) -> np.ndarray:
    """Returns every so many pixels of a picture, (H, W) or (H, W, 3 or 4) of its own."""
    step = -(-max(picture.shape[:2]) // _SIDE)
    picture = picture[::step, ::step]
    picture = picture[..., 0] if picture.shape[2:] == (1,) else picture
    if picture.dtype == np.uint8:
        return picture.copy()
    low, high = float(picture.min()), float(picture.max())
    return (picture.astype(np.float32) - low) / (high - low or 1)


def _plain(name: str) -> str:
    """A name as matplotlib shows it: it takes what stands between dollars for a formula."""
    return name.replace("$", r"\$")


def figure_of(width: float, height: float, layout: str) -> Any:
    """Returns an empty figure of matplotlib, in inches, whose axes are placed by `layout`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout=layout)
    # Without pyplot, which looks for a screen and holds on to its figures.
    FigureCanvasAgg(figure)
    return figure


def png(figure: Any) -> bytes:
    """Returns a figure as PNG."""
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=130)
    return picture.getvalue()


def draw_attention(weights_TxS: np.ndarray, source: Sequence[str], target: Sequence[str]) -> bytes:
    """Returns as PNG how much each target token (a row) attends to each source token (a column)."""
    if weights_TxS.shape != (len(target), len(source)):
        raise DataError(
            f"draw_attention: weights {weights_TxS.shape} for {len(target)} target and "
            f"{len(source)} source tokens."
        )
    figure = figure_of(2 + 0.3 * len(source), 2 + 0.3 * len(target), "tight")
    axes = figure.add_subplot()
    axes.imshow(weights_TxS, cmap="Blues", vmin=0, vmax=1)
    axes.set(xlabel="source", ylabel="target")
    axes.set_xticks(range(len(source)), map(_plain, source), rotation=90)
    axes.set_yticks(range(len(target)), map(_plain, target))
    return png(figure)
