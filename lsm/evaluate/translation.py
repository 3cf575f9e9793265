"""How near texts are to those that people wrote."""

import dataclasses
import logging
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from lsm.errors import ConfigError, DataError
from lsm.evaluate.base import Arrays, Metric, take

_log = logging.getLogger("lsm.evaluate")


@dataclasses.dataclass(frozen=True)
class Bleu(Metric):
    """BLEU of a corpus, 0 to 100 (Papineni et al. 2002), as sacreBLEU computes it.

    Texts are compared as they are, with case, after sacreBLEU's own tokenisation; its signature,
    which makes figures comparable (Post 2018, arXiv:1804.08771), is logged.

    Attributes:
      reference: column with the raw text of the reference: UTF-8 in uint8 (N, bytes), 0 behind it.
      names: of the tokens, with a method `text` that puts them together; those that the data has.
    """

    reference: str = "en_bytes"
    names: Any = dataclasses.field(default=None, repr=False)

    @property
    def columns(self) -> tuple[str, ...]:
        """See `Metric.columns`."""
        return (self.reference,)

    def told(self, classes: Sequence[str]) -> "Bleu":
        """See `Metric.told`."""
        return dataclasses.replace(self, names=classes) if self.names is None else self

    def init(self) -> tuple:
        """Returns (): (text, reference) of each example will follow."""
        return ()

    def update(self, accumulator: tuple, predictions: Arrays, batch: Arrays) -> tuple:
        """See `Metric.update`; reads "tokens" (N, T) and "length" (N,) of the predictions."""
        references = take(batch, self.reference, "Bleu.reference")
        if references.dtype != np.uint8 or references.ndim != 2:
            raise DataError(
                f"Bleu.reference: {references.dtype} {references.shape} given; texts as uint8 (N, "
                "bytes) are needed."
            )
        if not hasattr(self.names, "text"):
            raise DataError("Bleu: the names of the data's tokens have no method `text`.")
        tokens, lengths = (take(predictions, name, "Bleu") for name in ("tokens", "length"))
        texts = [self.names.text(row[:n]) for row, n in zip(tokens, lengths, strict=True)]
        said = [bytes(row).rstrip(b"\0").decode() for row in references]
        return (*accumulator, *zip(texts, said, strict=True))

    def compute(self, accumulator: tuple) -> dict[str, float]:
        """Returns "bleu".

        Raises:
          ConfigError: sacreBLEU is not there.
        """
        try:
            from sacrebleu.metrics import BLEU
        except ImportError as error:
            raise ConfigError("Bleu: sacreBLEU is missing; see lsm[translation].") from error
        if not accumulator:
            return {"bleu": math.nan}
        bleu = BLEU()
        texts, references = zip(*accumulator, strict=True)
        score = bleu.corpus_score(list(texts), [list(references)]).score
        _log.info("BLEU %.2f, %s", score, bleu.get_signature())
        return {"bleu": score}
