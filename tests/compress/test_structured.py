"""Models with fewer units: units of zeros go without a trace, the largest stay, a run is a run."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lsm
from lsm import Data, Experiment, Mesh, Start, Train
from lsm.compress import shrink
from lsm.compress.structured import cut
from lsm.compress.units import shrunk
from lsm.data import Arrays
from lsm.errors import ConfigError
from lsm.models import (
    BERT,
    CNN,
    GPT,
    MLP,
    Airbench,
    Classifier,
    Mixer,
    ResNet,
    Sequences,
    Transformer,
    Views,
    ViT,
)
from lsm.models.experts import Experts
from lsm.optim import AdamW
from lsm.params import flat, nested
from lsm.tasks import Classification

RANDOM = np.random.default_rng(0)
PICTURES = RANDOM.normal(size=(3, 8, 8, 3)).astype(np.float32)
TOKENS = RANDOM.integers(0, 20, (3, 6)).astype(np.int32)
TEXTS = Sequences(jnp.asarray(TOKENS), jnp.int32([6, 3, 5]))
SMALL = Transformer(layers=2, heads=4, width=8, hidden=12)
GQA = dataclasses.replace(SMALL, kv_heads=2, theta=1e4, norm="rms", qk_norm=True, mlp="swiglu")
POST = dataclasses.replace(SMALL, norm_position="post", bias=True)
QWEN = dataclasses.replace(GQA, bias="qkv", head_width=6)
SHARES = {"filters": 0.5, "heads": 0.5, "hidden": 0.25}

MODELS = {
    "mlp": (MLP(widths=(8, 6), outputs=3), PICTURES),
    "cnn": (CNN(widths=(4, 6), hidden=(8,), outputs=3), PICTURES),
    "cnn_flat": (
        CNN(widths=(4, 6), convs=1, batch_norm=False, head="flatten", pool_last=True),
        PICTURES,
    ),
    "airbench": (Airbench(widths=(4, 6), outputs=3), PICTURES),
    "views": (Views(CNN(widths=(4,), outputs=3)), PICTURES),
    "resnet": (ResNet(depths=(1, 2), width=4, stem="cifar", outputs=3), PICTURES),
    "resnet_bottleneck": (ResNet(depths=(2,), width=4, bottleneck=True, outputs=3), PICTURES),
    "vit": (ViT(3, dataclasses.replace(SMALL, bias=True), stem=4), PICTURES),
    "bert": (Classifier(BERT(20, POST, context=8), outputs=3), TEXTS),
    "gpt": (GPT(20, dataclasses.replace(SMALL, bias="but_qkv"), context=8), TOKENS),
    "llama": (GPT(20, GQA, context=8), TOKENS),
    "qwen": (GPT(20, QWEN, context=8), TOKENS),
    "experts": (GPT(20, dataclasses.replace(SMALL, experts=Experts(count=2)), context=8), TOKENS),
}


def drawn(model, x):
    """Variables none of which is 0 or 1, as some are in the beginning."""
    random = np.random.default_rng(1)

    def draw(path, s):
        values = random.uniform(0.1, 0.4, s.shape)
        positive = "batch_stats" in jax.tree_util.keystr(path)
        return jnp.asarray(
            values if positive else values * random.choice([-1, 1], s.shape), s.dtype
        )

    shapes = jax.eval_shape(model.init, jax.random.key(0), x)
    return jax.tree_util.tree_map_with_path(draw, shapes)


def without(arrays, units):
    """Arrays whose units that are to go are 0, in NumPy: of each layer others."""
    random = np.random.default_rng(2)
    arrays = {path: np.array(x) for path, x in arrays.items()}
    for of in units:
        for layer in range(2 if of.stacked else 1):
            gone = random.permutation(of.count)[: of.count - of.kept]
            for part in of.parts:
                if "batch_stats" not in part.path:
                    x = arrays[part.path][layer] if of.stacked else arrays[part.path]
                    x = np.moveaxis(x, part.axis, -1)
                    units_of = np.arange(x.shape[-1]) // part.size % of.count
                    x[..., np.isin(units_of, gone)] = 0
    return {path: jnp.asarray(x) for path, x in arrays.items()}


QUICK = ("mlp", "cnn_flat", "resnet", "qwen")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in QUICK else pytest.mark.slow) for n in MODELS]
)
def test_units_of_zeros_go_without_a_trace(name):
    model, x = MODELS[name]
    smaller, units = shrunk(model, SHARES)
    arrays = without(flat(drawn(model, x)), units)
    found = jax.jit(lambda a: cut(a, units))(arrays)
    shapes = flat(jax.eval_shape(smaller.init, jax.random.key(0), x))
    assert {path: x.shape for path, x in found.items()} == {p: s.shape for p, s in shapes.items()}
    assert sum(x.size for x in found.values()) < sum(x.size for x in arrays.values())
    want, got = (jax.jit(m.apply)(nested(a), x) for m, a in ((model, arrays), (smaller, found)))
    np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-6 * float(jnp.abs(want).max()))


def test_what_is_left_of_each():
    def left(name):
        return shrunk(MODELS[name][0], SHARES)[0]

    assert left("mlp").widths == (2, 2)
    assert (left("cnn").widths, left("cnn").hidden) == ((2, 3), (2,))
    assert left("resnet").inner == (2, 4) and left("resnet").width == 4
    qwen = left("qwen").transformer
    assert (qwen.heads, qwen.kv_heads, qwen.head_width, qwen.hidden) == (2, 1, 6, 3)
    vit = left("vit").transformer
    assert (vit.heads, vit.kv_heads, vit.head_width, vit.width) == (2, None, 2, 8)
    assert left("experts").transformer.hidden == 12
    # And again: what is smaller can be made smaller still.
    again, units = shrunk(left("resnet"), SHARES)
    assert again.inner == (1, 2) and [of.count for of in units] == [2, 4, 4]


def test_the_units_of_the_largest_norm_stay():
    model = MLP(widths=(5,), outputs=2)
    arrays = flat(model.init(jax.random.key(1), jnp.zeros((1, 3))))
    kernels = [np.asarray(arrays[f"params/Dense_{i}/kernel"]) for i in (0, 1)]
    norm = np.sqrt((kernels[0] ** 2).sum(0) + (kernels[1] ** 2).sum(1))
    kept = np.sort(np.argsort(-norm)[:3])
    found = cut(arrays, shrunk(model, SHARES | {"hidden": 0.6})[1])
    np.testing.assert_array_equal(found["params/Dense_0/kernel"], kernels[0][:, kept])
    np.testing.assert_array_equal(found["params/Dense_1/kernel"], kernels[1][kept])


COLUMNS = {"image": RANDOM.normal(size=(32, 16)).astype(np.float32), "label": np.arange(32, dtype=np.int32) % 3}  # fmt: skip


def experiment(model=MLP(widths=(16,), outputs=3), **more):
    return Experiment(
        **{
            "name": "shrunk",
            "task": Classification(model=model),
            "data": Data(source=Arrays(train=COLUMNS, test=COLUMNS)),
            "optimizer": AdamW(learning_rate=1e-2, ema=0.9),
            "train": Train(steps=4, batch_size=16),
            "mesh": Mesh(data=2, fsdp=4),
            "writers": (),
        }
        | more
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run") / "run"
    lsm.fit(experiment(), workdir)
    return workdir


@pytest.mark.slow
def test_what_is_left_of_a_run_is_a_run(run, tmp_path):
    assert shrink(run, tmp_path / "out", hidden=0.5, experiment=experiment()) == 4
    record = json.loads((tmp_path / "out/config.json").read_text())
    assert record["task"]["model"]["widths"] == [8] and record["start"] is None
    small = experiment(MLP(widths=(8,), outputs=3))
    found = lsm.load(tmp_path / "out", experiment=small)
    whole = flat({"params": lsm.load(run, experiment=experiment()).params})
    want = cut(whole, shrunk(experiment().task.model, SHARES | {"hidden": 0.5})[1])
    for path, x in flat({"params": found.params}).items():
        np.testing.assert_array_equal(x, want[path])
    assert found.predict(COLUMNS)["probability"].shape == (32, 3)
    with pytest.raises(ConfigError, match="--out: .* holds a run already"):
        shrink(run, tmp_path / "out", hidden=0.5, experiment=experiment())


@pytest.mark.slow
def test_others_start_from_what_is_left(run, tmp_path):
    shrink(run, tmp_path / "out", hidden=0.5, experiment=experiment())
    small = MLP(widths=(8,), outputs=3)
    result = lsm.fit(experiment(small, start=Start(path=str(tmp_path / "out"))), tmp_path / "tuned")
    assert result.step == 4


@pytest.mark.parametrize(
    ("shares", "line"),
    [
        ({"hidden": 0}, r"shrink.hidden: 0 given; allowed: a number in \(0, 1\]"),
        ({"hidden": 1.5}, r"shrink.hidden: 1.5 given"),
        ({"heads": 0.5}, "shrink.heads: 0.5 given; MLP has none, but hidden"),
        ({}, "by which nothing goes; give one below 1"),
        ({"hidden": 0.99}, "by which nothing goes"),
    ],
)
def test_shares_that_cannot_be_are_one_line(shares, line, run, tmp_path):
    with pytest.raises(ConfigError, match=line) as error:
        shrink(run, tmp_path / "out", experiment=experiment(), **shares)
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


def test_models_without_a_table_are_refused_by_name():
    with pytest.raises(ConfigError, match="shrink: Mixer given; allowed: MLP, CNN, Airbench"):
        shrunk(Mixer(), SHARES)


def test_inner_filters_of_a_resnet_are_one_for_each_stage():
    with pytest.raises(ConfigError, match=r"ResNet.inner: \(4,\) given for 2 stages"):
        ResNet(depths=(1, 1), inner=(4,))
    with pytest.raises(ConfigError, match="ResNet.inner: .*allowed: 1 or more"):
        ResNet(depths=(1, 1), inner=(4, 0))
