"""Whether what comes in, and goes out, is still distributed as when the model was exported.

The statistics beside an artefact (`statistics.json`, see `lsm.export.statistics`) have, of every
input and output, "counts" between "edges", of all its numbers or of each column. What lies beyond
the ends belongs to the first bin and the last. A few numbers are kept for each tensor, however much
is served.
"""

import pathlib
from collections.abc import Mapping

import numpy as np

from launch.command import LaunchError
from lsm.errors import shortened
from lsm.files import parsed_json

WINDOW = 100_000
"""Values after which older ones count half: what is told is of about the last twice as many."""

_SAMPLE = 1024  # values that are looked at in one array
_LEAST = 1e-4  # share of an empty bin, whose logarithm would be infinite


def psi(expected: np.ndarray, actual: np.ndarray) -> np.ndarray:
    """Returns the population stability index of histograms (..., bins) over the same bins.

    It is the sum of (a - e) ln(a / e) over the shares of the bins. By custom, above 0.1 is a shift
    to look at and above 0.25 a large one.
    """
    e, a = (np.maximum(_shares(counts), _LEAST) for counts in (expected, actual))
    return np.sum((a - e) * np.log(a / e), axis=-1)


def ks(expected: np.ndarray, actual: np.ndarray) -> np.ndarray:
    """Returns the Kolmogorov-Smirnov distance of histograms (..., bins): of cumulated shares."""
    e, a = (np.cumsum(_shares(counts), axis=-1) for counts in (expected, actual))
    return np.max(np.abs(a - e), axis=-1)


def _shares(counts: np.ndarray) -> np.ndarray:
    return counts / counts.sum(-1, keepdims=True)


class Histogram:
    """What has lately been seen of one tensor, in the bins of what was expected.

    Attributes:
      expected: counts at export, (K, bins) of K columns; K is 1 where all numbers are one.
      seen: counts, as those; older ones count less.
    """

    def __init__(self, edges: np.ndarray, counts: np.ndarray):
        """Takes edges (bins + 1,) and counts (bins,) or (K, bins)."""
        self._inner = np.asarray(edges, np.float64)[1:-1]
        self.expected = np.atleast_2d(np.asarray(counts, np.float64))
        self.seen = np.zeros_like(self.expected)
        self._random = np.random.default_rng(0)

    def add(self, values: np.ndarray) -> None:
        """Counts a sample of the finite ones among `values`, numbers (B, K) or of any shape."""
        columns, bins = self.expected.shape
        rows_NxK = values.reshape(-1, columns)
        most = max(1, _SAMPLE // columns)
        if len(rows_NxK) > most:  # at random: a stride would see the same pixels of every picture
            rows_NxK = rows_NxK[self._random.integers(len(rows_NxK), size=most)]
        rows_NxK = rows_NxK.astype(np.float64)
        places = np.searchsorted(self._inner, rows_NxK, side="right") + bins * np.arange(columns)
        places = places[np.isfinite(rows_NxK)]
        self.seen += np.bincount(places, minlength=self.seen.size).reshape(self.seen.shape)
        if self.seen.sum() > 2 * WINDOW * columns:
            self.seen /= 2

    def distances(self) -> tuple[float, float] | None:
        """Returns PSI and KS, the largest of all columns; None before each has been seen."""
        if not self.seen.any(-1).all():
            return None
        return float(psi(self.expected, self.seen).max()), float(ks(self.expected, self.seen).max())


def read(folder: pathlib.Path) -> dict[tuple[str, str], Histogram]:
    """Returns the histograms of an artefact by ("inputs" or "outputs", name); none without a file.

    Raises:
      LaunchError: the file is not what this module describes.
    """
    path = folder / "statistics.json"
    if not path.is_file():
        return {}
    try:
        found = parsed_json(path.read_bytes())
        return {
            (kind, name): _histogram(saved)
            for kind in ("inputs", "outputs")
            for name, saved in found.get(kind, {}).items()
            if saved.get("finite") != 0
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = shortened(" ".join(str(error).split()))
        raise LaunchError(f"{path}: is no statistics of an artefact ({reason}).") from error


def _histogram(saved: Mapping[str, list]) -> Histogram:
    edges, counts = (np.asarray(saved[key], np.float64) for key in ("edges", "counts"))
    rises = edges.ndim == 1 and np.all(np.diff(edges) >= 0)
    if not rises or counts.ndim not in (1, 2) or len(edges) != counts.shape[-1] + 1:
        raise ValueError("edges that rise, one more than counts, are needed")
    if np.any(counts < 0) or not counts.sum(-1).all():
        raise ValueError("counts below 0, or all 0")
    return Histogram(edges, counts)
