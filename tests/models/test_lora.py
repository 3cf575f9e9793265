"""Low-rank adapters, against their formula and against the merged model."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lsm.config import schema
from lsm.errors import ConfigError
from lsm.mesh import Mesh, make_mesh
from lsm.models import CNN, GPT, MLP, Classifier, EncoderDecoder, Lora, Sequences, Transformer
from lsm.models.experts import Experts
from lsm.models.families import minilm
from lsm.params import flat

BLOCKS = Transformer(layers=2, heads=2, width=8, theta=1e4, norm="rms", mlp="swiglu")
GPT_ = GPT(vocabulary=20, transformer=BLOCKS, context=8)
SLOW = pytest.mark.slow
TOKENS = np.random.default_rng(0).integers(0, 20, (2, 6)).astype(np.int32)


def moved(params):
    """Adapters that do something."""
    return jax.tree.map(lambda x: x + 0.1 * jnp.cos(jnp.arange(x.size)).reshape(x.shape), params)


def made(lora, x=TOKENS):
    return jax.jit(lora.init)(jax.random.key(0), x)


@pytest.fixture(scope="module")
def variables():
    return made(Lora(GPT_, targets="blocks/", rank=2, alpha=4.0))


@pytest.mark.parametrize(("stabilised", "s"), [(False, 2.0), (True, 4 / 2**0.5)])
def test_a_layer_adds_its_two_thin_kernels(stabilised, s):
    lora = Lora(MLP(widths=(5,), outputs=3), "Dense_0", 2, 4.0, rank_stabilised=stabilised)
    x = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)
    variables = made(lora, x)
    own = moved(variables["params"])
    base = variables["constants"]["base"]
    assert flat(own).keys() == {"Dense_0/lora_a/kernel", "Dense_0/lora_b/kernel"}
    one, two = base["Dense_0"], base["Dense_1"]
    a, b = own["Dense_0"]["lora_a"]["kernel"], own["Dense_0"]["lora_b"]["kernel"]
    hidden = x @ one["kernel"] + one["bias"] + s * (x @ a) @ b
    expected = np.maximum(hidden, 0) @ two["kernel"] + two["bias"]
    found = lora.apply({"params": own, "constants": variables["constants"]}, x)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_a_is_drawn_as_he_did_and_b_is_nothing():
    variables = made(Lora(MLP(widths=(400,), outputs=2), ".*", rank=200), np.zeros((1, 300)))
    a = variables["params"]["Dense_0"]["lora_a"]["kernel"]
    assert a.shape == (300, 200) and float(a.std()) == pytest.approx((2 / 300) ** 0.5, rel=0.02)
    assert not np.any(variables["params"]["Dense_0"]["lora_b"]["kernel"])


@pytest.mark.parametrize(
    "held", ["float32", "int4", *(pytest.param(x, marks=SLOW) for x in ("bfloat16", "int8"))]
)
def test_at_first_it_is_the_base_and_merged_it_is_the_same(held):
    one = dataclasses.replace(GPT_, transformer=dataclasses.replace(BLOCKS, layers=1))
    lora = Lora(one, targets="blocks/", rank=2, held=held)
    variables = made(lora)
    constants, apply, plain = variables["constants"], jax.jit(lora.apply), jax.jit(one.apply)
    np.testing.assert_array_equal(
        apply(variables, TOKENS), plain({"params": lora.merged({}, constants)}, TOKENS)
    )
    own = moved(variables["params"])
    merged = lora.merged(own, constants)
    assert {str(x.dtype) for x in jax.tree.leaves(merged)} == {"float32"}
    found = apply({"params": own, "constants": constants}, TOKENS)
    np.testing.assert_allclose(found, plain({"params": merged}, TOKENS), atol=1e-5)
    assert np.abs(found - apply(variables, TOKENS)).max() > 0.01


def test_every_layer_of_a_stack_has_its_own(variables):
    shapes = {path: x.shape for path, x in flat(variables["params"]).items()}
    assert shapes["blocks/qkv/lora_a/kernel"] == (2, 8, 2) and shapes[
        "blocks/qkv/lora_b/kernel"
    ] == (2, 2, 24)
    assert len(shapes) == 2 * 5
    a = variables["params"]["blocks"]["qkv"]["lora_a"]["kernel"]
    assert not np.array_equal(a[0], a[1])
    alone = made(Lora(GPT_, targets="qkv/kernel", rank=2))["params"]
    assert flat(alone).keys() == {"blocks/qkv/lora_a/kernel", "blocks/qkv/lora_b/kernel"}


def test_methods_and_fields_are_the_model_s(variables):
    lora = Lora(GPT_, targets="blocks/", rank=2, alpha=4.0)
    variables = {"params": moved(variables["params"]), "constants": variables["constants"]}
    apply = jax.jit(lora.apply, static_argnames="method")
    whole = apply(variables, TOKENS)
    features = apply(variables, TOKENS, method="features")
    found = apply(variables, features, method="logits")
    np.testing.assert_allclose(found, whole, rtol=1e-5, atol=1e-6)
    cache, parts = lora.cache(2, 6), []
    for at in (slice(0, 3), slice(3, 6)):
        logits, cache = apply(variables, TOKENS[:, at], cache, method="decode")
        parts.append(logits)
    np.testing.assert_allclose(np.concatenate(parts, 1), whole, rtol=1e-4, atol=1e-5)
    assert (lora.vocabulary, lora.context) == (20, 8)
    assert not hasattr(lora, "outputs")
    with pytest.raises(AttributeError, match="no_such"):
        lora.no_such
    assert schema.from_json(schema.to_json(lora), Lora) == lora


@pytest.mark.slow
def test_an_encoder_decoder_and_experts_go_with_adapters():
    side = dataclasses.replace(BLOCKS, theta=None)
    arrangement = EncoderDecoder(vocabulary=20, encoder=side, decoder=side, context=8)
    texts = Sequences(TOKENS, np.array([6, 4]), None)
    lora = Lora(arrangement, targets="blocks/(cross_)?(q|kv|qkv)/", rank=2)
    variables = made(lora, (texts, TOKENS))
    memory = lora.apply(variables, texts, method="encode")
    plain = {"params": lora.merged({}, variables["constants"])}
    np.testing.assert_array_equal(memory, arrangement.apply(plain, texts, method="encode"))
    mixture = GPT(vocabulary=20, transformer=dataclasses.replace(BLOCKS, experts=Experts(count=2)))
    lora = Lora(mixture, targets="blocks/(qkv|out)/", rank=2)
    variables = made(lora)
    _, found = lora.apply(variables, TOKENS, mutable=["losses"])
    _, expected = mixture.apply(
        {"params": lora.merged({}, variables["constants"])}, TOKENS, mutable=["losses"]
    )
    jax.tree.map(np.testing.assert_allclose, found["losses"], expected["losses"])


def test_dropout_is_on_what_adapters_read_and_in_training_alone(variables):
    lora = Lora(GPT_, targets="blocks/", rank=2, alpha=4.0, dropout=0.5)
    off = dataclasses.replace(lora, dropout=0.0)
    own = {"params": moved(variables["params"]), "constants": variables["constants"]}

    @functools.partial(jax.jit, static_argnames="train")
    def trained(variables, key, train=True):
        return lora.apply(variables, TOKENS, train=train, rngs={"dropout": key})

    keys = [jax.random.key(n) for n in range(2)]
    assert np.abs(trained(own, keys[0]) - trained(own, keys[1])).max() > 0.01
    np.testing.assert_array_equal(trained(own, keys[0]), trained(own, keys[0]))
    plain = jax.jit(off.apply)
    np.testing.assert_array_equal(trained(variables, keys[0]), plain(variables, TOKENS))
    np.testing.assert_array_equal(trained(own, keys[0], train=False), plain(own, TOKENS))


def test_a_new_head_is_trained_as_it_is():
    encoder = minilm(vocabulary=20, layers=1, heads=2, width=8, context=8)
    lora = Lora(Classifier(encoder, pooling="mean"), "qkv", rank=2, trained="^head/")
    variables = made(lora, Sequences(TOKENS, np.array([6, 4]), None))
    assert flat(variables["params"]).keys() == {
        *("blocks/qkv/lora_a/kernel", "blocks/qkv/lora_b/kernel", "head/kernel", "head/bias")
    }
    assert "head" not in variables["constants"]["base"]
    assert flat(lora.merged(variables["params"], variables["constants"]))["head/bias"].shape == (2,)
    assert lora.outputs == 2


class Bilinear(nn.Module):
    @nn.compact
    def __call__(self, x):
        return x @ self.param("kernel", nn.initializers.ones, (6, 2)) + nn.Dense(2)(x)


@pytest.mark.parametrize(
    ("model", "targets", "line"),
    [
        (CNN(widths=(4,), convs=1), "Conv_0", "CNN has 'batch_stats' beside its parameters"),
        (nn.Conv(2, (1,)), ".*", "'kernel' is no kernel of a dense layer; there are none"),
        (Bilinear(), ".*", "'kernel' is no kernel of a dense layer; there are Dense_0/kernel"),
        (Bilinear(), "Dense_1/kernel", "matches no kernel .*Did you mean 'Dense_0/kernel'"),
    ],
    ids=["state", "convolution", "own product", "nothing"],
)
def test_what_takes_no_adapter_is_one_line(model, targets, line):
    x = np.zeros((1, 8, 8, 1) if isinstance(model, CNN) else (1, 6), np.float32)
    with pytest.raises(ConfigError, match=line) as error:
        Lora(model, targets).init(jax.random.key(0), x)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"rank": 0}, "Lora.rank: 0 given"),
        ({"alpha": 0}, "Lora.alpha: 0 given"),
        ({"targets": "("}, r"Lora.targets: '\(' is not a regular expression"),
        ({"held": "int2"}, "Lora.held: 'int2' given; allowed: 'float32'"),
        ({"dropout": 1.0}, "Lora.dropout: 1.0 given"),
    ],
)
def test_fields_are_checked(fields, line):
    with pytest.raises(ConfigError, match=line):
        Lora(**{"model": GPT_, "targets": "blocks/"} | fields)


def test_adapters_lie_as_their_kernels_do(variables):
    from lsm.mesh import shard

    lora = Lora(GPT_, targets="blocks/", rank=2, held="int4")
    mesh = make_mesh(Mesh(data=1, fsdp=2, tensor=2), jax.devices()[:4])
    shapes = jax.eval_shape(lora.init, jax.random.key(0), TOKENS)
    found = flat(shard(shapes, mesh, lora.layout.rules))
    specs = {path: tuple(x.spec) for path, x in found.items()}
    assert specs["constants/base/blocks/out/kernel"] == ("pipeline", "tensor", "fsdp")
    assert specs["params/blocks/out/lora_a/kernel"] == ("pipeline", "tensor", None)
    assert specs["params/blocks/out/lora_b/kernel"] == ("pipeline", None, "fsdp")
    assert specs["constants/base/blocks/out/kernel_scale"] == ("pipeline", None, "fsdp")
