"""What every task has from its base: sown losses, random streams, predictions."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lsm.durations import Horizon
from lsm.errors import ConfigError, DataError
from lsm.metrics import weigh
from lsm.models import GPT, MLP, Transformer
from lsm.optim import SGD
from lsm.rng import stream, streams
from lsm.tasks import Classification, LanguageModelling, Regression, Task, column
from lsm.train import init_state, make_step


class Penalised(nn.Module):
    """An MLP that sows the mean square of its outputs, as values (B,) or as a scalar, twice."""

    outputs: int = 3
    scalar: bool = False
    name_sown: str = "size"

    @nn.compact
    def __call__(self, x_BxD, train=False):
        y_BxK = MLP(widths=(5,), outputs=self.outputs)(x_BxD)
        size_B = (y_BxK**2).mean(-1)
        self.sow("losses", self.name_sown, size_B.mean() if self.scalar else size_B)
        self.sow("losses", self.name_sown, jnp.zeros(()) if self.scalar else 0 * size_B)
        return y_BxK


class Outer(nn.Module):
    """Holds a model that sows."""

    inner: nn.Module
    outputs: int = 3

    @nn.compact
    def __call__(self, x_BxD, train=False):
        return self.inner(x_BxD, train)


def pictures(rows=12, weight=None):
    random = np.random.default_rng(0)
    batch = {
        "image": random.normal(size=(rows, 4)).astype(np.float32),
        "label": random.integers(0, 3, rows).astype(np.int32),
    }
    return batch if weight is None else batch | {"weight": np.asarray(weight, np.float32)}


def loss_of(task, batch):
    @jax.jit
    def run(batch):
        params, state = task.init(jax.random.key(0), batch)
        assert "losses" not in state
        total, (metrics, changed) = task.loss(params, state, batch, rngs={})
        assert "losses" not in changed
        return total, metrics, task.forward(params, state, batch, {}, True, 0)[0]

    total, metrics, outputs = run(batch)
    return float(total), metrics, np.asarray(outputs)


WEIGHT = np.r_[np.arange(10) / 4, 0, 0]


@pytest.mark.parametrize(
    ("weight", "class_weights"),
    [(None, ()), (WEIGHT, (1.0, 2.0, 0.5))],
    ids=["alike", "weighed and by class"],
)
def test_the_mean_of_what_is_sown_is_added_to_the_mean_loss(weight, class_weights):
    task = Classification(model=Outer(Penalised()), class_weights=class_weights)
    batch = pictures(weight=weight)
    total, metrics, outputs = loss_of(task, batch)
    weights = np.ones(12) if weight is None else weight
    if class_weights:
        weights = weights * np.asarray(class_weights)[batch["label"]]
    log_probability = outputs - np.log(np.exp(outputs).sum(-1, keepdims=True))
    errors = -log_probability[np.arange(12), batch["label"]]
    sizes = (outputs**2).mean(-1)
    mean = (weights * (errors + sizes)).sum() / weights.sum()
    np.testing.assert_allclose(total / metrics["loss"].weight, mean, rtol=1e-5)
    np.testing.assert_allclose(metrics["size"].mean, (weights * sizes).sum() / weights.sum(), 1e-5)
    np.testing.assert_allclose(metrics["loss"].mean, (weights * errors).sum() / weights.sum(), 1e-5)


def test_a_scalar_is_added_as_it_is_whatever_the_loss_counts():
    """Regression counts examples times outputs."""
    model = Outer(Penalised(scalar=True), outputs=3)
    task = Regression(model=model, input="image", target="y")
    batch = pictures() | {"y": np.ones((12, 3), np.float32)}
    total, metrics, outputs = loss_of(task, batch)
    expected = ((outputs - 1) ** 2).mean() + (outputs**2).mean()
    np.testing.assert_allclose(total / 36, expected, rtol=1e-5)
    assert float(metrics["loss"].weight) == 36


def test_one_target_for_each_output_of_a_regression():
    task = Regression(model=Outer(Penalised()), input="image", target="y")
    with pytest.raises(DataError, match=r"^task\.target: 'y' is \(12,\) and .* are \(12, 3\);"):
        loss_of(task, pictures() | {"y": np.ones(12, np.float32)})


def test_sown_terms_are_exact_under_accumulation_and_padding():
    transform = SGD(learning_rate=0.1).make(Horizon(4, 12, 12))
    task, batch = Classification(model=Outer(Penalised())), pictures(weight=WEIGHT)
    state = jax.jit(lambda batch: init_state(task, transform, batch, seed=0))(batch)
    whole, parts = (
        jax.jit(make_step(task, transform, accumulation=n))(state, batch)[0] for n in (1, 4)
    )
    short = {name: x[:10] for name, x in batch.items()}
    real, _ = jax.jit(make_step(task, transform))(state, short)
    for other in (parts, real):
        jax.tree.map(
            lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6),
            whole.params,
            other.params,
        )
    assert jax.tree.structure(whole) == jax.tree.structure(state)


def test_sown_terms_are_reported_in_evaluation_too():
    task, batch = Classification(model=Outer(Penalised())), pictures()

    @jax.jit
    def run(batch):
        params, state = task.init(jax.random.key(0), batch)
        given = (params, state, batch)
        return task.loss(*given, rngs={})[1], task.evaluate(*given)

    trained, found = run(batch)
    assert float(found["size"].mean) == float(trained.metrics["size"].mean)


@pytest.mark.parametrize(
    ("name", "value", "line"),
    [
        ("loss", "B", "it sows 'loss', a metric of the task's own"),
        ("accuracy", "B", "it sows 'accuracy', a metric"),
        ("map", "BxD", r"it sows 'map' of shape \(12, 4\)"),
    ],
)
def test_what_cannot_be_sown_is_one_line(name, value, line):
    class Wrong(nn.Module):
        @nn.compact
        def __call__(self, x_BxD, train=False):
            self.sow("losses", name, x_BxD if value == "BxD" else x_BxD[:, 0])
            return nn.Dense(3)(x_BxD)

    task, batch = Classification(model=Wrong()), pictures()
    params, state = jax.eval_shape(task.init, jax.random.key(0), batch)
    with pytest.raises(ConfigError, match=line):
        jax.eval_shape(task.loss, params, state, batch, {})


def test_terms_of_one_name_add_up_whatever_their_shapes():
    class Mixed(nn.Module):
        scalar_first: bool

        @nn.compact
        def __call__(self, x_BxD, train=False):
            terms = [jnp.float32(1), jnp.ones(len(x_BxD))]
            for term in terms if self.scalar_first else reversed(terms):
                self.sow("losses", "extra", term)
            return nn.Dense(3)(x_BxD)

    for scalar_first, weight in ((True, WEIGHT), (False, None)):
        task = Classification(model=Mixed(scalar_first))
        total, metrics, _ = loss_of(task, pictures(weight=weight))
        assert float(metrics["extra"].mean) == pytest.approx(2)
        added = total / metrics["loss"].weight - metrics["loss"].mean
        assert float(added) == pytest.approx(2, rel=1e-5)


def projected(params="float32", changed=lambda x: x):
    """Of a task that keeps parameters within 0.05: what makes a state, the step, and a batch."""

    class Projected(Classification):
        def after_update(self, params, model_state, step):
            return changed(jax.tree.map(lambda x: x.clip(-0.05, 0.05), params)), model_state

    task, batch = Projected(model=MLP(widths=(5,), outputs=3)), pictures()
    optimizer = SGD(learning_rate=0.05)
    transform = optimizer.make(Horizon(8, 12, 12), master=params != "float32")

    def start(batch):
        return init_state(task, transform, batch, 0, params)

    return start, make_step(task, transform), batch


def test_a_projection_reaches_the_master_copies():
    start, step, batch = projected("bfloat16")
    state, step = jax.jit(start)(batch), jax.jit(step)
    for _ in range(8):
        state, _ = step(state, batch)
    master = max(float(jnp.abs(x).max()) for x in jax.tree.leaves(state.opt_state["master"]))
    assert master < 0.2  # one update beyond what is allowed; eight would be far outside


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        (
            lambda p: jax.tree.map(lambda x: x.astype(jnp.bfloat16), p),
            "is .* bfloat16; it must be .* float32",
        ),
        (lambda p: {"Dense_0": p["Dense_0"]}, "'params/Dense_1/bias' is absent; it must be"),
        (lambda p: {**p, "new": jnp.ones(2)}, "'params/new' is .*; it must be absent"),
    ],
    ids=["dtype", "lost", "new"],
)
def test_after_update_must_keep_what_there_is(changed, line):
    start, step, batch = projected(changed=changed)
    state = jax.eval_shape(start, batch)
    with pytest.raises(ConfigError, match=f"task.after_update: .*{line}"):
        jax.eval_shape(step, state, batch)


@pytest.mark.parametrize(
    ("method", "returned", "line"),
    [
        ("forward", lambda *_: jnp.ones(3), "task.forward: it returns .*; a pair is needed"),
        ("init", lambda *_: {"a": jnp.ones(2), "b": jnp.ones(2)}, "task.init: it returns dict"),
        ("after_update", lambda p, s, _: p, "task.after_update: it returns dict; a pair"),
        ("metrics", lambda *_: jnp.ones(()), "task.metrics: .* given; a dict with 'loss'"),
        (
            "metrics",
            lambda *_: {"lose": (1.0, 1.0)},
            "task.metrics: lose given; a dict with 'loss'",
        ),
        ("metrics", lambda *_: {"loss": jnp.ones(())}, "task.metrics: 'loss' is .*; two scalars"),
        ("metrics", lambda *_: {"loss": (jnp.ones(3), 1.0)}, r"'loss' is \[\(3,\), \(\)\]; two"),
    ],
)
def test_what_a_task_returns_is_checked(method, returned, line):
    class Wrong(Classification):
        pass

    setattr(Wrong, method, lambda self, *args: returned(*args))
    task, batch = Wrong(model=MLP(widths=(5,), outputs=3)), pictures()
    transform = SGD(learning_rate=0.1).make(Horizon(8, 12, 12))
    with pytest.raises(ConfigError, match=line) as error:
        state = jax.eval_shape(lambda batch: init_state(task, transform, batch, 0), batch)
        jax.eval_shape(make_step(task, transform), state, batch)
    assert "\n" not in str(error.value)


def test_a_plain_pair_is_a_metric():
    class Plain(Classification):
        def metrics(self, outputs, batch, train, step):
            return {"loss": (outputs.sum(), 12.0)}

    total, metrics, outputs = loss_of(Plain(model=MLP(widths=(5,), outputs=3)), pictures())
    assert total == pytest.approx(float(outputs.sum()), rel=1e-5)
    assert float(metrics["loss"].weight) == 12


def test_streams_are_functions_of_seed_name_step_and_purpose():
    keys = [
        streams(["noise"], 0, 0)["noise"],
        streams(["noise"], 1, 0)["noise"],
        streams(["noise"], 0, 1)["noise"],
        streams(["dropout"], 0, 0)["dropout"],
        streams(["noise"], 0, 0, "evaluation")["noise"],
    ]
    assert len({tuple(np.asarray(jax.random.key_data(key))) for key in keys}) == 5
    assert streams(["noise", "dropout"], 0, 0)["noise"] == keys[0] == stream(0, "noise", 0)


def test_predictions_of_a_language_model_are_the_same_in_chunks():
    blocks = Transformer(layers=2, heads=2, width=16)
    model = GPT(vocabulary=11, context=8, transformer=blocks)
    batch = {"tokens": np.random.default_rng(0).integers(0, 11, (3, 9)).astype(np.int32)}
    task = LanguageModelling(model=model)
    in_chunks = dataclasses.replace(task, chunks=4)

    @jax.jit
    def run(batch):
        params, state = task.init(jax.random.key(0), batch)
        params = jax.tree.map(lambda x: 5 * x, params)
        logits = model.apply({"params": params}, batch["tokens"][:, :-1])
        return [each.predict(params, state, batch) for each in (task, in_chunks)], logits

    (whole, parts), logits = run(batch)
    picked = np.take_along_axis(
        np.asarray(jax.nn.log_softmax(logits)), batch["tokens"][:, 1:, None], -1
    )[..., 0]
    for found in (whole, parts):
        np.testing.assert_array_equal(found["token"], logits.argmax(-1))
        np.testing.assert_allclose(found["log_probability"], picked, rtol=1e-4, atol=1e-5)


def test_predictions_are_rows_of_examples():
    batch = pictures()
    task = Classification(model=MLP(widths=(5,), outputs=3))
    params, state = jax.jit(task.init)(jax.random.key(0), batch)
    found = jax.jit(task.predict)(params, state, {"image": batch["image"]})  # no label is needed
    np.testing.assert_allclose(found["probability"].sum(-1), np.ones(12), rtol=1e-6)
    np.testing.assert_array_equal(found["label"], found["probability"].argmax(-1))
    regression = Regression(model=MLP(widths=(5,), outputs=2), input="image", target="y")
    params, state = jax.eval_shape(regression.init, jax.random.key(0), batch)
    said = jax.eval_shape(regression.predict, params, state, batch)
    assert said["prediction"].shape == (12, 2)


@pytest.mark.parametrize(
    ("wanted", "line"),
    [
        (
            "imag",
            r"task\.inputs: the data has no column 'imag'; it has image, label.* Did you",
        ),
        ("text", r"task\.inputs: 'text': the examples are bytes of different shapes; numbers"),
    ],
)
@pytest.mark.parametrize("plain", [True, False])
def test_a_task_without_a_check_tells_of_columns_that_it_has_not(wanted, line, plain):
    class Own(Task):
        def inputs(self, batch):
            return batch[wanted] if plain else column(batch, wanted, "task.inputs")

        def metrics(self, outputs, batch, train, step):
            return {"loss": weigh(outputs[:, 0])}

    task, batch = Own(model=MLP(widths=(5,), outputs=3)), pictures()
    with pytest.raises(DataError, match=line) as error:
        task.check(batch | {"text": np.array([b"a"] * 12, object)})
    assert "\n" not in str(error.value)
    task.check({wanted: np.ones((12, 4)), "text": np.ones(12)})


class Keyword(nn.Module):
    @nn.compact
    def __call__(self, x_BxD, **options):
        return nn.Dense(3)(x_BxD) * (2.0 if options["train"] else 1.0)


class TrainByDefault(nn.Module):
    @nn.compact
    def __call__(self, x_BxD, train=True):
        return nn.Dense(3)(nn.Dropout(0.5, deterministic=not train)(x_BxD)) * (1.0 + train)


def test_a_model_need_not_take_train():
    sequence = nn.Sequential([nn.Dense(4), nn.relu, nn.Dense(3)])
    ratios = [(nn.Dense(3), 1), (sequence, 1), (Keyword(), 2), (TrainByDefault(), None)]

    def run(task, batch):
        given = (*task.init(jax.random.key(0), batch), batch)
        trained, _ = task.forward(*given, {"dropout": jax.random.key(1)}, True, 0)
        return trained, task.forward(*given, {}, False, 0)[0]

    tasks = [Classification(model=model) for model, _ in ratios]
    found = jax.jit(lambda batch: [run(task, batch) for task in tasks])(pictures())
    for (trained, plain), (_, ratio) in zip(found, ratios, strict=True):
        if ratio:
            np.testing.assert_allclose(trained, ratio * plain, rtol=1e-6)
        else:
            assert not np.allclose(trained, 2 * plain)


def test_three_means_on_grey_pictures_and_pictures_of_several_sizes_are_told():
    grey = {"image": np.zeros((2, 8, 8, 1), np.uint8), "label": np.zeros(2, np.int32)}
    task = Classification(model=MLP(widths=(5,), outputs=2), mean=(0.485, 0.456, 0.406))
    with pytest.raises(DataError, match=r"task.mean: 3 numbers given for 'image' of shape \(8, 8,"):
        task.check(grey)
    task.check(grey | {"image": np.zeros((2, 8, 8, 3), np.uint8)})
    several = np.empty(2, object)
    several[:] = [np.zeros((8, 8, 3), np.uint8), np.zeros((9, 8, 3), np.uint8)]
    regression = Regression(model=MLP(widths=(5,), outputs=2), input="image", target="label")
    with pytest.raises(DataError, match="task.input: the examples are arrays of different shapes"):
        regression.check(grey | {"image": several})
