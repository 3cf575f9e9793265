"""Mixup and CutMix: what they do to pictures and targets, and what a task makes of both."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from lsm.errors import ConfigError, DataError
from lsm.models import MLP
from lsm.rng import streams
from lsm.tasks import Classification, CutMix, Mixup
from lsm.tasks.mix import beta, blend, paste

LABELS = np.array([2, 0, 1, 1], np.int32)


def batch(labels=LABELS):
    image = np.random.default_rng(0).integers(0, 256, (4, 6, 10, 1)).astype(np.uint8)
    return {"image": image, "label": labels}


def test_blend_and_paste_take_from_the_row_before():
    x = np.arange(12.0).reshape(3, 2, 2, 1).astype(np.float32)
    before = x[[2, 0, 1]]
    np.testing.assert_allclose(blend(x, 0.3), 0.3 * x + 0.7 * before, rtol=1e-6)
    expected = x.copy()
    expected[:, 0, 1:] = before[:, 0, 1:]
    np.testing.assert_array_equal(paste(x, (0, 1), (1, 2)), expected)


@pytest.mark.slow
def test_shares_are_of_a_beta_distribution():
    share = jax.jit(jax.vmap(beta))(jax.random.split(jax.random.key(0), 2000), jnp.full(2000, 0.4))
    # 1/2, and 1/4 / (2 alpha + 1) = 0.139 = 0.373^2; five standard errors.
    assert abs(share.mean() - 0.5) < 0.042 and abs(share.std() - 0.373) < 0.02


def test_cut_targets_hold_the_shares_of_the_areas():
    # Row i is i everywhere: the mean of a picture tells how much of which it holds.
    image = np.broadcast_to(np.arange(3.0)[:, None, None, None], (3, 6, 10, 1))
    keys = jax.random.split(jax.random.key(0), 400)
    cut = jax.jit(jax.vmap(lambda key, share: CutMix()(share, key, image, jnp.eye(3))))
    images, targets = map(np.asarray, cut(keys, jnp.linspace(0, 1, 400)))
    share = targets[:, 1, 1]  # of the picture itself
    np.testing.assert_allclose(targets[:, 1, 0], 1 - share, atol=1e-6)
    np.testing.assert_allclose(images[:, 1].mean((1, 2, 3)), share, atol=1e-5)
    np.testing.assert_allclose(images[:, 0].mean((1, 2, 3)), 2 * (1 - share), atol=1e-5)
    cut = images[:, 1, :, :, 0] == 0
    rows, columns = cut.any(2), cut.any(1)
    assert (cut == rows[:, :, None] & columns[:, None]).all()  # one rectangle
    assert rows.mean(0).min() > 0.1 and columns.mean(0).min() > 0.1  # anywhere
    assert share.min() < 0.5 and share.max() == 1


def test_a_task_trains_on_the_mix():
    task = Classification(model=MLP(outputs=3), mix=(Mixup(1.0), CutMix()), label_smoothing=0.1)
    assert task.streams == ("dropout", "mix")
    whole = {name: np.concatenate([x, x[::-1]]) for name, x in batch().items()}
    params, state = jax.jit(task.init)(jax.random.key(0), whole)

    @jax.jit
    def trained(batch, step):
        found = dict(task.augment(batch, streams(task.streams, 5, step)))
        logits, _ = task.forward(params, state, found, {}, True, step)
        return found, logits, task.loss(params, state, batch, streams(task.streams, 5, step))[0]

    hard, kinds = np.eye(3)[whole["label"]], set()
    for step in range(8):
        found, logits, total = trained(whole, step)
        share = found["label"][1, 0]  # row 1 is of class 0, the one before of 2
        expected = share * hard + (1 - share) * np.roll(hard, 1, axis=0)
        np.testing.assert_allclose(found["label"], expected, atol=1e-6)
        smooth = 0.9 * expected + 0.1 / 3
        np.testing.assert_allclose(total, -(smooth * jax.nn.log_softmax(logits)).sum(), rtol=1e-5)
        values = found["image"] * 255  # whole numbers, unless they were blended
        kinds.add(bool(np.allclose(values, np.rint(values), atol=1e-3)))
    assert kinds == {True, False}  # both were drawn
    assert np.isnan(trained({**whole, "label": whole["label"] + 2}, 0)[2])


@pytest.mark.slow
def test_the_mix_is_the_same_on_every_mesh():
    task = Classification(model=MLP(outputs=3), mix=(Mixup(1.0), CutMix()))
    whole = {name: np.concatenate([x, x[::-1]]) for name, x in batch().items()}
    mesh = jax.sharding.Mesh(np.array(jax.devices()), "data")
    rows = NamedSharding(mesh, PartitionSpec("data"))

    def made(batch, step):
        return dict(task.augment(batch, streams(task.streams, 5, step)))

    on_one, on_eight = jax.jit(made), jax.jit(made, in_shardings=(rows, None), out_shardings=rows)
    placed = {name: jax.device_put(x, rows) for name, x in whole.items()}
    for step in range(6):
        for name, x in on_eight(placed, step).items():
            np.testing.assert_array_equal(on_one(whole, step)[name], x)


def test_shares_of_classes_are_labels():
    task = Classification(model=MLP(outputs=3), label_smoothing=0.1)
    logits = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    figures = jax.jit(lambda batch: task.metrics(logits, batch, True, 0))
    one, other = figures(batch()), figures(batch(np.eye(3, dtype=np.float32)[LABELS]))
    for name, value in one.items():
        np.testing.assert_allclose(other[name], value, rtol=1e-6)


def test_what_cannot_be_mixed_is_told():
    task = Classification(model=MLP(outputs=3), mix=(CutMix(),))

    def augment(**columns):
        rngs = {"mix": jax.eval_shape(lambda: jax.random.key(0))}
        return jax.eval_shape(task.augment, {**batch(), **columns}, rngs)

    assert augment()["label"].shape == (4, 3)
    with pytest.raises(ConfigError, match=r"Mixup.alpha: 0 given"):
        Mixup(0)
    with pytest.raises(ConfigError, match="Classification.mix: class_weights"):
        dataclasses.replace(task, class_weights=(1.0, 2.0, 1.0))
    with pytest.raises(ConfigError, match="^task.mix: the examples have weights"):
        augment(weight=np.ones(4, np.float32))
    with pytest.raises(DataError, match=r"^CutMix: inputs are \(4, 60\); pictures"):
        augment(image=batch()["image"].reshape(4, 60))


@pytest.mark.parametrize(
    ("shares", "said"),
    [
        (np.full((4, 3), 0.5), "must be 0 or more, and sum to 1"),
        (np.full((4, 2), 0.5), r"shares of classes \(4, 2\) where the model has 3 outputs"),
        (np.full(4, 0.5), "labels are float32; integer class numbers are needed"),
    ],
)
def test_labels_that_are_no_shares_are_told(shares, said):
    with pytest.raises(DataError, match=f"^task.label: .*{said}"):
        Classification(model=MLP(outputs=3)).check(batch(shares.astype(np.float32)))


@pytest.mark.slow
def test_mixes_equal_torchvision_s():
    torch = pytest.importorskip("torch", reason="needs torch and torchvision")
    pytest.importorskip("benchmarks.peer", reason="needs torchvision")
    from torchvision.transforms import v2

    image, target = (
        np.random.default_rng(0).random((4, 3, 8, 9), np.float32),
        np.eye(4, dtype=np.float32),
    )
    of_torch, classes = torch.tensor(image), torch.tensor(target)
    ours = np.moveaxis(image, 1, -1)
    params = {
        "labels": classes,
        "batch_size": 4,
        "lam": 0.3,
        "box": (2, 1, 7, 5),
        "lam_adjusted": 0.7,
    }
    theirs = v2.MixUp(num_classes=4)
    np.testing.assert_allclose(
        blend(ours, 0.3), np.moveaxis(theirs.transform(of_torch, params).numpy(), 1, -1), rtol=1e-6
    )
    np.testing.assert_allclose(blend(target, 0.3), theirs.transform(classes, params), rtol=1e-6)
    cut = v2.CutMix(num_classes=4).transform(of_torch, params).numpy()
    np.testing.assert_array_equal(paste(ours, (1, 2), (5, 7)), np.moveaxis(cut, 1, -1))
