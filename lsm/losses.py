"""Losses per example, in float32; `lsm.metrics.weigh` turns them into (sum, weight).

Predictions and targets have one shape, else a DataError says so: they are never broadcast.
"""

import jax
import jax.numpy as jnp
import optax

from lsm.errors import DataError


def softmax_cross_entropy(
    logits_BxK: jax.Array, labels_B: jax.Array, label_smoothing: float = 0.0
) -> jax.Array:
    """Categorical cross-entropy in nats, one value an example; any leading dimensions.

    Args:
      logits_BxK: unnormalised log-probabilities over K classes, any float dtype.
      labels_B: int class numbers in [0, K); the loss of any other is NaN, which stops a run. Or
        float (B, K), the shares of the classes, which sum to 1.
      label_smoothing: share s of the target spread evenly over all K classes
        (Szegedy et al. 2016, arXiv:1512.00567): (1 - s) CE(y) + s mean_k CE(k).

    Raises:
      DataError: there is not one label for each row of logits, or shares like them.
    """
    if jnp.issubdtype(labels_B.dtype, jnp.floating) and jnp.shape(labels_B) == logits_BxK.shape:
        shares_BxK = optax.smooth_labels(labels_B.astype(jnp.float32), label_smoothing)
        return optax.softmax_cross_entropy(logits_BxK.astype(jnp.float32), shares_BxK)
    whole = jnp.issubdtype(labels_B.dtype, jnp.integer)
    if not whole or jnp.shape(labels_B) != logits_BxK.shape[:-1]:
        raise DataError(
            f"labels {labels_B.dtype} {jnp.shape(labels_B)} for logits {logits_BxK.shape}: one "
            "integer label for each row of logits, or a float share of each class, is needed; the "
            "last dimension of logits are the classes."
        )
    logits_BxK = logits_BxK.astype(jnp.float32)
    log_normalizer_B = jax.nn.logsumexp(logits_BxK, axis=-1)
    # A comparison, not a gather: classes that are split over devices stay where they are.
    is_label_BxK = labels_B[..., None] == jnp.arange(logits_BxK.shape[-1])
    picked_B = jnp.where(is_label_BxK, logits_BxK, 0).sum(-1)
    # Of a label that picks nothing the loss would else be as if its logit were 0.
    picked_B = jnp.where((labels_B >= 0) & (labels_B < logits_BxK.shape[-1]), picked_B, jnp.nan)
    if not label_smoothing:
        return log_normalizer_B - picked_B
    # The shares sum to 1, so the normaliser, which all CE(k) have, stands outside of them.
    target_B = (1 - label_smoothing) * picked_B + label_smoothing * logits_BxK.mean(-1)
    return log_normalizer_B - target_B


def _alike(predictions: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns float32 predictions and their targets, of one shape, or one target for all."""
    # (B, 1) and (B,) would make (B, B) without a word.
    if jnp.shape(targets) not in ((), jnp.shape(predictions)):
        raise DataError(
            f"targets {jnp.shape(targets)} for predictions {jnp.shape(predictions)}; the same "
            "shape is needed, or one number for all."
        )
    predictions = jnp.asarray(predictions).astype(jnp.float32)
    return predictions, jnp.broadcast_to(targets, predictions.shape)


def distillation(logits_BxK: jax.Array, teacher_BxK: jax.Array, temperature: float) -> jax.Array:
    """T^2 KL(teacher || student) at the temperature T, in nats (Hinton et al. 2015).

    Both softmaxes are of logits / T. With the factor T^2 gradients are of one size at any T
    (arXiv:1503.02531, section 2). One value an example; any leading dimensions.

    Raises:
      DataError: the two are not of the same shape.
    """
    both = _alike(logits_BxK, teacher_BxK.astype(jnp.float32))
    soft, targets = (jax.nn.log_softmax(x / temperature) for x in both)
    return temperature**2 * optax.losses.kl_divergence_with_log_targets(soft, targets)


def binary_cross_entropy(logits_B: jax.Array, labels_B: jax.Array) -> jax.Array:
    """Binary cross-entropy in nats from logits; labels are 0 or 1, or probabilities."""
    return optax.sigmoid_binary_cross_entropy(*_alike(logits_B, labels_B))


def squared_error(predictions: jax.Array, targets: jax.Array) -> jax.Array:
    """(prediction - target)^2 elementwise; its mean is the 1/N form of the MSE."""
    return optax.squared_error(*_alike(predictions, targets))


def half_squared_error(predictions: jax.Array, targets: jax.Array) -> jax.Array:
    """(prediction - target)^2 / 2 elementwise; its mean is the 1/2N form of the MSE."""
    return optax.l2_loss(*_alike(predictions, targets))


def hinge(scores_B: jax.Array, labels_B: jax.Array) -> jax.Array:
    """max(0, 1 - score * label) for labels of -1 or +1 (Cortes & Vapnik 1995)."""
    return optax.hinge_loss(*_alike(scores_B, labels_B))
