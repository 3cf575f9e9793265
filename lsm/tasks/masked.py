"""Masked language modelling: predict the tokens of a text that are hidden."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lsm import losses
from lsm.checks import require
from lsm.errors import ConfigError, DataError
from lsm.metrics import Weighted, accuracy, weigh
from lsm.tasks.base import Batch, ModelState, Params, Rngs
from lsm.tasks.columns import column
from lsm.tasks.language import with_perplexity
from lsm.tasks.texts import OfTokens, row_weights

WORDS = "_words"
"""A column of tokens NAME (B, T) may have in NAME_words (B, T) which word each token is of."""


class Hidden(NamedTuple):
    """What the model says of the tokens that are hidden, and what they are.

    Attributes:
      logits_BxPxV: of P positions in each text.
      targets_BxP: int, the tokens that stood there.
      weights_BxP: float32, 0 where fewer than P tokens are hidden.
    """

    logits_BxPxV: jax.Array
    targets_BxP: jax.Array
    weights_BxP: jax.Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskedLanguageModelling(OfTokens):
    """Cross-entropy of hidden tokens in nats, with accuracy and perplexity (arXiv:1810.04805).

    Of each text of n tokens round(rate x n) are hidden, at least one; 80 % become the mask, 10 %
    any token, 10 % stay. Where the data has the column NAME_words, whole words are, in random
    order, as long as they fit into that number: none, where each is longer. The stream "mask"
    draws anew in each step; in evaluation it goes by the number of the batch, so that evaluations
    compare.

    As a text has at most ceil(rate x T) hidden tokens, logits are made of so many positions alone,
    which loses none of them: of T positions they would be most of the memory and the time.

    Attributes:
      model: `lsm.models.MaskedLM`, or another with its methods `features` and `logits`.
      mask: id of the token that hides another.
      special: ids that are never hidden, such as those that begin and end a text.
      rate: share of a text that is hidden.
    """

    unit: ClassVar[str] = "hidden_tokens"
    mask: int
    special: tuple[int, ...] = ()
    rate: float = 0.15

    def __post_init__(self):
        require(self, rate="(0, 1)", mask="[0, inf)")
        if not hasattr(self.model, "features"):
            raise ConfigError(
                f"task.model: {type(self.model).__name__} has no method `features`; "
                "lsm.models.MaskedLM has."
            )

    @property
    def streams(self) -> tuple[str, ...]:
        """Those of the model, and "mask"."""
        return (*super().streams, "mask")

    def forward(
        self,
        params: Params,
        model_state: ModelState,
        batch: Batch,
        rngs: Rngs,
        train: bool,
        step: jax.Array,
    ) -> tuple[Hidden, ModelState]:
        """As `Task.forward`. It hides the tokens too: evaluation has no `augment`."""
        texts, (pick, change) = self.inputs(batch), jax.random.split(rngs["mask"])
        hidden_BxT = hide(pick, self._words(batch), self.rate)
        tokens_BxT = self._changed(change, texts.tokens_BxT, hidden_BxT)
        texts = texts._replace(tokens_BxT=tokens_BxT)
        features_BxTxD, changed = self.apply(params, model_state, texts, rngs, train, "features")
        most = math.ceil(self.rate * hidden_BxT.shape[1])
        hidden_BxP, at_BxP = jax.lax.top_k(hidden_BxT.astype(jnp.float32), most)
        logits_BxPxV = self.model.apply(
            {"params": params, **model_state},
            jnp.take_along_axis(features_BxTxD, at_BxP[..., None], axis=1),
            method="logits",
        )
        targets_BxP = jnp.take_along_axis(self.inputs(batch).tokens_BxT, at_BxP, axis=1)
        return Hidden(logits_BxPxV, targets_BxP, hidden_BxP * row_weights(batch)), changed

    def metrics(
        self, outputs: Hidden, batch: Batch, train: bool, step: jax.Array
    ) -> dict[str, Weighted]:
        """Returns "loss" and "accuracy", over hidden tokens."""
        loss_BxP = losses.softmax_cross_entropy(outputs.logits_BxPxV, outputs.targets_BxP)
        return {"loss": weigh(loss_BxP, outputs.weights_BxP), "accuracy": accuracy(*outputs)}

    def summary(self, totals: Mapping[str, Weighted]) -> dict[str, float]:
        """Adds perplexity, the exponential of the mean loss."""
        return with_perplexity(super().summary(totals))

    def predict(
        self,
        params: Params,
        model_state: ModelState,
        batch: Batch,
        rngs: Rngs = MappingProxyType({}),
        step: jax.Array | int = 0,
    ) -> dict[str, jax.Array]:
        """Returns "token" (B, T) int32: the text, with the likeliest token for each mask in it.

        Nothing else is hidden.
        """
        texts = self.inputs(batch)
        features_BxTxD, _ = self.apply(params, model_state, texts, rngs, False, "features")

        def likeliest(features_BxD: jax.Array) -> jax.Array:
            variables = {"params": params, **model_state}
            logits_BxV = self.model.apply(variables, features_BxD, method="logits")
            return logits_BxV.argmax(-1).astype(jnp.int32)

        # A position after the other: (B, T, V) never exists whole.
        said_TxB = jax.lax.map(likeliest, features_BxTxD.swapaxes(0, 1))
        filled_BxT = texts.real_BxT & (texts.tokens_BxT == self.mask)
        return {"token": jnp.where(filled_BxT, said_TxB.T, texts.tokens_BxT)}

    def named(
        self, predictions: Mapping[str, np.ndarray], names: Sequence[str]
    ) -> dict[str, np.ndarray]:
        """Returns "text" (B,), the text of "token"."""

        def text(ids: np.ndarray) -> str:
            return " ".join(names[k] for k in ids if 0 <= k < len(names))

        rows = predictions["token"]
        return {"text": np.array([getattr(names, "text", text)(row) for row in rows])}

    def check(self, batch: Batch) -> None:
        """Raises DataError for missing columns, unknown tokens, or words that are none."""
        vocabulary = getattr(self.model, "vocabulary", None)
        super().check(batch)
        for field, ids in (("mask", (self.mask,)), ("special", self.special)):
            if vocabulary is not None and any(not 0 <= k < vocabulary for k in ids):
                raise ConfigError(f"task.{field}: {ids} given; the vocabulary has {vocabulary}.")
        shape = column(batch, self.tokens, "task.tokens").shape
        given = batch.get(self.tokens + WORDS, np.zeros(shape)).shape
        if given != shape:
            words = self.tokens + WORDS
            raise DataError(f"task.tokens: column {words!r} is {given} for tokens {shape}.")

    def _words(self, batch: Batch) -> jax.Array:
        """Returns the word of each token (B, T); -1 of those that are never hidden."""
        texts = self.inputs(batch)
        each_BxT = jnp.broadcast_to(jnp.arange(texts.tokens_BxT.shape[1]), texts.tokens_BxT.shape)
        words_BxT = batch.get(self.tokens + WORDS, each_BxT)
        # Numbers may begin anew in the second text of a pair: here they go on.
        new_BxT = words_BxT != jnp.roll(words_BxT, 1, axis=1)
        if texts.types_BxT is not None:
            new_BxT |= texts.types_BxT != jnp.roll(texts.types_BxT, 1, axis=1)
        special_BxT = jnp.isin(texts.tokens_BxT, jnp.array((self.mask, *self.special)))
        may_BxT = texts.real_BxT & ~special_BxT & (words_BxT >= 0)
        return jnp.where(may_BxT, new_BxT.at[:, 0].set(True).cumsum(1) - 1, -1)

    def _changed(self, key: jax.Array, tokens_BxT: jax.Array, hidden_BxT: jax.Array) -> jax.Array:
        how, which = jax.random.split(key)
        share_BxT = jax.random.uniform(how, tokens_BxT.shape)
        any_BxT = jax.random.randint(which, tokens_BxT.shape, 0, self.model.vocabulary)
        other_BxT = jnp.where(share_BxT < 0.9, any_BxT, tokens_BxT)
        other_BxT = jnp.where(share_BxT < 0.8, self.mask, other_BxT)
        return jnp.where(hidden_BxT, other_BxT, tokens_BxT).astype(tokens_BxT.dtype)


def hide(key: jax.Array, words_BxT: jax.Array, rate: float) -> jax.Array:
    """Returns bool (B, T), True at the tokens of random words.

    Words come in random order as long as they fit into round(rate x n) tokens, or one where that
    is 0; n counts the tokens that have a word. A longer word than that is never among them.

    Args:
      key: of the draw.
      words_BxT: int in [0, T), the word of each token; below 0 where it is never hidden.
      rate: share of tokens.
    """
    known_BxT = words_BxT >= 0
    words_BxT, shape = jnp.where(known_BxT, words_BxT, 0), words_BxT.shape
    count_Bx1 = known_BxT.sum(1, keepdims=True)
    most_Bx1 = jnp.maximum(jnp.round(rate * count_Bx1), 1)
    rows_Bx1 = jnp.arange(shape[0])[:, None]
    sizes_BxW = jnp.zeros(shape, jnp.int32).at[rows_Bx1, words_BxT].add(known_BxT.astype(jnp.int32))
    may_BxW = (sizes_BxW > 0) & (sizes_BxW <= most_Bx1)
    order_BxW = jnp.argsort(jnp.where(may_BxW, jax.random.uniform(key, shape), 2.0))
    sizes_BxW = jnp.take_along_axis(jnp.where(may_BxW, sizes_BxW, 0), order_BxW, axis=1)
    fits_BxW = (sizes_BxW > 0) & (sizes_BxW.cumsum(1) <= most_Bx1)
    # Back in the order of the text.
    fits_BxW = jnp.zeros(shape, bool).at[rows_Bx1, order_BxW].set(fits_BxW)
    return known_BxT & jnp.take_along_axis(fits_BxW, words_BxT, axis=1)
