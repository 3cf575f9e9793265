"""What a chain is, as a value: links that each make a run of a run, and what they may cost."""

import abc
import dataclasses
import pathlib
import shutil
from typing import Literal

from lsm.checks import require, require_choice
from lsm.config.experiment import COSMETIC
from lsm.config.origin import CONFIG
from lsm.errors import ConfigError


def _bound():
    # Another bound is no other chain: what is made is looked at again.
    return dataclasses.field(default=None, metadata=COSMETIC)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Link(abc.ABC):
    """A step of a chain: makes a run of another.

    Attributes:
      loses_at_most: points of the metric (hundredths) that the result may be worse than what the
        chain began with; None is any.
      size_at_most: its bytes, as a share of those at the beginning.
      latency_at_most: its time for a batch, of 1 and of 32, as a share likewise.
    """

    loses_at_most: float | None = _bound()
    size_at_most: float | None = _bound()
    latency_at_most: float | None = _bound()

    def __post_init__(self):
        require(self, loses_at_most="(-inf, inf)", size_at_most="(0, inf)")
        require(self, latency_at_most="(0, inf)")

    @abc.abstractmethod
    def run(
        self, source: pathlib.Path, out: pathlib.Path, first: pathlib.Path, data_dir: str | None
    ) -> None:
        """Makes a run in `out`; called again after an interruption, it makes what is left.

        Args:
          source: workdir of the run that the last link has made.
          out: folder, new or with what an interruption has left.
          first: workdir of what the chain began with.
          data_dir: where datasets are prepared; None is TFDS's own place.
        """


@dataclasses.dataclass(frozen=True, kw_only=True)
class Derived(Link):
    """A link that computes a model of another in one go: interrupted, it begins again."""

    def run(
        self, source: pathlib.Path, out: pathlib.Path, first: pathlib.Path, data_dir: str | None
    ) -> None:
        """See `Link.run`."""
        if (out / CONFIG).exists():  # which is written last
            return
        shutil.rmtree(out, ignore_errors=True)
        self.make(source, out, data_dir)

    @abc.abstractmethod
    def make(self, source: pathlib.Path, out: pathlib.Path, data_dir: str | None) -> None:
        """Writes the new run, by `lsm.train.derived.write_run`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """A chain of links, and what each result is measured by.

    Attributes:
      links: in their order.
      split: what accuracy is measured on, all of it.
      metric: figure of the task that counts.
      better: whether a lower or a higher value of it is better; None goes by its name, as
        `lsm.Evaluation.better` does.
      floor: value of the metric that no link may end below; above, where a lower one is better.
      export: whether the last result is exported, as `lsm.export` does, to "export" in the folder
        of the chain.
    """

    links: tuple[Link, ...]
    split: Literal["validation", "test"] = "validation"
    metric: str = "accuracy"
    better: Literal["lower", "higher"] | None = _bound()
    floor: float | None = _bound()
    export: bool = dataclasses.field(default=False, metadata=COSMETIC)

    def __post_init__(self):
        require(self, floor="(-inf, inf)")
        require_choice(self, "split", "validation", "test")
        if self.better is not None:
            require_choice(self, "better", "lower", "higher")
        if not self.links:
            raise ConfigError("Recipe.links: none given; one or more are needed.")
