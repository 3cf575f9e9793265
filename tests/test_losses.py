"""Losses and metrics against worked numbers and NumPy."""

import jax.numpy as jnp
import numpy as np
import pytest

from lsm import losses
from lsm.metrics import Weighted, accuracy, weigh

Y = np.array([0, 0, 1, 1, 1.0])
P = np.array([0.2, 0.4, 0.9, 0.8, 0.7])


def test_positive_cross_entropy_claimed_0_643_is_0_685179():
    loss_B = losses.binary_cross_entropy(jnp.log(P / (1 - P)), Y)
    assert weigh(loss_B, Y).sum == pytest.approx(0.685179, abs=1e-6)
    assert weigh(loss_B, Y).sum == pytest.approx(-np.log([0.9, 0.8, 0.7]).sum(), abs=1e-6)


def test_full_binary_cross_entropy_is_1_419149_and_0_283830():
    total = weigh(losses.binary_cross_entropy(jnp.log(P / (1 - P)), Y))
    assert total.sum == pytest.approx(1.419149, abs=1e-6)
    assert total.mean == pytest.approx(0.283830, abs=1e-6)


def test_half_squared_error_claimed_0_10_is_0_011():
    y, predicted = np.array([2, 4, 6, 8, 10.0]), np.array([2.1, 4.2, 6.1, 8.1, 10.2])
    assert weigh(losses.half_squared_error(predicted, y)).mean == pytest.approx(0.011, abs=1e-7)
    assert weigh(losses.squared_error(predicted, y)).mean == pytest.approx(0.022, abs=1e-7)


def test_a_label_that_is_no_class_has_a_loss_of_nan():
    loss_B = losses.softmax_cross_entropy(jnp.zeros((4, 3)), jnp.array([-1, 0, 2, 3]))
    np.testing.assert_array_equal(jnp.isnan(loss_B), [True, False, False, True])
    assert weigh(loss_B, jnp.array([0, 1, 1, 0])).mean == pytest.approx(np.log(3))


def test_hinge():
    loss_B = losses.hinge(jnp.array([2.0, 0.5, -1.0]), jnp.array([1, 1, 1]))
    np.testing.assert_allclose(loss_B, [0.0, 0.5, 2.0])


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_softmax_cross_entropy_is_numpys(smoothing):
    random = np.random.default_rng(0)
    logits_BxTxK, labels_BxT = random.normal(size=(4, 3, 7)), random.integers(0, 7, (4, 3))
    target = np.eye(7)[labels_BxT] * (1 - smoothing) + smoothing / 7
    log_p = logits_BxTxK - np.log(np.exp(logits_BxTxK).sum(-1, keepdims=True))
    found = losses.softmax_cross_entropy(jnp.array(logits_BxTxK), labels_BxT, smoothing)
    np.testing.assert_allclose(found, -(target * log_p).sum(-1), rtol=1e-5)


def test_weigh_ignores_a_nan_of_weight_zero():
    total = weigh(jnp.array([1.0, jnp.nan, 3.0]), jnp.array([1.0, 0.0, 2.0]))
    assert (total.sum, total.weight) == (7.0, 3.0)


def test_mean_of_nothing_is_zero():
    assert Weighted(jnp.float32(0), jnp.float32(0)).mean == 0


def test_accuracy_counts_weights():
    logits_BxK = jnp.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    total = accuracy(logits_BxK, jnp.array([0, 1, 1]), jnp.array([1.0, 1.0, 2.0]))
    assert (total.sum, total.weight) == (2.0, 4.0)
