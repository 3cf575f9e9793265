"""Tasks on the tokens of texts: a class for each, or where an answer starts and ends."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from lsm import losses
from lsm.checks import require_sizes
from lsm.errors import DataError
from lsm.metrics import Weighted, accuracy, weigh
from lsm.tasks.base import Batch
from lsm.tasks.columns import check_labels, column
from lsm.tasks.texts import OfTokens, row_weights


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenClassification(OfTokens):
    """Softmax cross-entropy of a class for each token, with accuracy, over those that count.

    A word's label stands at its first token; the others, as special tokens, have one below 0, and
    do not count. Nor does padding.

    Attributes:
      model: maps texts to logits (B, T, K).
      label: column with int labels (B, T) below K.
    """

    label: str = "label"

    def weights(self, batch: Batch, train: bool) -> jax.Array:
        """Returns the weights of tokens (B, T) float32."""
        labels_BxT = column(batch, self.label, "task.label")
        counts_BxT = (labels_BxT >= 0) & self.inputs(batch).real_BxT
        return counts_BxT.astype(jnp.float32) * row_weights(batch)

    def metrics(
        self, outputs: jax.Array, batch: Batch, train: bool, step: jax.Array
    ) -> dict[str, Weighted]:
        """Returns "loss" and "accuracy", over the tokens that count."""
        weights_BxT, labels_BxT = self.weights(batch, train), batch[self.label]
        # The loss of a label below 0 is NaN, and its gradient too, whatever its weight.
        labels_BxT = jnp.where(weights_BxT == 0, 0, labels_BxT)
        loss_BxT = losses.softmax_cross_entropy(outputs, labels_BxT)
        return {
            "loss": weigh(loss_BxT, weights_BxT),
            "accuracy": accuracy(outputs, labels_BxT, weights_BxT),
        }

    def predictions(self, outputs: jax.Array, batch: Batch) -> dict[str, jax.Array]:
        """Returns "label" (B, T) int32, the likeliest class of each token; -1 at padding."""
        labels_BxT = outputs.argmax(-1).astype(jnp.int32)
        return {"label": jnp.where(self.inputs(batch).real_BxT, labels_BxT, -1)}

    def check(self, batch: Batch) -> None:
        """Raises DataError for missing columns, or labels that the model has no outputs for."""
        super().check(batch)
        labels_BxT, texts = column(batch, self.label, "task.label"), self.inputs(batch)
        if labels_BxT.shape != texts.tokens_BxT.shape:
            raise DataError(
                f"task.label: labels {labels_BxT.shape} for tokens {texts.tokens_BxT.shape}; one "
                "for each token is needed, below 0 where it does not count."
            )
        counts_BxT = (labels_BxT >= 0) & np.asarray(texts.real_BxT)
        check_labels(labels_BxT[counts_BxT], getattr(self.model, "outputs", None), "task.label")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spans(OfTokens):
    """Where the answer to a question stands in a text: its first and last token (SQuAD).

    The loss is the mean of the cross-entropies of both, in nats, over the tokens that are no
    padding. A question without an answer has both at 0, the first token (arXiv:1810.04805).

    Attributes:
      model: maps texts to logits (B, T, 2), of start and end: `TokenClassifier(encoder)`.
      start: column with positions (B,), the first token of the answer.
      end: column with positions (B,), its last token, itself among them.
      longest: most tokens of an answer that is predicted.
    """

    start: str = "start"
    end: str = "end"
    longest: int = 30

    def __post_init__(self):
        require_sizes(self, "longest")

    def metrics(
        self, outputs: jax.Array, batch: Batch, train: bool, step: jax.Array
    ) -> dict[str, Weighted]:
        """Returns "loss", "exact_match" and "f1", the overlap of tokens, over answers."""
        real_BxT, weights_B = self.inputs(batch).real_BxT, self.weights(batch, train)
        starts_B, ends_B = (column(batch, name, "task.start") for name in (self.start, self.end))
        # What is no text could not be said, and must not share in the sum.
        logits_BxTx2 = jnp.where(real_BxT[..., None], outputs.astype(jnp.float32), -1e30)
        loss_B = losses.softmax_cross_entropy(logits_BxTx2[..., 0], starts_B)
        loss_B += losses.softmax_cross_entropy(logits_BxTx2[..., 1], ends_B)
        said = self.predictions(outputs, batch)
        exact_B = (said["start"] == starts_B) & (said["end"] == ends_B)
        f1_B = overlap(said["start"], said["end"], starts_B, ends_B)
        return {
            "loss": weigh(loss_B / 2, weights_B),
            "exact_match": weigh(exact_B, weights_B),
            "f1": weigh(f1_B, weights_B),
        }

    def predictions(self, outputs: jax.Array, batch: Batch) -> dict[str, jax.Array]:
        """Returns "start" and "end" (B,) int32, and "score" (B,), the logarithm of how likely.

        Of all spans of at most `longest` tokens that end where they start or later the likeliest;
        of pairs of texts, in the second; or both 0, for no answer.
        """
        texts, t = self.inputs(batch), outputs.shape[1]
        may_BxT = texts.real_BxT & (jnp.arange(t) > 0)
        if texts.types_BxT is not None:
            may_BxT &= texts.types_BxT == 1
        outputs = jnp.where(texts.real_BxT[..., None], outputs.astype(jnp.float32), -1e30)
        start_BxT, end_BxT = jnp.moveaxis(jax.nn.log_softmax(outputs, axis=1), -1, 0)
        start_T, end_T = jnp.arange(t)[:, None], jnp.arange(t)
        span_TxT = (start_T <= end_T) & (end_T < start_T + self.longest)
        span_BxTxT = span_TxT & may_BxT[:, :, None] & may_BxT[:, None]
        span_BxTxT = span_BxTxT.at[:, 0, 0].set(True)
        score_BxTxT = start_BxT[:, :, None] + end_BxT[:, None]
        score_BxN = jnp.where(span_BxTxT, score_BxTxT, -jnp.inf).reshape(-1, t * t)
        best_B = score_BxN.argmax(-1).astype(jnp.int32)
        return {"start": best_B // t, "end": best_B % t, "score": score_BxN.max(-1)}

    def check(self, batch: Batch) -> None:
        """Raises DataError for missing columns, or answers outside their texts."""
        super().check(batch)
        starts_B = column(batch, self.start, "task.start")
        ends_B = column(batch, self.end, "task.end")
        lengths_B = self.inputs(batch).lengths_B
        for field, at_B in (("start", starts_B), ("end", ends_B)):
            check_labels(at_B, None, f"task.{field}")
        wrong_B = (starts_B < 0) | (ends_B < starts_B) | (ends_B >= lengths_B)
        if "weight" in batch:  # what has no weight may hold anything
            wrong_B &= np.asarray(batch["weight"]) != 0
        if wrong_B.any():
            row = int(wrong_B.argmax())
            raise DataError(
                f"task.start: an answer from {starts_B[row]} to {ends_B[row]} in a text of "
                f"{lengths_B[row]} tokens; 0 <= start <= end < length is needed, and 0 to 0 for "
                "none. Texts that are cut lose answers: give those as none, or cut them elsewhere."
            )


def overlap(
    starts_B: jax.Array, ends_B: jax.Array, true_starts_B: jax.Array, true_ends_B: jax.Array
) -> jax.Array:
    """Returns the F1 (B,) of the tokens of spans: 2 x shared / (tokens of one + of the other)."""
    shared_B = jnp.minimum(ends_B, true_ends_B) - jnp.maximum(starts_B, true_starts_B) + 1
    both_B = (ends_B - starts_B + 1) + (true_ends_B - true_starts_B + 1)
    return 2 * jnp.maximum(shared_B, 0) / both_B
