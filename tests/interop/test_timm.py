"""ViT and MLP-Mixer by timm's names: logits equal to timm's with the same random weights."""

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from lsm import Data, Experiment, Start, Train
from lsm.data import Arrays
from lsm.interop import TimmViT, timm_mixer
from lsm.models import families
from lsm.optim import SGD
from lsm.tasks import Classification
from lsm.train import build
from lsm.train.start import begin


@pytest.fixture(scope="module")
def timm(torchvision):
    return pytest.importorskip("timm", reason="timm is the reference")


def perturbed(reference, std):
    """A model whose every parameter counts, and its weights by name."""
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    for parameter in reference.parameters():
        torch.nn.init.normal_(parameter, std=std)
    return reference.eval(), {k: v.detach().numpy() for k, v in reference.named_parameters()}


def started(model, size, path, **start):
    columns = {"image": np.zeros((2, size, size, 3), np.float32), "label": np.zeros(2, np.int32)}
    case = Experiment(
        name="timm",
        task=Classification(model=model),
        data=Data(source=Arrays(train=columns), validation=None, test=None),
        optimizer=SGD(learning_rate=0.1),
        train=Train(steps=1, batch_size=2),
        start=Start(path=str(path), **start),
    )
    program = build(case, case.horizon(2), columns, jax.devices()[:1])
    return begin(program, case.start, case.task, None).params


def assert_equal_logits(model, names, reference, size, path, std=0.1):
    torch = pytest.importorskip("torch")
    reference, weights = perturbed(reference, std)
    save_file(weights, path / "model.safetensors")
    params = started(model, size, path, names=names)
    x_BxHxWxC = np.random.default_rng(0).normal(size=(2, size, size, 3)).astype(np.float32)
    with torch.no_grad():
        expected = reference(torch.tensor(x_BxHxWxC).permute(0, 3, 1, 2)).numpy()
    assert np.abs(expected).max() > 0.5
    logits = jax.jit(model.apply)({"params": params}, x_BxHxWxC)
    np.testing.assert_allclose(logits, expected, atol=1e-4)


@pytest.mark.slow
def test_vit_equals_timm_s(timm, tmp_path):
    reference = timm.create_model("vit_tiny_patch16_224", img_size=64)
    assert_equal_logits(families.vit_ti(), TimmViT(heads=3), reference, 64, tmp_path)


@pytest.mark.slow
def test_vit_without_cls_equals_timm_s(timm, tmp_path):
    # By itself timm puts the norm behind the mean; `fc_norm=False` is big_vision's order.
    reference = timm.models.VisionTransformer(
        img_size=16,
        patch_size=4,
        embed_dim=24,
        depth=2,
        num_heads=2,
        num_classes=5,
        global_pool="avg",
        class_token=False,
        fc_norm=False,
    )
    sizes = {"layers": 2, "heads": 2, "width": 24, "outputs": 5, "stem": 4, "pooling": "mean"}
    assert_equal_logits(families.vit_ti(**sizes), TimmViT(heads=2), reference, 16, tmp_path, 0.5)


@pytest.mark.slow
def test_mixer_equals_timm_s(timm, tmp_path):
    reference = timm.create_model("mixer_s32_224", img_size=96)
    assert_equal_logits(families.mixer_s(patch=32), timm_mixer(), reference, 96, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("size", [64, 24], ids=["finer", "coarser"])
def test_positions_go_to_another_grid_as_timm_s(timm, size, tmp_path):
    from timm.layers import resample_abs_pos_embed

    sizes = {"img_size": 40, "patch_size": 8, "embed_dim": 8, "depth": 1, "num_heads": 1}
    reference, weights = perturbed(timm.models.VisionTransformer(num_classes=5, **sizes), std=1)
    save_file(weights, tmp_path / "model.safetensors")
    model = families.vit_ti(layers=1, heads=1, width=8, stem=8, outputs=3)
    fine = {"names": TimmViT(heads=1), "fresh": "^params/head/"}  # fine-tuning: three new classes
    params = started(model, size, tmp_path, **fine)
    expected = resample_abs_pos_embed(reference.pos_embed, [size // 8] * 2)
    np.testing.assert_allclose(params["positions"], expected.detach().numpy()[0], atol=1e-5)


def test_every_array_of_a_vit_has_timm_s_name():
    model = families.vit_ti(layers=2, heads=2, width=8, stem=4, outputs=5)
    picture = jax.ShapeDtypeStruct((1, 8, 8, 3), np.float32)
    here = jax.eval_shape(model.init, jax.random.key(0), picture)["params"]
    here = {
        "params/" + jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(here)
    }
    sources = TimmViT(heads=2).sources(here)
    parts = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
    layers = [f"blocks.{{}}.{part}" for part in parts]
    pairs = [
        f"{name}.{x}"
        for name in (*layers, "patch_embed.proj", "norm", "head")
        for x in ("weight", "bias")
    ]
    assert {source.tensors for source in sources.values()} == {
        (name,) for name in (*pairs, "cls_token", "pos_embed")
    }
    # There (q, k, v) are the first of three dimensions of the columns; here heads are.
    qkv = np.arange(24)
    expected = qkv.reshape(3, 2, 4).swapaxes(0, 1).ravel()
    np.testing.assert_array_equal(sources["params/blocks/qkv/bias"].function(qkv), expected)
