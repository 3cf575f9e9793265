"""Losses and metrics against worked numbers and NumPy."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lsm import losses
from lsm.errors import DataError
from lsm.metrics import Weighted, accuracy, weigh

Y = np.array([0, 0, 1, 1, 1.0])
P = np.array([0.2, 0.4, 0.9, 0.8, 0.7])


# Worked numbers of the source articles: what they claim, and what is true.


def test_cross_entropy_claimed_0_643_true_0_685179():
    """-sum y ln p, which leaves the examples of class 0 out."""
    assert -np.sum(Y * np.log(P)) == pytest.approx(0.685179, abs=1e-6)
    loss_B = losses.binary_cross_entropy(jnp.log(P / (1 - P)), Y)
    assert weigh(loss_B, Y).sum == pytest.approx(0.685179, abs=1e-6)
    assert abs(weigh(loss_B, Y).sum - 0.643) > 0.04


def test_full_binary_cross_entropy_true_1_419149_and_0_283830():
    total = weigh(losses.binary_cross_entropy(jnp.log(P / (1 - P)), Y))
    assert total.sum == pytest.approx(1.419149, abs=1e-6)
    assert total.mean == pytest.approx(0.283830, abs=1e-6)


def test_logistic_loss_printed_without_brackets_goes_below_zero_true_both_terms_in_the_mean():
    """-1/N sum y ln p + (1 - y) ln(1 - p): minus and mean hold for the first term alone."""

    def printed(p):
        return -np.sum(Y * np.log(p)) / len(Y) + np.sum((1 - Y) * np.log(1 - p))

    assert printed(P) == pytest.approx(0.137036 - 0.733969, abs=1e-6)
    surer_and_wrong = np.where(Y == 0, 0.99, P)
    assert printed(surer_and_wrong) < printed(P) < 0, "the worse prediction has the lower loss"
    true = [
        weigh(losses.binary_cross_entropy(jnp.log(p / (1 - p)), Y)).mean
        for p in (P, surer_and_wrong)
    ]
    assert true[0] == pytest.approx(-np.mean(Y * np.log(P) + (1 - Y) * np.log(1 - P)), abs=1e-6)
    assert true[1] > true[0] > 0


def test_half_squared_error_claimed_0_10_true_0_011():
    """1/(2N) sum (y - predicted)^2."""
    y, predicted = np.array([2, 4, 6, 8, 10.0]), np.array([2.1, 4.2, 6.1, 8.1, 10.2])
    assert weigh(losses.half_squared_error(predicted, y)).mean == pytest.approx(0.011, abs=1e-7)
    assert weigh(losses.squared_error(predicted, y)).mean == pytest.approx(0.022, abs=1e-7)


def test_a_label_that_is_no_class_has_a_loss_of_nan():
    loss_B = losses.softmax_cross_entropy(jnp.zeros((4, 3)), jnp.array([-1, 0, 2, 3]))
    np.testing.assert_array_equal(jnp.isnan(loss_B), [True, False, False, True])
    assert weigh(loss_B, jnp.array([0, 1, 1, 0])).mean == pytest.approx(np.log(3))


def test_labels_that_are_no_whole_numbers_are_refused():
    """A label of 1.5 picks no class: the loss would be as if its logit were 0."""
    with pytest.raises(DataError, match=r"labels float32 \(2,\) for logits \(2, 3\): one integer"):
        losses.softmax_cross_entropy(jnp.ones((2, 3)), jnp.array([1.0, 1.5]))


def test_sparse_cross_entropy_claimed_for_multi_label_problems_true_one_label_an_example():
    logits_BxK = jnp.array([[2.0, 1.0, -1.0], [0.0, 3.0, 1.0]])
    sparse_B = losses.softmax_cross_entropy(logits_BxK, jnp.array([0, 1]))
    one_hot_BxK = np.eye(3)[[0, 1]]
    dense_B = -(one_hot_BxK * np.log(jax.nn.softmax(logits_BxK))).sum(-1)
    np.testing.assert_allclose(sparse_B, dense_B, rtol=1e-6)
    # Several labels an example are as many yes-or-no questions, one logit each.
    labels_BxK = np.array([[1, 1, 0], [0, 1, 1]])
    with pytest.raises(DataError, match=r"labels int64 \(2, 3\) for logits \(2, 3\).*one integer"):
        losses.softmax_cross_entropy(logits_BxK, labels_BxK)
    assert losses.binary_cross_entropy(logits_BxK, labels_BxK).shape == (2, 3)


def test_hinge():
    loss_B = losses.hinge(jnp.array([2.0, 0.5, -1.0]), jnp.array([1, 1, 1]))
    np.testing.assert_allclose(loss_B, [0.0, 0.5, 2.0])


@pytest.mark.parametrize(
    "loss",
    [losses.squared_error, losses.half_squared_error, losses.binary_cross_entropy, losses.hinge],
)
def test_targets_of_another_shape_are_refused_and_not_broadcast(loss):
    for predictions, targets in [((4, 1), (4,)), ((4,), (4, 1)), ((4, 3), (3,))]:
        with pytest.raises(DataError, match=rf"targets {re.escape(str(targets))} for predictions"):
            loss(jnp.ones(predictions), jnp.ones(targets))
    np.testing.assert_array_equal(
        loss(jnp.ones((4, 1)), 1.0), loss(jnp.ones((4, 1)), jnp.ones((4, 1)))
    )


@pytest.mark.parametrize("shape", [(3, 1), (1,), (), (3, 3)])
def test_labels_are_one_for_each_row_of_logits(shape):
    """(B, 1) would give (B, B) losses, and so would several labels an example where B is K."""
    with pytest.raises(DataError, match="one integer label for each row of logits"):
        losses.softmax_cross_entropy(jnp.ones((3, 3)), jnp.zeros(shape, int))


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
