"""Systems on pictures: SimpleCNN on a folder, cats and dogs by one logit."""

import dataclasses
import pathlib

import jax
import numpy as np
import optax
import pytest
from PIL import Image
from sklearn.metrics import accuracy_score, log_loss

import lsm
from lsm import Callback, Start
from lsm.config import flags
from lsm.data import Arrays, Select
from lsm.durations import Horizon
from lsm.models import MLP
from lsm.tasks import Classification
from lsm.train import build

ROOT = pathlib.Path(__file__).parents[2]
SIMPLE = "experiments/configs/folder/simple_cnn.py"
CATS = "experiments/configs/cifar/cats_dogs.py"


def test_one_output_is_the_logit_of_the_logistic_loss():
    rng = np.random.default_rng(0)
    columns = {
        "image": rng.normal(size=(20, 3)).astype(np.float32),
        "label": rng.integers(0, 2, 20).astype(np.int32),
    }
    task = Classification(model=MLP(widths=(), outputs=1), class_weights=(1.0, 3.0))
    params, state = task.init(jax.random.key(0), columns)

    @jax.jit  # one program
    def everything(params):
        logit_B = task.forward(params, state, columns, {}, False, 0)[0][:, 0]
        grads = jax.grad(lambda p: task.loss(p, state, columns, {})[0])(params)
        theirs_B = optax.sigmoid_binary_cross_entropy(logit_B, columns["label"])
        evaluated = task.evaluate(params, state, columns)
        return logit_B, theirs_B, evaluated, task.predict(params, state, columns), grads

    logit_B, theirs_B, found, predicted, grads = jax.device_get(everything(params))
    label_B, positive_B = columns["label"], predicted["probability"][:, 1]
    assert found["loss"].mean == pytest.approx(theirs_B.mean(), rel=1e-6)
    assert found["loss"].mean == pytest.approx(log_loss(label_B, positive_B), rel=1e-5)
    np.testing.assert_allclose(positive_B, 1 / (1 + np.exp(-logit_B)), rtol=1e-6)
    np.testing.assert_array_equal(predicted["label"], logit_B > 0)
    assert found["accuracy"].mean == pytest.approx(accuracy_score(label_B, predicted["label"]))
    error_B = np.where(label_B == 1, 3, 1) * (positive_B - label_B)  # the gradient, by hand
    (kernel,) = (x for x in jax.tree.leaves(grads) if x.ndim == 2)
    np.testing.assert_allclose(kernel[:, 0], columns["image"].T @ error_B, rtol=1e-4)
    with pytest.raises(lsm.LsmError, match="a label of 2 where the model has 2 outputs"):
        task.check(columns | {"label": np.full(20, 2, np.int32)})


def test_simple_cnn_is_the_published_one_and_fsdp_gives_each_device_an_eighth():
    """Nothing is computed: 2.5 GB of parameters and moments."""
    experiment = flags.load(SIMPLE, {"task.model.outputs": "10", "mesh.fsdp": "8"})
    batch = {
        "image": jax.ShapeDtypeStruct((64, 224, 224, 3), np.uint8),
        "label": jax.ShapeDtypeStruct((64,), np.int32),
    }
    state = build(experiment, Horizon(100, 64, 244), batch).abstract_state
    by_hand = 64 * 28 + 128 * (64 * 9 + 1) + 512 * (128 * 56 * 56 + 1) + 10 * 513
    assert sum(x.size for x in jax.tree.leaves(state.params)) == by_hand == 205_602_186
    for tree, copies in ((state.params, 1), (state.opt_state, 2)):
        held = sum(np.prod(x.sharding.shard_shape(x.shape)) for x in jax.tree.leaves(tree))
        assert held == pytest.approx(copies * by_hand / 8, rel=1e-3)


@pytest.fixture
def tree(tmp_path):
    rng = np.random.default_rng(0)
    for name, low in (("dark", 0), ("light", 155)):
        for i in range(20):
            file = tmp_path / f"tree/{name}/{i}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(low, low + 100, (20, 24, 3), np.uint8)).save(file)
    return tmp_path / "tree"


def test_the_configs_of_folders_know_splits_and_classes(tree, monkeypatch):
    monkeypatch.chdir(tree.parent)
    (tree.parent / "both").mkdir()
    for split in ("train", "valid"):
        (tree.parent / "both" / split).symlink_to(tree)
    for config in (SIMPLE, SIMPLE.replace("simple_cnn", "transfer")):
        for path, expected in {
            "tree": ("train[:80%]", "train[80%:]"),
            "both": ("train", "valid"),
        }.items():
            experiment = flags.load(f"{ROOT / config}:{path}")
            assert (experiment.data.train, experiment.data.validation) == expected
            assert experiment.task.model.outputs == 2
            assert experiment.data.source.path == str(tree.parent / path)


@pytest.mark.slow
def test_simple_cnn_learns_a_folder_sharded_over_eight_devices(tree, tmp_path):
    changes = {
        "data.source.size": "16",
        "train.batch_size": "16",
        "train.epochs": "4",
        "task.model.hidden": "(64,)",
        "writers": "()",
        "mesh.fsdp": "8",
    }
    held = []

    def look(at):
        leaves = jax.tree.leaves((at.state().params, at.state().opt_state))
        shards = sum(x.addressable_shards[0].data.size for x in leaves)
        held.append(shards / sum(x.size for x in leaves))

    experiment = flags.load(f"{SIMPLE}:{tree}", changes)
    experiment = dataclasses.replace(experiment, callbacks=(Callback(after_evaluation=look),))
    assert lsm.fit(experiment, tmp_path / "run").metrics["validation"]["accuracy"] > 0.7
    assert held[-1] == pytest.approx(1 / 8, rel=0.05)


def like_cifar(cifar):
    """Random pictures, in which the first channel tells the class."""
    rng = np.random.default_rng(0)
    names = (*cifar.classes[:1], "other", *cifar.classes[1:])
    label = np.arange(60, dtype=np.int32) % len(names)
    image = rng.integers(0, 99, (60, 8, 8, 3)).astype(np.uint8)
    image[..., 0] = 20 * label[:, None, None]
    columns = {"image": image, "label": label}
    return Arrays(columns, test=columns, classes=names)


@pytest.mark.slow
def test_what_was_learnt_of_eight_classes_begins_two(tmp_path):
    for arg in ("eight", "tuned"):
        changes = {"train.steps": "1", "train.epochs": "None", "task.model.widths": "(4,)"}
        changes |= {"train.batch_size": "8", "evaluation.every": "9", "writers": "()"}
        experiment = flags.load(f"{CATS}:{arg}", changes)
        chosen = experiment.data.source
        source = Select(like_cifar(chosen), chosen.classes, {"train": 4})
        experiment = dataclasses.replace(
            experiment, data=dataclasses.replace(experiment.data, source=source)
        )
        if arg == "tuned":
            start = Start(path=str(tmp_path / "eight"), fresh=experiment.start.fresh)
            experiment = dataclasses.replace(experiment, start=start)
        result = lsm.fit(experiment, tmp_path / arg)
        assert {f"f1/{name}" for name in chosen.classes} <= result.metrics["test"].keys()
        assert (tmp_path / arg / "mistakes.png").exists()
