"""Models in whole numbers and models trained for it, against qwix's own and against each other."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lsm.config import schema
from lsm.errors import ConfigError
from lsm.models import (
    CNN,
    GPT,
    MLP,
    Airbench,
    Classifier,
    Lora,
    QuantisationAware,
    Quantised,
    ResNet,
    Sequences,
    Transformer,
    Views,
    ViT,
)
from lsm.models.families import minilm
from lsm.models.rounding import fake, integer_conv, integer_dot, to_int8
from lsm.params import flat

SLOW = pytest.mark.slow
RNG = np.random.default_rng(0)
ROWS = RNG.normal(size=(4, 32)).astype(np.float32)
PICTURES = RNG.normal(size=(2, 8, 8, 3)).astype(np.float32)
TOKENS = RNG.integers(0, 20, (2, 6)).astype(np.int32)
BLOCKS = Transformer(layers=2, heads=2, width=16, theta=1e4, norm="rms", mlp="swiglu")
GPT_ = GPT(vocabulary=20, transformer=BLOCKS, context=8)
MLP_ = MLP(widths=(16,), outputs=4)
CNN_ = CNN(widths=(8, 8), convs=1, batch_norm=False, outputs=4)


def held(model, params, x, state=None, **fields):
    """A `Quantised` model of these parameters, and its variables."""
    quantised = Quantised(model, **fields)
    shapes = jax.eval_shape(quantised.init, jax.random.key(0), x)
    axes = {
        path.removesuffix("_scale"): 0
        if path.endswith("embedding_scale")
        else flat(params)[path.removesuffix("_scale")].ndim - scale.ndim + 1
        for path, scale in flat(shapes["constants"]["quantised"]).items()
        if path.endswith("_scale")
    }
    params, whole = quantised.held(params, axes, {})
    return quantised, {"params": params, "constants": {"quantised": whole}, **(state or {})}


class Convolution(nn.Module):
    """Of Linen alone: qwix's model does not take lsm's convolution."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(4)(nn.relu(nn.Conv(8, (3, 3), strides=2)(x)).mean((1, 2)))


@pytest.fixture(scope="module")
def dense():
    return jax.jit(MLP_.init)(jax.random.key(0), ROWS)["params"]


def test_whole_numbers_lie_in_constants_and_the_rest_in_params(dense):
    quantised = Quantised(MLP_)
    variables = jax.jit(quantised.init)(jax.random.key(0), ROWS)
    assert {*flat(variables["params"])} == {"Dense_0/bias", "Dense_1/bias"}
    held = flat(variables["constants"]["quantised"])
    assert {path: str(x.dtype) for path, x in held.items()} == {
        f"Dense_{i}/{name}": dtype
        for i in "01"
        for name, dtype in (("kernel", "int8"), ("kernel_scale", "float32"))
    }
    assert schema.from_json(schema.to_json(quantised), Quantised) == quantised


# Of its model alone, which lsm does not use: of its products there is none.
@pytest.mark.filterwarnings("ignore:'VariableState' was removed:DeprecationWarning")
@pytest.mark.parametrize(
    ("model", "x"),
    [(MLP_, ROWS), pytest.param(Convolution(), PICTURES, marks=SLOW)],
    ids=["dense", "convolutions"],
)
def test_inputs_and_kernels_of_int8_say_what_qwix_s_model_says(model, x):
    qwix = pytest.importorskip("qwix", reason="qwix is the reference")
    params = jax.jit(model.init)(jax.random.key(0), x)["params"]
    rule = qwix.QuantizationRule(module_path=".*", weight_qtype="int8", act_qtype="int8")
    theirs = qwix.quantize_model(model, qwix.PtqProvider([rule]))
    shapes = jax.eval_shape(theirs.init, jax.random.key(0), x)["params"]
    expected = theirs.apply({"params": qwix.quantize_params(params, shapes)}, x)
    quantised, variables = held(model, params, x, activations="dynamic")
    found, plain = quantised.apply(variables, x), model.apply({"params": params}, x)
    # Their scale is a 127.5th of the largest number and ours a 127th: roundings differ.
    error = np.abs(np.asarray(expected) - plain).max()
    assert 0 < error < 0.05 and np.abs(np.asarray(found) - plain).max() < 3 * error
    assert np.abs(np.asarray(found) - expected).max() < 3 * error


def test_what_is_no_number_stays_none_where_inputs_are_calibrated():
    x = jnp.array([[jnp.nan, 1.0], [3.0, 1.0]])
    found = fake(x, (1,), jnp.array([2.0]))
    assert np.isnan(found[0]).all()
    np.testing.assert_allclose(found[1], [2.0, 1.0], atol=0.01)


def test_products_by_qwix_are_those_of_rounded_floats():
    pytest.importorskip("qwix", reason="qwix makes products of whole numbers")
    x, whole = (
        to_int8(jnp.asarray(ROWS), (-1,)),
        jnp.asarray(RNG.integers(-127, 128, (32, 5)), "i1"),
    )
    scale = jnp.asarray(RNG.random((1, 5)), "f4")
    expected = (np.asarray(x[0]) * np.float64(x[1])) @ (np.asarray(whole) * np.float64(scale))
    np.testing.assert_allclose(integer_dot(*x, whole, scale), expected, rtol=1e-5)
    x = to_int8(jnp.asarray(PICTURES), (1, 2, 3))
    whole = jnp.asarray(RNG.integers(-127, 128, (3, 3, 3, 5)), "i1")
    options = {"dimension_numbers": ("NHWC", "HWIO", "NHWC")}
    found = integer_conv(*x, whole, scale, (1, 1), "SAME", **options)
    floats = (x[0] * x[1], whole * scale.reshape(1, 1, 1, -1))
    expected = jax.lax.conv_general_dilated(*floats, (1, 1), "SAME", **options)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-3)


MODELS = {
    "mlp": (MLP_, ROWS),
    "gpt": (GPT_, TOKENS),
    "cnn": (CNN_, PICTURES),
    "airbench": (Airbench(widths=(16, 16, 16), outputs=4), np.tile(PICTURES, (1, 4, 4, 1))),
    "resnet": (ResNet(depths=(1, 1), width=16, outputs=4), np.tile(PICTURES, (1, 4, 4, 1))),
    "vit": (ViT(stem=4, transformer=dataclasses.replace(BLOCKS, theta=None), outputs=4), PICTURES),
    "bert": (
        Classifier(minilm(vocabulary=20, layers=2, heads=2, width=16)),
        Sequences(TOKENS, np.array([6, 4])),
    ),
}


@pytest.mark.parametrize("activations", [None, "dynamic"])
@pytest.mark.parametrize("weights", ["int8", "int4"])
@pytest.mark.parametrize(
    "name", ["mlp", *(pytest.param(name, marks=SLOW) for name in [*MODELS][1:])]
)
def test_a_model_trained_for_it_says_what_it_becomes(name, weights, activations):
    if activations:
        pytest.importorskip("qwix", reason="qwix makes products of whole numbers")
    model, x = MODELS[name]
    aware = QuantisationAware(model, weights=weights, activations=activations)
    variables = dict(jax.jit(aware.init)(jax.random.key(0), x))
    # Some heads start at zero.
    variables["params"] = jax.tree.map(
        lambda x: x + 0.1 * jnp.cos(jnp.arange(x.size)).reshape(x.shape), variables["params"]
    )
    state = {k: v for k, v in variables.items() if k != "params"}
    quantised, whole = held(model, variables["params"], x, weights=weights, activations=activations)
    whole["constants"] |= state.pop("constants", {})
    expected = jax.jit(aware.apply)(variables, x)
    found = jax.jit(quantised.apply)(whole | state, x)
    plain = jax.jit(model.apply)(variables, x)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert np.abs(np.asarray(expected) - plain).max() > 1e-5  # it is rounded


def test_training_goes_straight_through(dense):
    """The gradient is that of the same layers with their rounded kernels, written out."""
    aware = QuantisationAware(MLP_)
    one, two = (np.asarray(dense[f"Dense_{i}"]["kernel"]) for i in "01")

    def rounded(kernel):
        scale = np.abs(kernel).max(0) / 127
        return np.round(kernel / scale) * scale

    hidden = np.maximum(ROWS @ rounded(one) + dense["Dense_0"]["bias"], 0)
    y = hidden @ rounded(two) + dense["Dense_1"]["bias"]
    found = jax.grad(lambda p: (aware.apply({"params": p}, ROWS) ** 2).sum() / 2)(dense)
    np.testing.assert_allclose(found["Dense_1"]["kernel"], hidden.T @ y, rtol=1e-3, atol=1e-4)
    above = (y @ rounded(two).T) * (hidden > 0)
    np.testing.assert_allclose(found["Dense_0"]["kernel"], ROWS.T @ above, rtol=1e-3, atol=1e-4)


def test_what_is_float_of_a_quantised_model_can_be_trained(dense):
    """Through rounded inputs, too: the gradient of a first bias is not lost."""
    pytest.importorskip("qwix", reason="qwix makes products of whole numbers")
    quantised, variables = held(MLP_, dense, ROWS, activations="dynamic")

    def loss(params, apply, rest):
        return (apply({"params": params, **rest}, ROWS) ** 2).sum()

    rest = {"constants": variables["constants"]}
    found = jax.grad(loss)(variables["params"], quantised.apply, rest)
    expected = jax.grad(loss)(dense, MLP_.apply, {})
    for layer in ("Dense_0", "Dense_1"):
        a, b = found[layer]["bias"], np.asarray(expected[layer]["bias"])
        np.testing.assert_allclose(a, b, atol=0.05 * np.abs(b).max())


@pytest.mark.parametrize("weights", ["int8", pytest.param("int4", marks=SLOW)])
def test_a_decoder_of_whole_numbers_writes_by_its_cache(weights):
    """The first tokens at once and the last one alone, by another product: as all at once."""
    model = dataclasses.replace(GPT_, transformer=dataclasses.replace(BLOCKS, layers=1))
    params = jax.jit(model.init)(jax.random.key(0), TOKENS)["params"]
    quantised, variables = held(model, params, TOKENS, weights=weights)
    apply = jax.jit(quantised.apply, static_argnames="method")
    whole = apply(variables, TOKENS[:1])
    logits, cache = apply(variables, TOKENS[:1, :5], quantised.cache(1, 6), method="decode")
    last, _ = apply(variables, TOKENS[:1, 5:], cache, method="decode")
    np.testing.assert_allclose(logits, whole[:, :5], rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(last, whole[:, 5:], rtol=1e-3, atol=1e-5)
    assert (quantised.vocabulary, quantised.context) == (20, 8)
    stacked = flat(variables["constants"]["quantised"])["blocks/qkv/kernel_scale"]
    assert stacked.shape == (1, 1, 48)


@pytest.mark.slow
def test_in_bfloat16_it_is_near():
    model = dataclasses.replace(GPT_, transformer=dataclasses.replace(BLOCKS, dtype="bfloat16"))
    params = jax.jit(GPT_.init)(jax.random.key(0), TOKENS)["params"]
    for activations in (None, "dynamic"):
        quantised, variables = held(model, params, TOKENS, activations=activations)
        found = jax.jit(quantised.apply)(variables, TOKENS)
        plain = jax.jit(GPT_.apply)({"params": params}, TOKENS)
        assert found.dtype == "float32" and np.abs(np.asarray(found) - plain).max() < 0.05


@pytest.mark.slow
def test_moving_statistics_move():
    model, x = MODELS["airbench"]
    for around in (Quantised, QuantisationAware):
        variables = jax.jit(around(model).init)(jax.random.key(0), x)
        apply = functools.partial(around(model).apply, train=True, mutable=["batch_stats"])
        _, changed = jax.jit(apply)(variables, x)
        before, after = flat(variables["batch_stats"]), flat(changed["batch_stats"])
        assert before.keys() == after.keys()
        assert any(not np.array_equal(before[path], after[path]) for path in before)


def test_kept_arrays_stay_float():
    quantised = Quantised(GPT_, kept="tokens/|blocks/(out|down)/")
    shapes = jax.eval_shape(quantised.init, jax.random.key(0), TOKENS)
    assert {p for p in flat(shapes["constants"]["quantised"]) if not p.endswith("_scale")} == {
        "blocks/qkv/kernel",
        "blocks/gate/kernel",
        "blocks/up/kernel",
    }
    assert "tokens/embedding" in flat(shapes["params"])


def test_the_size_of_a_convolution_s_kernel_may_be_a_number():
    x_BxTxD = np.random.default_rng(0).normal(size=(2, 9, 4)).astype(np.float32)
    pairs = nn.Conv(6, 3), nn.Conv(6, (3,))
    params = pairs[0].init(jax.random.key(0), x_BxTxD)["params"]
    one, other = (held(model, params, x_BxTxD) for model in pairs)
    np.testing.assert_array_equal(*(of.apply(whole, x_BxTxD) for of, whole in (one, other)))


@pytest.mark.parametrize("around", [Quantised, QuantisationAware])
def test_an_input_may_be_given_by_name(around):
    def model(named):
        class Layers(nn.Module):
            @nn.compact
            def __call__(self, x):
                x = nn.Embed(20, 32)(inputs=x) if named else nn.Embed(20, 32)(x)
                return nn.Dense(4)(inputs=x) if named else nn.Dense(4)(x)

        return around(Layers(), activations="dynamic")

    variables = model(False).init(jax.random.key(0), TOKENS)
    one, other = (model(named).apply(variables, TOKENS) for named in (True, False))
    np.testing.assert_array_equal(one, other)


def test_a_kernel_behind_a_mask_stays_float():
    """Linen multiplies it by the mask before it calls the convolution."""

    class Masked(nn.Module):
        @nn.compact
        def __call__(self, x):
            mask = jnp.zeros((3, 3, 3, 8)).at[0].set(1)
            return nn.Dense(4)(nn.Conv(8, (3, 3), mask=mask)(x).mean((1, 2)))

    shapes = jax.eval_shape(Quantised(Masked()).init, jax.random.key(0), PICTURES)
    assert "Conv_0/kernel" in flat(shapes["params"])
    assert "Dense_0/kernel_scale" in flat(shapes["constants"]["quantised"])


def test_a_product_has_the_dtype_of_the_float_model():
    x_BxD = jnp.asarray(ROWS, jnp.bfloat16)
    for model in (nn.Dense(4, use_bias=False), nn.Dense(4, use_bias=False, dtype=jnp.bfloat16)):
        params = model.init(jax.random.key(0), x_BxD)["params"]
        quantised, variables = held(model, params, x_BxD)
        found, expected = (
            of.apply(v, x_BxD) for of, v in ((quantised, variables), (model, {"params": params}))
        )
        assert found.dtype == expected.dtype


class Norm(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.LayerNorm()(x)


@pytest.mark.parametrize(
    ("made", "line"),
    [
        (lambda: Quantised(Norm()), "Norm has no kernel of a dense layer or a convolution"),
        (lambda: QuantisationAware(Norm()), "to round: there are none"),
        (lambda: Quantised(MLP_, kept="Dense"), "to round: all are kept by 'Dense'"),
        (lambda: Quantised(MLP_, kept="Dens_"), "Quantised.kept: 'Dens_' matches no parameter"),
        (
            lambda: Views(Quantised(MLP_)),
            "Views.model: Quantised given; allowed: Quantised around V",
        ),
        (
            lambda: Lora(QuantisationAware(MLP_), ".*"),
            "Lora.model: QuantisationAware given; the pla",
        ),
        (lambda: Quantised(MLP_, weights="int3"), "Quantised.weights: 'int3'"),
        (lambda: Quantised(MLP_, activations="int8"), "Quantised.activations: 'int8'"),
        (
            lambda: QuantisationAware(MLP_, activations="calibrated"),
            "QuantisationAware.activations: 'calibrated'",
        ),
    ],
)
def test_what_cannot_be_is_said_in_a_line(made, line):
    with pytest.raises(ConfigError, match=line) as told:
        jax.eval_shape(made().init, jax.random.key(0), ROWS)
    assert "\n" not in str(told.value)
