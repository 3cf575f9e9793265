"""The classifier of texts: padding, arrangements by hand, layouts, errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lsm.errors import ConfigError
from lsm.mesh import Mesh, batch_sharding, jit, make_mesh, replicated, shard
from lsm.models import Recurrent, Sequences, TextClassifier

LENGTHS = np.array([5, 7, 1, 4])
TOKENS = np.random.default_rng(0).integers(1, 20, (4, 7), np.int32)


def padded(by, garbage=0):
    """The texts, with other ids in their padding, and `by` more positions of it."""
    tokens = np.where(np.arange(7) < LENGTHS[:, None], TOKENS, garbage)
    return Sequences(np.pad(tokens, ((0, 0), (0, by)), constant_values=garbage), LENGTHS)


def made(**fields):
    model = TextClassifier(**{"vocabulary": 20, "width": 6, "units": (5, 4)} | fields)
    return model, model.init(jax.random.key(0), padded(0))


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"convolutions": (3, 8), "pooling": "max", "cell": "gru"},
        {"convolutions": (3,), "pooling": "mean", "cell": "rnn"},
        {"units": (4,), "pooling": "attention"},
    ],
)
def test_padding_alters_no_logit(fields):
    model, variables = made(**fields, bidirectional=True)
    logits = jax.jit(model.apply)
    wanted = logits(variables, padded(0))
    alone = Sequences(TOKENS[:1, :5], LENGTHS[:1])
    np.testing.assert_allclose(logits(variables, alone)[0], wanted[0], atol=1e-6)
    for by, garbage in ((0, 19), (9, 3)):
        found = logits(variables, padded(by, garbage))
        np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_parameters_of_the_two_lstms_are_as_many_as_keras_counts():
    model = TextClassifier(vocabulary=10_000, outputs=1)
    shapes = jax.eval_shape(model.init, jax.random.key(0), padded(0))["params"]
    # Embedding; 4 x (inputs + 128 + 1) x 128 of each layer; dense.
    wanted = 10_000 * 32 + 4 * (32 + 128 + 1) * 128 + 4 * (128 + 128 + 1) * 128 + 129
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == wanted == 534_145


def test_pooling_is_over_the_states_of_the_text():
    model, variables = made(units=(4,))
    params = variables["params"]
    embedded = params["tokens"]["embedding"][TOKENS]
    states, last = Recurrent(4).apply({"params": params["Recurrent_0"]}, embedded, LENGTHS)
    rows = [np.asarray(states[row, :length]) for row, length in enumerate(LENGTHS)]
    for pooling, pooled in (
        ("last", last),
        ("mean", np.stack([row.mean(0) for row in rows])),
        ("max", np.stack([row.max(0) for row in rows])),
    ):
        wanted = pooled @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"]
        found = model.clone(pooling=pooling).apply(variables, padded(2))
        np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_attention_is_a_mean_by_learned_weights():
    model, variables = made(units=(4,), pooling="attention")
    params = variables["params"]
    embedded = params["tokens"]["embedding"][TOKENS]
    states, _ = Recurrent(4).apply({"params": params["Recurrent_0"]}, embedded, LENGTHS)
    pooled = []
    for row, length in enumerate(LENGTHS):
        x = np.asarray(states[row, :length])
        scores = np.exp(np.tanh(x @ params["Dense_0"]["kernel"]) @ params["Dense_1"]["kernel"])
        pooled.append((scores / scores.sum() * x).sum(0))
    wanted = np.stack(pooled) @ params["Dense_2"]["kernel"]
    np.testing.assert_allclose(model.apply(variables, padded(2)), wanted, atol=1e-6)


def test_a_convolution_equals_numpy():
    model, variables = made(convolutions=(3,), units=(4,))
    params = variables["params"]
    kernel, states = params["Conv_0"]["kernel"], []
    for tokens, length in zip(TOKENS, LENGTHS, strict=True):
        x = np.pad(params["tokens"]["embedding"][tokens[:length]], ((1, 1), (0, 0)))
        y = [np.maximum(np.einsum("wd,wdf->f", x[t : t + 3], kernel), 0) for t in range(length)]
        pooled = np.array([np.max(y[t : t + 2], 0) for t in range(0, length, 2)])
        layer = {"params": params["Recurrent_0"]}
        states.append(Recurrent(4).apply(layer, pooled[None])[1][0])
    wanted = np.stack(states) @ params["Dense_0"]["kernel"]
    np.testing.assert_allclose(model.apply(variables, padded(3)), wanted, atol=1e-6)


def test_empty_texts_give_finite_logits_and_gradients():
    for pooling in ("mean", "max", "attention"):
        model, variables = made(pooling=pooling, convolutions=(3,))
        empty = Sequences(TOKENS, np.zeros(4, np.int32))

        def loss(variables, model=model, empty=empty):
            return (model.apply(variables, empty) ** 2).sum()

        value, gradient = jax.jit(jax.value_and_grad(loss))(variables)
        assert all(np.isfinite(leaf).all() for leaf in (value, *jax.tree.leaves(gradient)))


def test_dropout_is_drawn_in_training_alone_and_of_words_whole():
    model, variables = made(dropout=0.5, word_dropout=0.5)
    still = model.apply(variables, padded(0))
    np.testing.assert_array_equal(still, model.apply(variables, padded(0)))
    drawn = [
        model.apply(variables, padded(0), train=True, rngs={"dropout": jax.random.key(i)})
        for i in (0, 1)
    ]
    assert not np.allclose(*drawn) and not np.allclose(drawn[0], still)


def test_bfloat16_gives_float32_logits_near_those_of_float32():
    model, variables = made(bidirectional=True, convolutions=(3,))
    exact = model.apply(variables, padded(0))
    rough = jax.jit(model.clone(dtype="bfloat16").apply)(variables, padded(0))
    assert rough.dtype == jnp.float32
    np.testing.assert_allclose(rough, exact, atol=0.05)


@pytest.mark.parametrize("axes", [{"fsdp": 8}, {"data": 2, "fsdp": 2, "tensor": 2}])
def test_logits_and_gradients_are_the_same_on_a_mesh(axes):
    fields = {"vocabulary": 32, "width": 128, "units": (64,), "convolutions": (128,)}
    model = TextClassifier(**fields, bidirectional=True)
    texts = Sequences(np.tile(TOKENS, (2, 1)), np.tile(LENGTHS, 2))
    variables = model.init(jax.random.key(0), texts)

    def loss(variables, texts):
        return (model.apply(variables, texts) ** 2).sum()

    mesh = make_mesh(Mesh(**axes))
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
