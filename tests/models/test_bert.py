"""BERT: published sizes, padding, heads that share an encoder's paths, meshes, errors."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lsm.errors import ConfigError
from lsm.mesh import Mesh, make_mesh
from lsm.models import Classifier, Embedder, MaskedLM, Sequences, TokenClassifier, families
from lsm.models.experts import Experts
from lsm.params import flat

SMALL = families.bert_base(
    vocabulary=40, context=16, layers=2, heads=4, width=16, hidden=32, dropout=0.0
)
LENGTHS = np.array([6, 3, 1, 0])
HEADS = [Classifier(SMALL), Classifier(SMALL, pooling="mean"), TokenClassifier(SMALL)]
HEADS += [MaskedLM(SMALL), Embedder(SMALL)]
EXPERTS = dataclasses.replace(SMALL.transformer, experts=Experts(count=4, top_k=2))
MIXED = Classifier(SMALL.clone(transformer=EXPERTS))


def texts(t=6, fill=0):
    tokens = np.random.default_rng(0).integers(1, 40, (4, 6))
    tokens = np.pad(tokens, ((0, 0), (0, t - 6)))
    return Sequences(np.where(np.arange(t) < LENGTHS[:, None], tokens, fill), LENGTHS)


@functools.cache
def made():
    """The variables of all models, of one compilation."""
    models = [SMALL, MIXED, *HEADS]
    every = jax.jit(lambda key: [model.init(key, texts()) for model in models])(jax.random.key(0))
    return dict(zip(models, every, strict=True))


@functools.cache
def outputs():
    """What each head makes of texts of 6, and of 16 whose padding holds something."""

    def run(every, *given):
        return [[model.apply(v, x) for x in given] for model, v in zip(HEADS, every, strict=True)]

    every = [made()[model] for model in HEADS]
    found = jax.jit(run)(every, texts(), texts(t=16, fill=39))
    return dict(zip(HEADS, found, strict=True))


@pytest.mark.parametrize(
    ("family", "count"),
    [("bert_base", 109_482_240), ("bert_large", 335_141_888), ("minilm", 22_713_216)],
)
def test_published_counts(family, count):
    model = Classifier(getattr(families, family)())
    params = jax.eval_shape(model.init, jax.random.key(0), texts())["params"]
    del params["head"]
    assert sum(x.size for x in jax.tree.leaves(params)) == count


@pytest.mark.parametrize("model", HEADS, ids=lambda model: type(model).__name__)
def test_padding_alters_nothing(model):
    short, long = outputs()[model]
    if isinstance(short, dict):
        short, long = short["embedding"], long["embedding"]
    if isinstance(model, TokenClassifier | MaskedLM):
        real = np.arange(6) < LENGTHS[:, None]
        short, long = short[real], long[:, :6][real]
    elif getattr(model, "pooling", None) == "cls":  # an empty text has no first token
        short, long = short[:3], long[:3]
    np.testing.assert_allclose(short, long, atol=2e-6)
    assert np.isfinite(short).all()


def test_an_embedding_has_length_1_and_a_gradient_where_there_is_no_text():
    model = Embedder(SMALL)

    @jax.jit
    @jax.grad
    def gradient_of(variables):
        return model.apply(variables, texts())["embedding"][:, 0].sum()

    lengths = np.linalg.norm(outputs()[model][0]["embedding"], axis=1)
    np.testing.assert_allclose(lengths, [1, 1, 1, 0], atol=1e-6)
    gradient = gradient_of(made()[model])
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(gradient))


def test_heads_have_the_encoder_s_paths():
    encoder = {*flat(made()[SMALL]["params"])}
    for model in HEADS:
        assert encoder <= {*flat(made()[model]["params"])}


@pytest.mark.parametrize(
    ("mlp", "function"),
    [
        ("relu", jax.nn.relu),
        ("gelu", jax.nn.gelu),
        ("swiglu", lambda x: jax.nn.gelu(x, approximate=False)),
    ],
)
def test_the_head_of_masks_has_the_activation_of_the_blocks(mlp, function):
    variables = made()[MaskedLM(SMALL)]
    blocks = dataclasses.replace(SMALL.transformer, mlp=mlp)
    model = MaskedLM(SMALL.clone(transformer=blocks))
    x_BxPxD = 9 * np.random.default_rng(0).normal(size=(1, 2, 16)).astype(np.float32)
    logits = model.apply(variables, x_BxPxD, method="logits")
    h_BxPxD = function(x_BxPxD @ variables["params"]["transform"]["kernel"])  # no bias yet
    h_BxPxD = h_BxPxD - h_BxPxD.mean(-1, keepdims=True)
    h_BxPxD = h_BxPxD / np.sqrt(np.square(h_BxPxD).mean(-1, keepdims=True) + 1e-12)
    expected = h_BxPxD @ variables["params"]["tokens"]["embedding"].T
    np.testing.assert_allclose(logits, expected, atol=1e-5)


def test_types_are_told_apart():
    ones = texts()._replace(types_BxT=jnp.ones((4, 6), int))
    zeros = texts()._replace(types_BxT=jnp.zeros((4, 6), int))
    run = jax.jit(lambda variables, *given: [SMALL.apply(variables, x) for x in given])
    none, zero, one = run(made()[SMALL], texts(), zeros, ones)
    np.testing.assert_array_equal(none, zero)
    assert np.abs(np.asarray(zero - one)[0]).max() > 0.01


def test_a_mesh_says_the_same():
    model = MaskedLM(SMALL)
    expected, _ = outputs()[model]
    with jax.set_mesh(make_mesh(Mesh(fsdp=2, tensor=2, sequence=2))):
        logits = jax.jit(model.apply)(made()[model], texts())
    real = np.arange(6) < LENGTHS[:, None]
    np.testing.assert_allclose(np.asarray(logits)[real], expected[real], atol=1e-5)


def test_experts_do_not_count_padding():
    variables = {"params": made()[MIXED]["params"]}

    def run(variables, *given):
        return [MIXED.apply(variables, x, mutable=["losses"])[1]["losses"] for x in given]

    short, long = jax.jit(run)(variables, texts(), texts(t=16, fill=39))
    np.testing.assert_allclose(short["balance"][0][:3], long["balance"][0][:3], rtol=1e-5)


def test_longer_texts_than_positions():
    with pytest.raises(ConfigError, match="16 positions are learned; 17 tokens given"):
        jax.eval_shape(SMALL.init, jax.random.key(0), texts(t=17))


def test_norms_come_after():
    with pytest.raises(ConfigError, match=r"BERT\.transformer\.norm_position: 'pre' given"):
        families.bert_base(norm_position="pre")


def test_wrong_pooling():
    with pytest.raises(ConfigError, match=r"Classifier\.pooling: 'max' given"):
        Classifier(SMALL, pooling="max")
