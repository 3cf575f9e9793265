"""What is trained on new data, and what a new version has to keep, as values."""

import dataclasses
import fnmatch
import pathlib
from collections.abc import Mapping
from typing import Literal

from lsm.checks import require, require_choice
from lsm.config import Evaluation, Experiment
from lsm.data import Files, Subwords, Texts
from lsm.data.splits import names
from lsm.errors import ConfigError, listed, nearest
from lsm.evaluate import Metric

Figures = Mapping[str, float]
"""Of one version: "accuracy", "accuracy/CLASS", "calibration_error", "latency_ms", "megabytes"."""

_COSTS = ("latency_ms", "megabytes")
"""Figures of which a lower value is better, beside those that `Evaluation.sign` knows by name."""


def _matching(pattern: str, figures: Figures, gate: str) -> list[str]:
    found = [name for name in figures if fnmatch.fnmatchcase(name, pattern)]
    if not found:
        raise ConfigError(
            f"{gate}.figure: no figure {pattern!r}; there are {listed(figures, 20)}."
            f"{nearest(pattern, figures)}"
        )
    return found


@dataclasses.dataclass(frozen=True)
class Bound:
    """A gate: a figure within bounds.

    Attributes:
      figure: its name, or a pattern of names, "accuracy/*", all of which have to pass.
      least: it has to be this or more; None is any.
      most: it has to be this or less; None is any.
    """

    figure: str
    least: float | None = None
    most: float | None = None

    def __post_init__(self):
        require(self, least="(-inf, inf)", most="(-inf, inf)")
        if self.least is None and self.most is None:
            raise ConfigError(f"Bound({self.figure!r}): least or most is needed.")

    def missed(self, new: Figures, serving: Figures | None) -> list[str]:
        """Returns a line for each figure that is out of bounds; NaN always is.

        Args:
          new: of the version that is to be served.
          serving: of the one that is; None where there is none.
        """
        del serving
        told = []
        for name in _matching(self.figure, new, "Bound"):
            value = new[name]
            if self.least is not None and not value >= self.least:
                told.append(f"{name} {value:.6g}, at least {self.least:g} is needed")
            if self.most is not None and not value <= self.most:
                told.append(f"{name} {value:.6g}, at most {self.most:g} is allowed")
        return told


@dataclasses.dataclass(frozen=True)
class NoWorse:
    """A gate: a figure no worse than that of the version that serves, on the same examples.

    Attributes:
      figure: its name, or a pattern of names.
      by: how much worse it may be, in its own unit.
      better: whether a lower or a higher value of it is better; None goes by its name, as
        `lsm.Evaluation.better` does, and is lower for "latency_ms" and "megabytes".
    """

    figure: str = "accuracy"
    by: float = 0.0
    better: Literal["lower", "higher"] | None = None

    def __post_init__(self):
        require(self, by="[0, inf)")
        if self.better is not None:
            require_choice(self, "better", "lower", "higher")

    def missed(self, new: Figures, serving: Figures | None) -> list[str]:
        """Returns a line for each figure that is worse; see `Bound.missed`."""
        if serving is None:
            return []
        told = []
        for name in _matching(self.figure, new, "NoWorse"):
            if name not in serving:  # of a class that the other never had
                continue
            kind = name.split("/")[0]  # a class's name stands behind it
            better = self.better or ("lower" if kind in _COSTS else None)
            sign = Evaluation(monitor=kind, better=better).sign
            if not sign * (new[name] - serving[name]) >= -self.by:  # NaN is worse
                told.append(
                    f"{name} {new[name]:.6g}, {serving[name]:.6g} serves; {self.by:g} is allowed"
                )
        return told


@dataclasses.dataclass(frozen=True, kw_only=True)
class Canary:
    """How a new version is tried beside the one that serves, by the server's own figures.

    Attributes:
      share: of the requests that name no version.
      requests: after so many that it has answered it is judged.
      seconds: or after this time, however many came.
      failures_at_most: share of its requests that may fail.
      latency_at_most: mean time of a call, as a multiple of that of the version that serves.
      drift_at_most: population stability index of its outputs against those at export, looked at
        once it has answered `requests`.
      agrees_at_least: share of examples of the fixed set on which both say the same, asked of the
        server.
    """

    share: float = 0.1
    requests: int = 200
    seconds: float = 3600.0
    failures_at_most: float = 0.0
    latency_at_most: float = 2.0
    drift_at_most: float = 0.5
    agrees_at_least: float = 0.8

    def __post_init__(self):
        require(self, share="(0, 1)", requests="[1, inf)", seconds="(0, inf)")
        require(self, failures_at_most="[0, 1]", latency_at_most="(0, inf)")
        require(self, drift_at_most="(0, inf)", agrees_at_least="[0, 1]")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Retraining:
    """What `python -m launch.retrain` does: an experiment, trained on as data comes in.

    Attributes:
      experiment: what is trained; its data is `lsm.data.Files`, the old data, or `Texts` of it.
        New files are added to its split "train". Its `start` is for a first version alone: later
        ones go on from the one that serves.
      gates: what a version must pass to be published.
      split: the fixed set on which versions are measured, of the old data; no part of "train".
      recent: of the new files, how many of the newest are trained on; None is all.
      metrics: further figures for the gates.
      canary: how it is tried with a server.
      settle: seconds for which a file must not have changed to be taken as whole.
      marker: ending of an empty file beside a new one that says that this is whole, ".done"; with
        it, `settle` does not count. None waits for none.
    """

    experiment: Experiment
    gates: tuple[Bound | NoWorse, ...]
    split: Literal["validation", "test"] = "test"
    recent: int | None = None
    metrics: tuple[Metric, ...] = ()
    canary: Canary = Canary()
    settle: float = 60.0
    marker: str | None = None

    @property
    def files(self) -> Files:
        """The old data's files, of texts as well."""
        source = self.experiment.data.source
        return source.source if isinstance(source, Texts) else source

    def on(self, folder: pathlib.Path) -> Experiment:
        """Returns the experiment with its data in `folder`."""
        data, files = self.experiment.data, dataclasses.replace(self.files, path=str(folder))
        if isinstance(data.source, Texts):
            files = dataclasses.replace(data.source, source=files)
        return dataclasses.replace(self.experiment, data=dataclasses.replace(data, source=files))

    def __post_init__(self):
        require(self, recent="[1, inf)", settle="[0, inf)")
        if not self.gates:
            raise ConfigError("Retraining.gates: none given; one or more are needed.")
        data = self.experiment.data
        if not isinstance(self.files, Files):
            raise ConfigError(
                f"Retraining.experiment: its data is {data.source}; lsm.data.Files is needed, to "
                "which new files can be added, or Texts of it."
            )
        words = data.source.vocabulary if isinstance(data.source, Texts) else None
        if words is not None and not (isinstance(words, Subwords) and words.path):
            raise ConfigError(
                f"Retraining.experiment: {type(words).__name__} is learnt from the data, of which "
                "the new would give ids another meaning; Subwords(path=FOLDER) is needed, which "
                "`python -m lsm.data.tokenize train` writes."
            )
        fixed = getattr(data, self.split)
        named = names(fixed) if isinstance(fixed, str) else []
        if not named or {"train", "all"}.intersection(named) or "all" in names(data.train):
            raise ConfigError(
                f"Retraining.split: data.{self.split} is {fixed!r}; a split of its own is needed, "
                "such as 'test': one that new data does not change."
            )
