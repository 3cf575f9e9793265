"""The worked optimiser examples that lsm's source articles print: claimed and true.

The articles' figures and formulas are largely wrong. Each test states the claimed value, shows that
it is not what the formula gives where it is not, and holds lsm to the true one.
"""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lsm.durations import Horizon
from lsm.losses import half_squared_error, squared_error
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


# "One gradient step": prediction 5, target 6, theta 1, learning rate 0.1.


@pytest.mark.parametrize(
    ("error", "predict", "true"),
    [
        (squared_error, lambda theta: 4 + theta, 1.2),  # d prediction / d theta = 1, no half
        (half_squared_error, lambda theta: 4 + theta, 1.1),  # the article's own MSE has the half
        (squared_error, lambda theta: 5 * theta, 2.0),  # its own model, theta x with x = 5
        (half_squared_error, lambda theta: 5 * theta, 1.5),
    ],
    ids=["1/N, slope 1", "1/2N, slope 1", "1/N, theta x", "1/2N, theta x"],
)
def test_one_gradient_step_claimed_1_2_true_where_the_slope_is_1_and_there_is_no_half(
    error, predict, true
):
    assert predict(1.0) == 5
    gradient = jax.grad(lambda theta: error(predict(theta), 6.0))(1.0)
    assert steps(SGD(learning_rate=0.1), 1.0, [gradient]) == pytest.approx([true])


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


# The formulas, quoted as they are printed. Theta starts at 1, the learning rate is 0.1.


def test_momentum_printed_theta_minus_alpha_grad_plus_beta_v_holds_if_v_is_the_last_update():
    """theta <- theta - alpha grad + beta v."""
    grads, alpha, beta = (-2, -2, 1), 0.1, 0.9
    velocity, theta, as_velocity = 0.0, 1.0, []
    for g in grads:
        velocity = beta * velocity + g  # What the articles accumulate: it points uphill.
        theta = theta - alpha * g + beta * velocity
        as_velocity.append(theta)
    update, theta, as_update = 0.0, 1.0, []
    for g in grads:
        update = -alpha * g + beta * update
        theta += update
        as_update.append(theta)
    true = steps(Momentum(learning_rate=alpha, momentum=beta), 1.0, grads)
    assert as_update == pytest.approx(true)
    assert true[0] > 1 > as_velocity[0], "the gradient is negative, so theta must grow"


def test_adagrad_printed_without_eps_divides_zero_by_zero_true_stands_still():
    """G <- G + grad^2;  theta <- theta - alpha grad / sqrt(G)."""

    def printed(grads):
        total, theta = np.float64(0), 1.0
        for g in grads:
            total += g**2
            theta -= 0.1 * g / np.sqrt(total)
        return theta

    adagrad = Adagrad(learning_rate=0.1)
    assert steps(adagrad, 1.0, [-2, -2, -2])[-1] == pytest.approx(printed([-2, -2, -2]))
    with np.errstate(invalid="ignore"):
        assert np.isnan(printed([0]))  # A unit that was not active, or a word not in the batch.
    assert steps(adagrad, 1.0, [0, -2]) == pytest.approx([1, 1.1])


def test_rmsprop_printed_with_a_sum_and_minus_eps_in_the_root_true_keeps_its_pace():
    """E <- E + grad^2;  theta <- theta - alpha grad / sqrt(E - eps)."""

    def printed(grads, eps=1e-8):
        total, theta = np.float64(0), [1.0]
        for g in grads:
            total += g**2
            theta.append(theta[-1] - 0.1 * g / np.sqrt(total - eps))
        return np.array(theta)

    grads = [-2] * 100
    pace = np.diff(printed(grads))
    assert pace[-1] == pytest.approx(pace[0] / 10)  # A sum makes it Adagrad: 1 / sqrt(t).
    pace = np.diff(steps(RMSProp(learning_rate=0.1), 1.0, grads))
    assert pace[-1] == pytest.approx(0.1, rel=1e-4)  # The average of g^2 is g^2 in the end.
    small = 1e-5  # Its square is below eps.
    with np.errstate(invalid="ignore"):
        assert np.isnan(printed([small])[-1])
    outside = steps(RMSProp(learning_rate=0.1), 1.0, [small])
    assert outside == pytest.approx([1 - 0.1 * small / (np.sqrt(0.1) * small + 1e-8)], rel=1e-6)
    inside = steps(RMSProp(learning_rate=0.1, eps_in_root=True), 1.0, [small])
    assert inside == pytest.approx([1 - 0.1 * small / np.sqrt(0.1 * small**2 + 1e-8)], rel=1e-6)


def test_adam_printed_without_v_and_with_both_corrections_below_true_does_not_see_the_scale():
    """theta <- theta - alpha m / ((1 - beta1^t) (1 - beta2^t))."""

    def printed(g):
        m = 0.1 * g
        return 1 - 0.1 * m / ((1 - 0.9) * (1 - 0.999))

    assert [printed(-2), printed(-20)] == pytest.approx([201, 2001])
    true = [steps(Adam(learning_rate=0.1), 1.0, [g])[0] for g in (-2, -20)]
    assert true == pytest.approx([1.1, 1.1])


# A7: prediction theta x, x = 1 2 3, y = 2 3 4, theta starts at 0, learning rate 0.1, mean squared
# error.


def a7_loss(theta):
    x, y = jnp.array([1.0, 2.0, 3.0]), jnp.array([2.0, 3.0, 4.0])
    return jnp.mean((theta * x - y) ** 2)


CLAIMED_A7 = [0, -2.8 / 3, -207.44 / 27, -6315.765 / 729]  # -8.66 in the text


def test_a7_start_claimed_loss_14_thirds_true_29_thirds_gradient_minus_40_thirds():
    # 14/3 is the mean of x^2: the targets were left out.
    assert np.mean(np.square([1, 2, 3])) == pytest.approx(14 / 3)
    assert float(a7_loss(0.0)) == pytest.approx(29 / 3)
    assert float(jax.grad(a7_loss)(0.0)) == pytest.approx(-40 / 3)


def test_a7_step_by_step_claimed_minus_0_93_minus_7_68_minus_8_66_true_1_33_1_42_1_43():
    exact = [Fraction(0)]
    for _ in range(3):
        slope = sum(2 * x * (exact[-1] * x - y) for x, y in zip((1, 2, 3), (2, 3, 4), strict=True))
        exact.append(exact[-1] - Fraction(1, 10) * slope / 3)
    assert exact == [0, Fraction(4, 3), Fraction(64, 45), Fraction(964, 675)]
    assert [float(theta) for theta in exact[1:]] == pytest.approx(
        [1.333333, 1.422222, 1.428148], abs=1e-6
    )
    assert descend(0.1, a7_loss, 0.0, 3) == pytest.approx([float(theta) for theta in exact])
    # The claims go against the gradient, and further up at every step.
    assert CLAIMED_A7[-1] == pytest.approx(-8.66, abs=0.005)
    claimed = [float(a7_loss(theta)) for theta in CLAIMED_A7]
    assert claimed == sorted(claimed)
    true = [float(a7_loss(float(theta))) for theta in exact]
    assert true == sorted(true, reverse=True)


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
