"""Models: sizes from their papers and tutorials, values from PyTorch, causality, dtypes."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lsm import losses
from lsm.cpu import max_pool_2x2
from lsm.errors import ConfigError
from lsm.models import CNN, GPT, MLP, Transformer
from lsm.models.initializers import HE, LECUN, TORCH, XAVIER, Gaussian

TUTORIAL_CNN = CNN(
    widths=(32, 64, 64), convs=1, padding="VALID", batch_norm=False, head="flatten", hidden=(64,)
)
KEY = jax.random.key(0)


def parameters(model, x):
    return model.init(KEY, x)["params"]


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def test_tutorial_cnn_has_the_parameters_that_keras_prints():
    assert count(parameters(TUTORIAL_CNN, jnp.zeros((1, 32, 32, 3)))) == 122_570


def test_mlp_784_128_10_has_101_770_parameters():
    assert count(parameters(MLP(widths=(128,)), jnp.zeros((1, 28, 28, 1)))) == 101_770


@pytest.mark.slow
def test_gpt_at_nanogpts_cpu_setting_has_its_parameters():
    # 65 x 128 embedding (tied), 64 x 128 positions, 4 x (12 x 128^2 + 2 norms), 1 norm
    expected = 65 * 128 + 64 * 128 + 4 * (12 * 128**2 + 2 * 128) + 128
    assert count(parameters(GPT(vocabulary=65), jnp.zeros((1, 8), int))) == expected


def test_tutorial_cnn_equals_pytorch():
    torch = pytest.importorskip("torch", reason="PyTorch is the reference")
    variables = TUTORIAL_CNN.init(KEY, jnp.zeros((1, 32, 32, 3)))
    variables = jax.tree.map(lambda x: x + 0.01 * jax.random.normal(KEY, x.shape), variables)
    params = jax.tree.map(lambda x: torch.tensor(np.array(x)), variables["params"])
    x_BxHxWxC = np.random.default_rng(0).random((4, 32, 32, 3), np.float32)
    x = torch.tensor(x_BxHxWxC).permute(0, 3, 1, 2)
    for i in range(3):
        kernel, bias = params[f"Conv_{i}"]["kernel"], params[f"Bias_{i}"]["bias"]
        x = torch.conv2d(x, kernel.permute(3, 2, 0, 1), bias).relu()
        x = torch.max_pool2d(x, 2) if i < 2 else x
    x = x.permute(0, 2, 3, 1).flatten(1)
    x = (x @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"]).relu()
    expected = x @ params["Dense_1"]["kernel"] + params["Dense_1"]["bias"]
    np.testing.assert_allclose(TUTORIAL_CNN.apply(variables, x_BxHxWxC), expected, atol=1e-5)


def test_two_layers_by_hand_printed_gradients_wrong_those_of_jax_right():
    """y = W2 relu(W1 x + b1) + b2 by its printed formulas, checked by finite differences.

    Printed: the error of the output is (y - t) relu'(y), although the output is linear; and where
    the hidden activation h belongs stands the input x, in dW2 = error h^T (or in relu'(h), by
    which the error goes back to W1: both are wrong). All sizes are 3, so that both have shapes.
    """
    model = MLP(widths=(3,), outputs=3)
    random = np.random.default_rng(3)
    x_BxD, target_BxK = random.normal(size=(2, 4, 3)).astype(np.float32)
    params = jax.tree.map(lambda w: w + 0.3, parameters(model, x_BxD))

    def loss(params):
        return losses.half_squared_error(model.apply({"params": params}, x_BxD), target_BxK).sum()

    def slope(layer, name, place, step=1e-2):
        def moved(by):
            array = params[layer][name].at[place].add(by)
            return loss({**params, layer: {**params[layer], name: array}})

        return (moved(step) - moved(-step)) / (2 * step)

    def differences(layer, name):
        places = np.ndindex(params[layer][name].shape)
        return np.array([slope(layer, name, p) for p in places]).reshape(params[layer][name].shape)

    first, second = (jax.tree.map(np.asarray, params[f"Dense_{i}"]) for i in range(2))
    h_BxD = np.maximum(x_BxD @ first["kernel"] + first["bias"], 0)
    y_BxK = h_BxD @ second["kernel"] + second["bias"]
    assert (y_BxK < 0).any() and ((x_BxD > 0) != (h_BxD > 0)).any(), "else nothing would show"
    error = y_BxK - target_BxK
    back = (error @ second["kernel"].T) * (h_BxD > 0)
    right = {"Dense_0": x_BxD.T @ back, "Dense_1": h_BxD.T @ error}
    printed = {
        "Dense_0": x_BxD.T @ ((error @ second["kernel"].T) * (x_BxD > 0)),
        "Dense_1": x_BxD.T @ error,
    }
    with_relu_of_output = {
        "Dense_0": x_BxD.T @ (((error * (y_BxK > 0)) @ second["kernel"].T) * (h_BxD > 0)),
        "Dense_1": h_BxD.T @ (error * (y_BxK > 0)),
    }
    grads = jax.grad(loss)(params)
    for layer in right:
        found = differences(layer, "kernel")
        np.testing.assert_allclose(right[layer], found, atol=1e-2)
        np.testing.assert_allclose(grads[layer]["kernel"], right[layer], rtol=1e-4, atol=1e-5)
        for wrong in (printed, with_relu_of_output):
            assert abs(wrong[layer] - found).max() > 0.1
    np.testing.assert_allclose(grads["Dense_1"]["bias"], error.sum(0), rtol=1e-5)
    np.testing.assert_allclose(grads["Dense_0"]["bias"], back.sum(0), rtol=1e-5)


def test_max_pool_is_reduce_window_in_value_and_gradient():
    # 7 x 5: the odd row and column are dropped. Values of 0, 1 and 2 tie in most windows.
    x = jax.random.randint(KEY, (2, 7, 5, 3), 0, 3).astype(jnp.float32)

    def reference(x):
        return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")

    np.testing.assert_array_equal(max_pool_2x2(x), reference(x))
    gradient = jax.grad(lambda x: (max_pool_2x2(x) ** 2).sum())(x)
    np.testing.assert_array_equal(gradient, jax.grad(lambda x: (reference(x) ** 2).sum())(x))


def test_gpt_equals_a_numpy_transformer():
    model = GPT(vocabulary=11, context=6, transformer=Transformer(layers=2, heads=2, width=8))
    tokens_BxT = np.array([[1, 5, 3, 10, 0], [2, 2, 9, 4, 7]])
    variables = model.init(KEY, tokens_BxT)
    variables = jax.tree.map(lambda x: x + 0.1 * jax.random.normal(KEY, x.shape), variables)
    p = jax.tree.map(np.asarray, variables["params"])

    def norm(x, scale):
        x = x - x.mean(-1, keepdims=True)
        return scale * x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6)

    x = p["tokens"]["embedding"][tokens_BxT] + p["positions"][:5]
    for i in range(2):
        b = jax.tree.map(lambda leaf, i=i: leaf[i], p["blocks"])
        qkv = (norm(x, b["norm_1"]["scale"]) @ b["qkv"]["kernel"]).reshape(2, 5, 2, 3, 4)
        q, k, v = qkv.transpose(3, 0, 2, 1, 4)
        scores = np.where(np.tri(5), q @ k.swapaxes(-1, -2) / 2, -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        x = x + (weights @ v).transpose(0, 2, 1, 3).reshape(2, 5, 8) @ b["out"]["kernel"]
        h = norm(x, b["norm_2"]["scale"]) @ b["up"]["kernel"]
        h = 0.5 * h * (1 + np.tanh(np.sqrt(2 / np.pi) * (h + 0.044715 * h**3)))
        x = x + h @ b["down"]["kernel"]
    expected = norm(x, p["norm_f"]["scale"]) @ p["tokens"]["embedding"].T
    np.testing.assert_allclose(model.apply(variables, tokens_BxT), expected, atol=2e-5)


def test_gpt_does_not_see_the_future():
    model = GPT(vocabulary=11, context=8, transformer=Transformer(layers=2, width=16))
    tokens_BxT = jax.random.randint(KEY, (2, 8), 0, 11)
    variables = model.init(KEY, tokens_BxT)
    changed_BxT = tokens_BxT.at[:, 5:].add(1) % 11
    before, after = (model.apply(variables, t)[:, :5] for t in (tokens_BxT, changed_BxT))
    np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize(
    "model",
    [
        CNN(widths=(8, 16), dtype="bfloat16"),
        MLP(dtype="bfloat16"),
        GPT(vocabulary=11, transformer=Transformer(layers=2, width=16, dtype="bfloat16")),
    ],
)
def test_bfloat16_computes_in_it_and_keeps_float32_parameters(model):
    x = jnp.ones((2, 8), int) if isinstance(model, GPT) else jnp.ones((2, 8, 8, 3))
    variables = model.init(KEY, x)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    hlo = jax.jit(model.apply).lower(variables, x).as_text()
    products = [line for line in hlo.splitlines() if re.search("dot_general|convolution", line)]
    assert products and all("bf16" in line for line in products)


def test_heads_that_do_not_divide_the_width_are_refused():
    with pytest.raises(ConfigError, match="heads: 3 does not divide width 16"):
        Transformer(heads=3, width=16)


@pytest.mark.parametrize(
    ("init", "variance"),
    [
        (Gaussian(0.02), 0.02**2),
        (LECUN, 1 / 300),
        (HE, 2 / 300),
        (XAVIER, 2 / (300 + 500)),
        (TORCH, 1 / 3 / 300),
    ],
)
def test_initialisers_have_the_variance_of_their_papers(init, variance):
    draw = init(KEY, (300, 500), jnp.float32)
    assert float(draw.var()) == pytest.approx(variance, rel=0.02)
    assert abs(float(draw.mean())) < 0.02 * variance**0.5


def test_torch_initialiser_stays_within_pytorchs_bound():
    draw = TORCH(KEY, (300, 500), jnp.float32)
    assert float(abs(draw).max()) == pytest.approx(300**-0.5, rel=1e-3)
