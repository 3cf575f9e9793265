"""The classifier of texts: against NumPy, padding, layouts, errors."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lsm.errors import ConfigError
from lsm.mesh import Mesh, batch_sharding, jit, make_mesh, replicated, shard
from lsm.models import Sequences, TextClassifier
from tests.models.test_recurrent import by_numpy as states_by_numpy

LENGTHS = np.array([5, 7, 1, 4])
TOKENS = np.random.default_rng(0).integers(1, 20, (4, 7), np.int32)


def padded(by, garbage=0):
    """The texts, with other ids in their padding, and `by` more positions of it."""
    tokens = np.where(np.arange(7) < LENGTHS[:, None], TOKENS, garbage)
    return Sequences(np.pad(tokens, ((0, 0), (0, by)), constant_values=garbage), LENGTHS)


CASES = {
    "last": {"units": (5, 4)},
    "max": {"convolutions": (3, 8), "pooling": "max", "cell": "gru"},
    "mean": {"pooling": "mean", "cell": "rnn"},
    "attention": {"convolutions": (3,), "pooling": "attention"},
}


def made(case, **fields):
    """A model, and parameters of which none is 0."""
    fields = {"width": 6, "units": (4,), "bidirectional": True} | CASES[case] | fields
    model, random = TextClassifier(vocabulary=20, **fields), np.random.default_rng(0)
    shapes = jax.eval_shape(model.init, jax.random.key(0), padded(0))
    return model, jax.tree.map(
        lambda leaf: random.normal(size=leaf.shape).astype(np.float32) / 2, shapes
    )


@functools.cache
def applied(model, train=False):
    return jax.jit(functools.partial(model.apply, train=train))


def by_numpy(model, params, tokens_T):
    """The logits of one text, without padding."""

    def dense(x, number):
        layer = params[f"Dense_{number}"]
        return x @ layer["kernel"] + layer.get("bias", 0)

    x_TxD = params["tokens"]["embedding"][tokens_T]
    for number in range(len(model.convolutions)):
        kernel, bias = (params[f"Conv_{number}"][name] for name in ("kernel", "bias"))
        around, steps = np.pad(x_TxD, ((1, 1), (0, 0))), range(len(x_TxD))
        seen = [np.einsum("wd,wdf->f", around[t : t + 3], kernel) + bias for t in steps]
        seen_TxF = np.maximum(seen, 0)
        x_TxD = np.array([seen_TxF[t : t + 2].max(0) for t in steps[::2]])
    for number in range(len(model.units)):
        layer = params[f"Recurrent_{number}"]
        forward = states_by_numpy(model.cell, layer["forward"], x_TxD)
        backward = states_by_numpy(model.cell, layer["backward"], x_TxD[::-1])[::-1]
        x_TxD = np.concatenate([forward, backward], 1)
    if model.pooling == "attention":
        weights_Tx1 = np.exp(dense(np.tanh(dense(x_TxD, 0)), 1))
        return dense((weights_Tx1 / weights_Tx1.sum() * x_TxD).sum(0), 2)
    last = np.concatenate([forward[-1], backward[0]])
    return dense({"last": last, "mean": x_TxD.mean(0), "max": x_TxD.max(0)}[model.pooling], 0)


@pytest.mark.parametrize("case", CASES)
def test_logits_are_those_of_numpy_of_each_text_without_its_padding(case):
    model, variables = made(case)
    texts = [tokens[:length] for tokens, length in zip(TOKENS, LENGTHS, strict=True)]
    wanted = [by_numpy(model, variables["params"], tokens_T) for tokens_T in texts]
    assert np.ptp(wanted, axis=0).min() > 0.05
    for by, garbage in ((0, 0), (0, 19), (9, 3)):
        found = applied(model)(variables, padded(by, garbage))
        np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_parameters_of_the_two_lstms_are_as_many_as_keras_counts():
    model = TextClassifier(vocabulary=10_000, outputs=1)
    shapes = jax.eval_shape(model.init, jax.random.key(0), padded(0))["params"]
    # Embedding; 4 x (inputs + 128 + 1) x 128 of each layer; dense.
    wanted = 10_000 * 32 + 4 * (32 + 128 + 1) * 128 + 4 * (128 + 128 + 1) * 128 + 129
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == wanted == 534_145


def test_empty_texts_give_finite_logits_and_gradients():
    empty = Sequences(TOKENS, np.zeros(4, np.int32))
    for case in ("mean", "max", "attention"):
        model, variables = made(case, cell="rnn", bidirectional=False)

        def loss(variables, model=model):
            return (model.apply(variables, empty) ** 2).sum()

        value, gradient = jax.jit(jax.value_and_grad(loss))(variables)
        assert all(np.isfinite(leaf).all() for leaf in (value, *jax.tree.leaves(gradient)))


def test_dropout_is_drawn_in_training_alone():
    model, variables = made("mean")
    dropping = model.clone(dropout=0.5, word_dropout=0.5)
    still = applied(dropping)(variables, padded(0))
    np.testing.assert_array_equal(still, applied(model)(variables, padded(0)))
    drawn = [
        applied(dropping, train=True)(variables, padded(0), rngs={"dropout": jax.random.key(i)})
        for i in (0, 1)
    ]
    assert not np.allclose(*drawn) and not np.allclose(drawn[0], still)


def test_bfloat16_gives_float32_logits_near_those_of_float32():
    model, variables = made("attention")
    exact = applied(model)(variables, padded(0))
    rough = applied(model.clone(dtype="bfloat16"))(variables, padded(0))
    assert rough.dtype == jnp.float32
    np.testing.assert_allclose(rough, exact, atol=0.05)


def test_logits_and_gradients_are_the_same_on_a_mesh():
    fields = {"width": 256, "units": (32,), "convolutions": (64,), "bidirectional": False}
    model, variables = made("last", **fields)
    variables = jax.tree.map(lambda x: x / 8, variables)
    texts = Sequences(np.tile(TOKENS, (2, 1)), np.tile(LENGTHS, 2))

    def loss(variables, texts):
        return (model.apply(variables, texts) ** 2).sum()

    mesh = make_mesh(Mesh(data=2, fsdp=2, tensor=2))
    placed = shard(variables, mesh, model.layout.rules)
    assert "fsdp" in str(placed["params"]["Recurrent_0"]["forward"]["kernel"].spec)
    run = jit(
        jax.value_and_grad(loss),
        in_shardings=(placed, batch_sharding(mesh)),
        out_shardings=replicated(mesh),
        mesh=mesh,
    )
    found, wanted = run(variables, texts), jax.jit(jax.value_and_grad(loss))(variables, texts)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found, wanted)


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"units": (0,)}, "TextClassifier.units: (0,) given; allowed: 1 or more."),
        ({"dropout": 1.0}, "TextClassifier.dropout: 1.0 given; allowed: a number in [0, 1)."),
    ],
)
def test_errors_are_lines(fields, line):
    with pytest.raises(ConfigError) as error:
        TextClassifier(vocabulary=10, **fields)
    assert str(error.value) == line
