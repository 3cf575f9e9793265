"""ResNet, WideResNet and ConvNeXt: the published sizes, and the logits of torchvision and timm."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from lsm import Data, Experiment, Start, Train
from lsm.data import Arrays
from lsm.errors import ConfigError
from lsm.interop import timm_convnext, torchvision_convnext, torchvision_resnet
from lsm.models import CNN, Airbench, ConvNeXt, ResNet, WideResNet
from lsm.models.convnext import convnext_base, convnext_small, convnext_tiny
from lsm.models.resnet import (
    resnet18,
    resnet34,
    resnet50,
    resnet101,
    resnet152,
    resnet_cifar,
)
from lsm.optim import SGD
from lsm.tasks import Classification
from lsm.train import build
from lsm.train.start import begin

KEY = jax.random.key(0)
ZEROS = {"kernel_init": nn.initializers.zeros}  # traced faster than a draw


def count(model):
    picture = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    variables = jax.eval_shape(model.init, KEY, picture)
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables["params"]))


def test_the_smaller_sizes_have_the_published_number_of_parameters():
    assert count(resnet18(**ZEROS)) == 11_689_512  # torchvision's page of models
    assert count(resnet50(**ZEROS)) == 25_557_032
    assert count(convnext_tiny()) == 28_589_128
    # He et al.: 0.27 M; with projections 2 x (1x1 convolutions and norms) more.
    assert count(resnet_cifar(**ZEROS)) == 269_722
    more = (16 * 32 + 2 * 32) + (32 * 64 + 2 * 64)
    assert count(resnet_cifar(shortcut="projection", **ZEROS)) == 269_722 + more


@pytest.mark.slow
def test_the_larger_sizes_have_the_published_number_of_parameters():
    assert count(resnet34(**ZEROS)) == 21_797_672
    assert count(resnet101(**ZEROS)) == 44_549_160
    assert count(resnet152(**ZEROS)) == 60_192_808
    assert count(convnext_small()) == 50_223_688
    assert count(convnext_base()) == 88_591_464
    # Zagoruyko & Komodakis, table 4: 36.5 M and 2.7 M; He et al., table 6: 0.85 M and 1.7 M.
    assert count(WideResNet(**ZEROS)) == 36_479_194
    assert count(WideResNet(depth=16, factor=4, **ZEROS)) == 2_748_890
    assert count(resnet_cifar(56, **ZEROS)) / 1e6 == pytest.approx(0.85, abs=5e-3)
    assert count(resnet_cifar(110, **ZEROS)) / 1e6 == pytest.approx(1.7, abs=5e-2)


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda: resnet_cifar(21), "depth 21 given; it is 6n"),
        (lambda: WideResNet(depth=20), "WideResNet.depth: 20 given"),
        (lambda: ConvNeXt(depths=(3, 3)), "4 given for 2 stages"),
    ],
)
def test_sizes_that_do_not_exist_are_refused(make, line):
    with pytest.raises(ConfigError, match=line):
        make()


@pytest.mark.parametrize(
    ("model", "height", "width"),
    [
        (CNN(widths=(4, 4, 4), convs=1), 4, 2),
        (CNN(widths=(4, 4), convs=2, padding="VALID"), 9, 6),
        (CNN(widths=(4, 4), convs=1, head="flatten"), 1, 4),
        (ConvNeXt(depths=(1, 1, 1, 1), widths=(8, 8, 8, 8)), 16, 32),
        (Airbench(widths=(4, 4, 4)), 8, 9),
        (Airbench(), 1, 9),
    ],
)
def test_a_network_too_deep_for_its_pictures_is_told(model, height, width):
    line = (
        f"^{type(model).__name__}: nothing is left of pictures of {height} x {width}; fewer "
        "stages, or larger pictures are needed."
    )
    with pytest.raises(ConfigError, match=line):
        jax.eval_shape(model.init, KEY, jnp.zeros((2, height, width, 3)))


def drawn(model, x_BxHxWxC):
    """Variables by NumPy, for `init` takes a second to compile: vectors above 0, as variances are."""
    random, shapes = np.random.default_rng(0), jax.eval_shape(model.init, KEY, x_BxHxWxC)

    def draw(leaf):
        low = -0.3 if leaf.ndim > 1 else 0.1
        return random.uniform(low, 0.3, leaf.shape).astype(np.float32)

    return jax.tree.map(draw, shapes)


def test_batch_norm_takes_the_whole_batch_on_any_mesh():
    model = ResNet(depths=(1, 1), width=4, stem="cifar", outputs=3)
    x_BxHxWxC = np.random.default_rng(0).normal(size=(16, 4, 4, 3)).astype(np.float32)
    variables = drawn(model, x_BxHxWxC)
    train = jax.jit(lambda variables, x: model.apply(variables, x, True, mutable="batch_stats"))

    def on(devices):
        mesh = jax.make_mesh(
            (devices,), ("data",), (AxisType.Auto,), devices=jax.devices()[:devices]
        )
        rows = jax.device_put(x_BxHxWxC, NamedSharding(mesh, PartitionSpec("data")))
        return jax.device_get(
            train(jax.device_put(variables, NamedSharding(mesh, PartitionSpec())), rows)
        )

    (one, statistics), (many, of_many) = on(1), on(8)
    np.testing.assert_allclose(many, one, rtol=1e-4, atol=1e-6)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5), of_many, statistics)


def test_stochastic_depth_drops_whole_examples_and_more_in_later_blocks():
    model = ConvNeXt(depths=(1, 2), widths=(4, 4), patch=2, outputs=3, drop_path=0.5)
    x_BxHxWxC = np.random.default_rng(0).normal(size=(64, 4, 4, 3)).astype(np.float32)
    variables = drawn(model, x_BxHxWxC)

    @jax.jit
    def adds(key):
        seen = {"capture_intermediates": lambda module, _: type(module) is nn.Dropout}
        _, state = model.apply(
            variables, x_BxHxWxC, True, rngs={"dropout": key}, mutable="intermediates", **seen
        )
        return jax.tree.leaves(state["intermediates"])

    for add, share in zip(jax.device_get(adds(KEY)), (1, 0.75, 0.5), strict=True):
        kept_B = np.all(add != 0, axis=(1, 2, 3))
        np.testing.assert_array_equal(kept_B, np.any(add != 0, axis=(1, 2, 3)))
        assert abs(kept_B.mean() - share) < 0.15


def test_the_forms_for_small_pictures_equal_pytorch():
    """As in the functional forms of their authors; `bn` and `conv` with the same arrays."""
    torch = pytest.importorskip("torch", reason="PyTorch is the reference")

    def conv(w, x, stride=1):
        kernel = torch.tensor(w["kernel"]).permute(3, 2, 0, 1)
        return torch.conv2d(x, kernel, None, stride, kernel.shape[-1] // 2)

    def bn(name, at, x):
        (w, seen) = ({k: torch.tensor(v) for k, v in of[name].items()} for of in at)
        return torch.batch_norm(
            x, w["scale"], w["bias"], seen["mean"], seen["var"], False, 0.1, 1e-5, False
        )

    def wide(at, x, stride):
        w = at[0]
        y = bn("norm_1", at, x).relu()
        x = conv(w["shortcut"], y, stride) if "shortcut" in w else x
        y = bn("norm_2", at, conv(w["conv_1"], y, stride)).relu()
        return x + conv(w["conv_2"], y)

    def plain(at, x, stride):
        w = at[0]
        y = bn("norm_1", at, conv(w["conv_1"], x, stride)).relu()
        y = bn("norm_2", at, conv(w["conv_2"], y))
        x = x[:, :, ::stride, ::stride]
        return (torch.nn.functional.pad(x, (0, 0, 0, 0, 0, y.shape[1] - x.shape[1])) + y).relu()

    x_BxHxWxC = np.random.default_rng(1).normal(size=(2, 8, 8, 3)).astype(np.float32)
    for model, block in [(WideResNet(depth=10, factor=2), wide), (resnet_cifar(8), plain)]:
        variables = drawn(model, x_BxHxWxC)
        params, seen = variables["params"], variables["batch_stats"]
        x = conv(params["conv"], torch.tensor(x_BxHxWxC).permute(0, 3, 1, 2))
        x = x if block is wide else bn("norm", (params, seen), x).relu()
        for stage in (1, 2, 3):
            name = f"stage_{stage}_block_0"
            x = block((params[name], seen[name]), x, 1 if stage == 1 else 2)
        x = bn("norm", (params, seen), x).relu() if block is wide else x
        expected = x.mean((2, 3)).numpy() @ params["head"]["kernel"] + params["head"]["bias"]
        logits = jax.jit(model.apply)(variables, x_BxHxWxC)
        np.testing.assert_allclose(logits, expected, rtol=1e-4)


def experiment(model, **more):
    columns = {
        "image": np.zeros((2, 64, 64, 3), np.float32),
        "label": np.zeros(2, np.int32),
    }
    return Experiment(
        name="convolutional",
        task=Classification(model=model),
        data=Data(source=Arrays(train=columns), validation=None, test=None),
        optimizer=SGD(learning_rate=0.1),
        train=Train(steps=1, batch_size=2),
        **more,
    )


def first_state(case):
    batch = case.data.source.train
    program = build(case, case.horizon(2), batch, jax.devices()[:1])
    return begin(program, case.start, case.task, None)


def perturbed(reference):
    """Draws what a fresh network has at 0 and 1, so that it counts."""
    import torch

    torch.manual_seed(0)
    for name, value in reference.state_dict().items():
        if value.ndim < 2 and name.endswith(("weight", "running_var")):
            value.uniform_(0.5, 1)
        elif name.endswith(("layer_scale", "gamma")):
            value.uniform_(0.1, 0.3)
        elif value.is_floating_point() and not name.endswith("weight"):
            value.normal_(0, 0.1)
    return reference.eval()


def assert_same_logits(model, reference, names, path):
    """Writes the reference's weights with its own names, starts from them, compares logits."""
    import torch
    from safetensors.torch import save_file

    save_file(perturbed(reference).state_dict(), path / "model.safetensors")
    state = first_state(experiment(model, start=Start(path=str(path), names=names)))
    x_BxHxWxC = np.random.default_rng(0).normal(size=(2, 64, 64, 3)).astype(np.float32)
    with torch.no_grad():
        expected = reference(torch.tensor(x_BxHxWxC).permute(0, 3, 1, 2)).numpy()
    variables = {"params": state.params, **state.model_state}
    logits = jax.jit(model.apply)(variables, x_BxHxWxC)
    assert np.abs(expected).max() > 0.5
    np.testing.assert_allclose(logits, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("make", [resnet18, resnet50], ids=lambda make: make.__name__)
def test_resnets_equal_torchvision_s(torchvision, make, tmp_path):
    reference = getattr(torchvision.models, make.__name__)()
    assert_same_logits(make(), reference, torchvision_resnet(), tmp_path)


@pytest.mark.slow
def test_convnext_equals_torchvision_s(torchvision, tmp_path):
    reference = torchvision.models.convnext_tiny()
    assert_same_logits(convnext_tiny(), reference, torchvision_convnext(), tmp_path)


@pytest.mark.slow
def test_convnext_equals_timm_s(torchvision, tmp_path):
    timm = pytest.importorskip("timm", reason="timm is the reference")
    reference = timm.create_model("convnext_atto", conv_mlp=False)
    model = ConvNeXt(depths=(2, 2, 6, 2), widths=(40, 80, 160, 320))
    assert_same_logits(model, reference, timm_convnext(), tmp_path)
