"""Logits in chunks: the same loss, metrics and gradients, and never all logits at once."""

import jax
import numpy as np
import pytest

from lsm import Data, Experiment, Mesh, Train
from lsm.data import Arrays
from lsm.durations import Horizon
from lsm.errors import ConfigError
from lsm.metrics import Weighted
from lsm.models import MLP
from lsm.models.experts import Experts
from lsm.models.families import gpt2
from lsm.optim import SGD
from lsm.tasks import LanguageModelling
from lsm.train import build

B, T, V = 8, 16, 96
SIZES = {"vocabulary": V, "layers": 1, "heads": 2, "width": 32, "context": T, "bias": False}
MODELS = {
    "tied": gpt2(**SIZES),
    "untied, capped": gpt2(**SIZES, tied=False, logit_softcap=5.0),
    "experts": gpt2(**SIZES, experts=Experts(count=2, top_k=1)),
}


def text(weights=None, vocabulary=V):
    random = np.random.default_rng(0)
    batch = {"tokens": random.integers(0, vocabulary, (B, T + 1), dtype=np.int32)}
    if weights == "rows":
        batch["weight"] = np.arange(B, dtype=np.float32) / 2
    elif weights == "tokens":
        batch["weight"] = random.integers(0, 3, (B, T)).astype(np.float32)
    return batch


def score(model, chunks, batch):
    task = LanguageModelling(model=model, chunks=chunks)
    params, state = task.init(jax.random.key(0), batch)
    params = jax.tree.map(lambda x: 5 * x, params)  # logits that differ

    def both(params):
        (loss, output), grads = jax.value_and_grad(task.loss, has_aux=True)(
            params, state, batch, rngs={}
        )
        return loss, output.metrics, grads, task.evaluate(params, state, batch)

    return jax.jit(both)(params)


def assert_close(found, expected):
    def close(x, y):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5 * max(np.abs(y).max(), 1))

    jax.tree.map(close, found, expected)


@pytest.mark.parametrize("beside", ["length", "segments"])
def test_padding_balances_no_experts(beside):
    batch = text()
    real = np.arange(T + 1) < 7
    column = (
        np.full(B, 7) if beside == "length" else np.broadcast_to(real.astype(np.int32), (B, T + 1))
    )
    found = []
    for filler in (0, 3):
        tokens = np.where(real, batch["tokens"], filler)
        given = {"tokens": tokens, f"tokens_{beside}": column}
        found.append(score(MODELS["experts"], 1, given)[0])
    assert found[0] == found[1]


@pytest.mark.slow
def test_experts_read_a_text_alike_whatever_it_is_padded_to():
    """Also to nothing: then its last token, which has no target, is cut off."""
    model = gpt2(**SIZES, experts=Experts(count=4, top_k=2, capacity=0.75))
    task = LanguageModelling(model=model)
    text_T = np.random.default_rng(0).integers(0, V, 9)

    def figures(width, packed):
        tokens = np.zeros((1, width), np.int32)
        tokens[0, :9] = text_T
        given = {"tokens": tokens, "tokens_length": np.array([9])}
        if packed:
            segments = np.where(np.arange(width) < 9, 1, 0)[None].astype(np.int32)
            given = {"tokens": tokens, "tokens_segments": segments}
        params, state = task.init(jax.random.key(0), given)
        params = jax.tree.map(lambda x: 8 * x, params)  # so that choices are far apart
        found = task.evaluate(params, state, given)
        return [float(x) for x in (found["loss"].sum, found["loss"].weight, found["balance"].mean)]

    for packed in (False, True):
        for width in (10, 13):
            np.testing.assert_allclose(figures(width, packed), figures(9, packed), rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "weights"), [("tied", None), ("untied, capped", "rows"), ("experts", "tokens")]
)
def test_loss_metrics_and_gradients_are_the_same(name, weights):
    batch = text(weights)
    whole = score(MODELS[name], 1, batch)
    assert_close(score(MODELS[name], 4, batch), whole)
    assert float(whole[1]["loss"].mean) > 0
    total = {None: B * T, "rows": T * np.arange(B).sum() / 2}  # of the weights, by target
    expected = total[weights] if weights in total else batch["weight"].sum()
    assert float(whole[1]["loss"].weight) == expected


def trained(mesh, chunks, devices, model=MODELS["tied"], **train):
    """Returns the parameters after two steps, and the compiled step."""
    batch = text("tokens", model.vocabulary)
    experiment = Experiment(
        name="chunks",
        task=LanguageModelling(model=model, chunks=chunks),
        data=Data(source=Arrays(batch)),
        optimizer=SGD(learning_rate=0.5),
        train=Train(steps=2, batch_size=B, **train),
        mesh=mesh,
    )
    program = build(experiment, Horizon(2, B, B), batch, jax.devices()[:devices])
    state, placed = program.init(), jax.device_put(batch, program.batch)
    compiled = program.step.lower(state, placed).compile()
    for _ in range(2):
        state, _ = compiled(state, placed)
    return jax.device_get(state.params), compiled


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mesh", "train"),
    [
        (Mesh(data=2, tensor=2), {}),  # a split vocabulary
        (Mesh(data=2, sequence=2), {}),  # a split sequence
        (Mesh(data=1, fsdp=4), {"accumulation": 2}),
    ],
    ids=["tensor", "sequence", "fsdp, accumulation"],
)
def test_chunks_on_a_mesh_equal_the_whole_on_one_device(mesh, train):
    whole, _ = trained(Mesh(), 1, 1)
    assert_close(trained(mesh, 4, 4, **train)[0], whole)


@pytest.mark.slow
def test_all_logits_are_nowhere_and_memory_falls():
    model = gpt2(**SIZES | {"vocabulary": 8192})
    (whole, all_at_once), (parts, in_parts) = (trained(Mesh(), c, 1, model) for c in (1, 8))
    assert_close(parts, whole)
    logits = 4 * B * T * 8192
    saved = [step.memory_analysis().temp_size_in_bytes for step in (all_at_once, in_parts)]
    assert saved[0] - saved[1] > 0.8 * logits
    assert any(f"f32[{shape},8192]" in all_at_once.as_text() for shape in (f"{B},{T}", B * T))
    assert not any(f"f32[{shape},8192]" in in_parts.as_text() for shape in (f"{B},{T}", B * T))


def test_errors():
    with pytest.raises(
        ConfigError, match="task.chunks: MLP cannot give its logits in parts; use 1"
    ):
        LanguageModelling(model=MLP(), chunks=2)
    with pytest.raises(ConfigError, match="chunks: 0 given"):
        LanguageModelling(model=MODELS["tied"], chunks=0)
    with pytest.raises(ConfigError, match="task.chunks: 3 does not divide the 16 positions"):
        score(MODELS["tied"], 3, text())


@pytest.mark.parametrize(
    ("loss", "perplexity"), [(1.0, np.e), (700.0, np.inf), (np.inf, np.inf), (np.nan, np.nan)]
)
def test_perplexity_of_any_loss(loss, perplexity):
    task = LanguageModelling(model=gpt2(**SIZES))
    totals = {"loss": Weighted(2 * loss, 2.0), "accuracy": Weighted(1.0, 2.0)}
    np.testing.assert_allclose(task.summary(totals)["perplexity"], perplexity)
