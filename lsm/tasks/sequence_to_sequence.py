"""Sequence to sequence: a text is read and another written, as in translation."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from lsm import losses
from lsm.checks import require
from lsm.errors import ConfigError, DataError
from lsm.generate import Beam, beam_search
from lsm.metrics import Weighted, accuracy, weigh
from lsm.models import Mask
from lsm.models.experts import mixtures
from lsm.models.sequences import Sequences
from lsm.tasks.base import Batch, ModelState, Params, Rngs, Task
from lsm.tasks.language import with_perplexity
from lsm.tasks.texts import check_sequences, row_weights, sequences


@dataclasses.dataclass(frozen=True, kw_only=True)
class SequenceToSequence(Task):
    """Cross-entropy in nats of each target token, given the source and the target before it.

    The columns are token ids (B, S) and (B, T) with their lengths, "source_length" and
    "target_length" (B,). A target text begins with the token `begin` and ends with `end`.

    Attributes:
      model: a `lsm.models.EncoderDecoder`, or what has its methods.
      source: column with what is read.
      target: column with what is to be written.
      label_smoothing: share of the target spread over all tokens, in training only.
      search: how `predict` looks for a text.
      begin: token that the search begins with.
      end: token that ends a text.
    """

    unit: ClassVar[str] = "tokens"
    source: str = "source"
    target: str = "target"
    label_smoothing: float = 0.0
    search: Beam = Beam()
    begin: int = 2
    end: int = 3

    def __post_init__(self):
        require(self, label_smoothing="[0, 1)", begin="[0, inf)", end="[0, inf)")
        context, longest = getattr(self.model, "context", None), self.search.longest
        if context is not None and longest >= context:
            raise ConfigError(
                f"task.search.longest: {longest} tokens after the begin token, where "
                f"task.model.context is {context}."
            )

    def inputs(self, batch: Batch) -> tuple[Sequences, jax.Array]:
        """Returns the source, and the target tokens but for the last: (B, T - 1)."""
        # `get`, as `predict` can do without: what asks for its columns asks this.
        target_BxT = batch.get(self.target)
        source = sequences(batch, self.source, "task.source")
        return source, None if target_BxT is None else target_BxT[:, :-1]

    def forward(
        self,
        params: Params,
        model_state: ModelState,
        batch: Batch,
        rngs: Rngs,
        train: bool,
        step: jax.Array,
    ) -> tuple[jax.Array, ModelState]:
        """As `Task.forward`."""
        options = {}
        if mixtures(self.model):  # which padding would balance, and fill
            target = sequences(batch, self.target, "task.target")
            mask = Mask(causal=True, keys_BxS=target.real_BxT[:, 1:])  # of what has a target
            options["target_mask"] = mask
        return self.apply(params, model_state, self.inputs(batch), rngs, train, **options)

    def weights(self, batch: Batch, train: bool) -> jax.Array:
        """Returns the weights (B, T - 1) float32 of the targets: 0 behind a text's end."""
        real_BxT = sequences(batch, self.target, "task.target").real_BxT
        return real_BxT[:, 1:] * row_weights(batch)

    def metrics(
        self, outputs: jax.Array, batch: Batch, train: bool, step: jax.Array
    ) -> dict[str, Weighted]:
        """Returns "loss" and "accuracy" over target tokens.

        Where labels are smoothed, "cross_entropy" is the loss without that.
        """
        targets_BxT, weights_BxT = batch[self.target][:, 1:], self.weights(batch, train)
        loss = functools.partial(losses.softmax_cross_entropy, outputs, targets_BxT)
        found = {
            "loss": weigh(loss(self.label_smoothing if train else 0.0), weights_BxT),
            "accuracy": accuracy(outputs, targets_BxT, weights_BxT),
        }
        if train and self.label_smoothing:
            found["cross_entropy"] = weigh(loss(), weights_BxT)
        return found

    def summary(self, totals: Mapping[str, Weighted]) -> dict[str, float]:
        """Adds perplexity, the exponential of the mean loss, without smoothing."""
        means = super().summary(totals)
        return with_perplexity(means, "cross_entropy" if "cross_entropy" in means else "loss")

    def predict(
        self,
        params: Params,
        model_state: ModelState,
        batch: Batch,
        rngs: Rngs = MappingProxyType({}),
        step: jax.Array | int = 0,
    ) -> dict[str, jax.Array]:
        """Returns the text that `search` finds for each source; needs no target.

        "tokens" int32 (B, search.longest) has the end token last and 0 behind it, "length" int32
        (B,) counts it, "log_probability" float32 (B,) is of the whole text, in nats.
        """
        source = sequences(batch, self.source, "task.source")
        call = functools.partial(self.model.apply, {"params": params, **model_state})
        rows, mask = source.lengths_B.shape[0], Mask(keys_BxS=source.real_BxT)
        cache = self.model.cache(rows, self.search.longest + 1)
        begin_Bx1 = jnp.full((rows, 1), self.begin, jnp.int32)
        memory_BxSxD = call(source, method="encode")
        logits, cache = call(begin_Bx1, cache, mask, memory_BxSxD, method="decode")
        found = beam_search(
            lambda tokens, cache: call(tokens, cache, mask, method="decode"),
            logits[:, -1],
            cache,
            self.end,
            self.search,
        )
        return {
            "tokens": found.tokens_BxT,
            "length": found.length_B,
            "log_probability": found.log_probability_B,
        }

    def named(
        self, predictions: Mapping[str, np.ndarray], names: Sequence[str]
    ) -> dict[str, np.ndarray]:
        """Returns "text" (B,), where the names of the tokens know how to make one."""
        if not hasattr(names, "text"):
            return {}
        rows = zip(predictions["tokens"], predictions["length"], strict=True)
        return {"text": np.array([names.text(row[:length]) for row, length in rows], object)}

    def check(self, batch: Batch) -> None:
        """Raises DataError for missing columns, tokens that are none, or too long a text.

        Also where a target does not begin with `begin`, or none of several ends with `end`.
        """
        vocabulary = getattr(self.model, "vocabulary", None)
        context = getattr(self.model, "context", None)
        for field in ("source", "target"):
            name = getattr(self, field)
            check_sequences(batch, name, vocabulary, f"task.{field}")
            length = batch[name].shape[1] - (field == "target")
            if context is not None and length > context:
                raise DataError(
                    f"task.{field}: texts of {length} tokens where task.model.context is "
                    f"{context}; shorten the data's length or raise the context."
                )
        self._check_ends(np.asarray(batch[self.target]), np.asarray(batch[f"{self.target}_length"]))

    def _check_ends(self, tokens_BxT: np.ndarray, lengths_B: np.ndarray) -> None:
        tokens_BxT, lengths_B = tokens_BxT[lengths_B > 0], lengths_B[lengths_B > 0]
        if not len(lengths_B):
            return
        if (other := tokens_BxT[:, 0] != self.begin).any():
            raise DataError(
                f"task.begin: {self.begin} given, but a text in column {self.target!r} begins with "
                f"{tokens_BxT[other][0, 0]}."
            )
        last_B = tokens_BxT[np.arange(len(lengths_B)), lengths_B - 1]
        if (last_B != self.end).all():  # one alone may have been cut short
            raise DataError(
                f"task.end: {self.end} given, but no text in column {self.target!r} ends with it; "
                f"the first ends with {last_B[0]}."
            )
