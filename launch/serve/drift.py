"""Whether what comes in, and goes out, is still distributed as when the model was exported.

The statistics beside an artefact (`statistics.json`) hold a histogram of every input and output:
`{"inputs": {NAME: {"edges": [...], "counts": [...]}}, "outputs": {...}}`, with k + 1 edges and
k counts; what lies beyond the ends belongs to the first and the last. A few numbers are kept for
each tensor, however much is served.
"""

import json
import pathlib
from collections.abc import Mapping

import numpy as np

from launch.command import LaunchError

WINDOW = 100_000
"""Values after which older ones count half: what is told is of about the last twice as many."""

_SAMPLE = 1024  # values that are looked at in one array
_LEAST = 1e-4  # share of an empty bin, whose logarithm would be infinite


def psi(expected: np.ndarray, actual: np.ndarray) -> float:
    """Returns the population stability index of two histograms over the same bins.

    It is the sum of (a - e) ln(a / e) over the shares of the bins. By custom, above 0.1 is a shift
    to look at and above 0.25 a large one.
    """
    e, a = (np.maximum(counts / counts.sum(), _LEAST) for counts in (expected, actual))
    return float(np.sum((a - e) * np.log(a / e)))


def ks(expected: np.ndarray, actual: np.ndarray) -> float:
    """Returns the Kolmogorov-Smirnov distance of two histograms: of their cumulated shares."""
    e, a = (np.cumsum(counts) / counts.sum() for counts in (expected, actual))
    return float(np.max(np.abs(a - e)))


class Histogram:
    """What has lately been seen of one tensor, in the bins of what was expected.

    Attributes:
      expected: counts at export, [k].
      seen: counts, [k]; older ones count less.
    """

    def __init__(self, edges: np.ndarray, counts: np.ndarray):
        self._inner = np.asarray(edges, np.float64)[1:-1]
        self.expected = np.asarray(counts, np.float64)
        self.seen = np.zeros_like(self.expected)
        self._random = np.random.default_rng(0)

    def add(self, values: np.ndarray) -> None:
        """Counts a sample of the finite ones among `values`, an array of numbers."""
        flat = values.reshape(-1)
        if flat.size > _SAMPLE:  # at random: a stride would see the same pixels of every picture
            flat = flat[self._random.integers(flat.size, size=_SAMPLE)]
        flat = flat.astype(np.float64)
        bins = np.searchsorted(self._inner, flat[np.isfinite(flat)], side="right")
        self.seen += np.bincount(bins, minlength=len(self.seen))
        if self.seen.sum() > 2 * WINDOW:
            self.seen /= 2

    def distances(self) -> tuple[float, float] | None:
        """Returns PSI and KS; None before anything was seen."""
        if not self.seen.sum():
            return None
        return psi(self.expected, self.seen), ks(self.expected, self.seen)


def read(folder: pathlib.Path) -> dict[tuple[str, str], Histogram]:
    """Returns the histograms of an artefact by ("inputs" or "outputs", name); none without a file.

    Raises:
      LaunchError: the file is not what this module describes.
    """
    path = folder / "statistics.json"
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_bytes())
        return {
            (kind, name): _histogram(histogram)
            for kind in ("inputs", "outputs")
            for name, histogram in found.get(kind, {}).items()
        }
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise LaunchError(f"{path}: is no statistics of an artefact ({error!r}).") from error


def _histogram(saved: Mapping[str, list[float]]) -> Histogram:
    edges, counts = (np.asarray(saved[key], np.float64) for key in ("edges", "counts"))
    if len(edges) != len(counts) + 1 or np.any(np.diff(edges) < 0) or np.any(counts < 0):
        raise ValueError("edges that rise, one more than counts, are needed")
    if not counts.sum():
        raise ValueError("counts are all 0")
    return Histogram(edges, counts)
