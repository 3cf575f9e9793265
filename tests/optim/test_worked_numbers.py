"""The worked optimiser examples that lsm's source articles print: claimed and true.

The articles' figures and formulas are largely wrong. Each test states the claimed value, shows that
it is not what the formula gives where it is not, and holds lsm to the true one.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lsm.durations import Horizon
from lsm.optim import SGD, Adagrad, Adam, Momentum, RMSProp

HORIZON = Horizon(steps=100, batch_size=1, examples=1)


def steps(optimizer, theta, grads):
    """Returns theta after each of the given gradients."""
    transform = optimizer.make(HORIZON)
    params = {"theta": jnp.float32(theta)}
    state, seen = transform.init(params), []
    for g in grads:
        updates, state = transform.update({"theta": jnp.float32(g)}, state, params, value=0.0)
        params = optax.apply_updates(params, updates)
        seen.append(float(params["theta"]))
    return seen


def descend(learning_rate, loss, theta, n):
    """Returns theta before and after each of n steps of gradient descent by lsm's SGD."""
    transform = SGD(learning_rate=learning_rate).make(HORIZON)
    params = {"theta": jnp.asarray(theta, jnp.float32)}

    def step(carry, _):
        params, state = carry
        value, grads = jax.value_and_grad(lambda p: loss(p["theta"]))(params)
        updates, state = transform.update(grads, state, params, value=value)
        params = optax.apply_updates(params, updates)
        return (params, state), params["theta"]

    _, after = jax.lax.scan(step, (params, transform.init(params)), length=n)
    return np.concatenate([np.asarray(theta, np.float32)[None], after])


# "One gradient step": prediction 5, target 6, theta 1, learning rate 0.1, squared error.


def test_one_gradient_step_claimed_1_2_true_1_2():
    gradient = 2 * (5 - 6)  # d(prediction - target)^2 / d theta, with d prediction / d theta = 1
    assert steps(SGD(learning_rate=0.1), 1.0, [gradient]) == pytest.approx([1.2])


# "One Adam step": gradient -2, theta 1, learning rate 0.1, moments starting at 0.


def test_one_adam_step_without_bias_correction_claimed_1_38_true_1_316228():
    m, v = 0.1 * -2, 0.001 * (-2) ** 2
    theta = 1 - 0.1 * m / (np.sqrt(v) + 1e-8)
    assert theta == pytest.approx(1.316228, abs=1e-6)
    assert abs(theta - 1.38) > 0.06


def test_one_adam_step_as_published_claimed_1_38_true_1_1():
    # With its bias corrected the first step is the learning rate times the sign: m/(1-b1) = g and
    # v/(1-b2) = g^2.
    assert steps(Adam(learning_rate=0.1), 1.0, [-2]) == pytest.approx([1.1], abs=1e-6)


# The formulas. The gradients are all -2, theta starts at 1, the learning rate is 0.1.


def test_momentum_claimed_sign_moves_uphill_true_sign_downhill():
    velocity, claimed = 0.0, 1.0
    for g in (-2, -2):
        velocity = 0.9 * velocity - 0.1 * g
        claimed -= velocity  # The velocity already points downhill: it must be added.
    assert claimed == pytest.approx(1 - 0.2 - 0.38)
    true = steps(Momentum(learning_rate=0.1), 1.0, [-2, -2])
    assert true == pytest.approx([1 + 0.2, 1 + 0.2 + 0.38])


def test_adagrad_claimed_without_accumulator_keeps_its_pace_true_slows_down():
    claimed = 1.0
    for g in (-2, -2, -2):
        claimed -= 0.1 * g / np.sqrt(g**2 + 1e-10)
    assert claimed == pytest.approx(1.3)
    true = steps(Adagrad(learning_rate=0.1), 1.0, [-2, -2, -2])
    assert true == pytest.approx(1 + 0.1 * np.cumsum([1, 1 / np.sqrt(2), 1 / np.sqrt(3)]))


def test_rmsprop_claimed_minus_eps_under_the_root_is_nan_true_is_finite():
    g, eps = 1e-5, 1e-8
    v = 0.1 * g**2
    with np.errstate(invalid="ignore"):
        claimed = 1 - 0.1 * g / np.sqrt(np.float64(v - eps))
    assert np.isnan(claimed)
    outside = steps(RMSProp(learning_rate=0.1, eps=eps), 1.0, [g])
    assert outside == pytest.approx([1 - 0.1 * g / (np.sqrt(v) + eps)], rel=1e-6)
    inside = steps(RMSProp(learning_rate=0.1, eps=eps, eps_in_root=True), 1.0, [g])
    assert inside == pytest.approx([1 - 0.1 * g / np.sqrt(v + eps)], rel=1e-6)


def test_adam_claimed_wrong_denominator_depends_on_scale_true_does_not():
    # A wrong denominator shows by its scale. Without the root of v, say, the step shrinks as the
    # gradients grow; the published step does not change.
    def claimed(g):
        return 1 - 0.1 * g / (g**2 + 1e-8)

    assert claimed(-2) == pytest.approx(1.05)
    assert claimed(-20) == pytest.approx(1.005)
    true = [steps(Adam(learning_rate=0.1), 1.0, [g])[0] for g in (-2, -20)]
    assert true == pytest.approx([1.1, 1.1])


# A7: prediction theta x, x = 1 2 3, y = 2 3 4, theta 0, learning rate 0.1, mean squared error.


def a7_loss(theta):
    x, y = jnp.array([1.0, 2.0, 3.0]), jnp.array([2.0, 3.0, 4.0])
    return jnp.mean((theta * x - y) ** 2)


def test_a7_start_true_loss_29_thirds_gradient_minus_40_thirds():
    assert float(a7_loss(0.0)) == pytest.approx(29 / 3)
    assert float(jax.grad(a7_loss)(0.0)) == pytest.approx(-40 / 3)


def test_a7_trajectory_claimed_minus_2_8_thirds_and_minus_8_66_true_1_333_and_1_428():
    thetas = descend(0.1, a7_loss, 0.0, 3)
    assert thetas == pytest.approx([0, 1.333333, 1.422222, 1.428148], abs=1e-6)
    assert thetas[1] > 0 > -2.8 / 3  # The claim goes against the gradient's sign,
    assert a7_loss(-8.66) > 40 * a7_loss(0.0)  # and away from the optimum.


def test_a7_optimum_true_20_fourteenths():
    optimum = 20 / 14
    assert optimum == pytest.approx(1.428571, abs=1e-6)
    assert descend(0.1, a7_loss, 0.0, 30)[-1] == pytest.approx(optimum, abs=1e-6)


# A8: prediction theta_0 + theta_1 x, x = 1 .. 5, y = 2 x, start 0, learning rate 0.1.

X = np.arange(1.0, 6.0)


def a8_loss(theta):
    return jnp.mean((theta[0] + theta[1] * X - 2 * X) ** 2)


def test_a8_start_claimed_loss_2_true_44_gradient_minus_12_minus_44():
    assert float(a8_loss(jnp.zeros(2))) == pytest.approx(44)
    assert jax.grad(a8_loss)(jnp.zeros(2)).tolist() == pytest.approx([-12, -44])


def test_a8_first_step_claimed_0_2_0_2_true_1_2_4_4():
    assert descend(0.1, a8_loss, [0.0, 0.0], 1)[1] == pytest.approx([1.2, 4.4])


def test_a8_optimum_claimed_2_2_true_0_2_reached_at_rate_0_05():
    assert float(a8_loss(jnp.array([2.0, 2.0]))) == pytest.approx(4)
    assert float(a8_loss(jnp.array([0.0, 2.0]))) == 0
    assert descend(0.05, a8_loss, [0.0, 0.0], 1500)[-1] == pytest.approx([0, 2], abs=1e-4)


def test_a8_claimed_rate_0_1_diverges_true_limit_is_2_over_lambda_max():
    design_Nx2 = np.stack([np.ones(5), X], axis=1)
    limit = 2 / np.linalg.eigvalsh(2 / 5 * design_Nx2.T @ design_Nx2).max()
    assert limit == pytest.approx(0.0845, abs=5e-5)
    losses = {
        rate: float(a8_loss(descend(rate, a8_loss, [0.0, 0.0], 100)[-1]))
        for rate in (0.1, 1.01 * limit, 0.99 * limit, 0.05)
    }
    assert losses[0.1] > 1e6
    assert losses[1.01 * limit] > 44 > losses[0.99 * limit] > losses[0.05]
