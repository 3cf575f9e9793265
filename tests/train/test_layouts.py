"""Every layout of a mesh: the same numbers as one device, and the collectives that it needs."""

import functools

import jax
import numpy as np
import pytest

from launch.plan.collectives import collectives_of
from launch.plan.hlo import parse
from lsm import Data, Experiment, Mesh, Train
from lsm.cost import CHIPS
from lsm.data import Arrays
from lsm.errors import MeshError
from lsm.models import CNN, MLP, ConvNeXt, Mixer, ResNet
from lsm.models.experts import Experts
from lsm.models.families import gemma2, gpt2, llama, vit_ti
from lsm.optim import SGD
from lsm.tasks import Classification, LanguageModelling
from lsm.train import build

B, T, V, D = 16, 32, 64, 32
SIZES = {"vocabulary": V, "layers": 4, "heads": 4, "width": D, "context": T}
GROUPED = {**SIZES, "kv_heads": 2, "hidden": 64}
MODELS = {
    "gpt2": gpt2(**SIZES),
    "llama": llama(**GROUPED),
    "gemma": gemma2(**GROUPED, head_width=8, window=8),
    "experts": llama(**GROUPED, experts=Experts(count=4, top_k=2)),
}
MESHES = {
    "data": Mesh(),
    "fsdp": Mesh(data=1, fsdp=8),
    "tensor": Mesh(data=4, tensor=2),
    "sequence": Mesh(data=2, sequence=4),
    "pipeline": Mesh(data=2, pipeline=4),
    "expert": Mesh(data=2, expert=4),
    "fsdp x tensor x sequence": Mesh(data=1, fsdp=2, tensor=2, sequence=2),
    "pipeline x fsdp x tensor": Mesh(data=1, pipeline=2, fsdp=2, tensor=2),
    "expert x fsdp x sequence": Mesh(data=1, expert=2, fsdp=2, sequence=2),
    "expert x tensor x pipeline": Mesh(data=1, expert=2, tensor=2, pipeline=2),
}
CASES = [
    ("gpt2", "data"),
    ("gpt2", "fsdp"),
    ("gpt2", "tensor"),
    ("llama", "sequence"),
    ("llama", "fsdp x tensor x sequence"),
    ("llama", "pipeline x fsdp x tensor"),
    ("gemma", "pipeline"),
    ("experts", "expert"),
    ("experts", "expert x fsdp x sequence"),
    ("experts", "expert x tensor x pipeline"),
]
NEEDED = {
    "data": "all-reduce",
    "fsdp": "all-gather",
    "tensor": "all-gather",
    "sequence": "all-gather",
    "pipeline": "collective-permute",
    "expert": "all-to-all",
}


def text(seed):
    return {"tokens": np.random.default_rng(seed).integers(0, V, (B, T + 1), dtype=np.int32)}


def program_of(task, mesh, batch, devices, **train):
    experiment = Experiment(
        name="layout",
        task=task,
        data=Data(source=Arrays(batch)),
        optimizer=SGD(learning_rate=0.5),
        train=Train(steps=3, batch_size=B, **train),
        mesh=mesh,
    )
    return build(experiment, experiment.train.horizon(B), batch, jax.devices()[:devices])


def run(program, batches):
    """Returns the losses, the final parameters and the step's HLO."""
    state, losses = program.init(), []
    placed = [jax.device_put(batch, program.batch) for batch in batches]
    step = program.step.lower(state, placed[0]).compile()
    for batch in placed:
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"].mean))
    return losses, jax.device_get(state.params), step.as_text()


@functools.cache
def on_one_device(model):
    batches = [text(seed) for seed in range(3)]
    task = LanguageModelling(model=MODELS[model])
    return run(program_of(task, Mesh(), batches[0], devices=1), batches)


def collectives(hlo, mesh):
    """Returns [(kind, mesh axes, bytes)] of a compiled step."""
    return [(one.kind, one.axes, one.bytes) for one in collectives_of(parse(hlo), mesh, CHIPS[0])]


@pytest.mark.slow
@pytest.mark.parametrize(("model", "layout"), CASES)
def test_every_layout_equals_one_device(model, layout, capfd):
    batches = [text(seed) for seed in range(3)]
    mesh = MESHES[layout]
    program = program_of(LanguageModelling(model=MODELS[model]), mesh, batches[0], devices=8)
    losses, params, hlo = run(program, batches)
    expected_losses, expected_params, _ = on_one_device(model)
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-5)
    assert losses[0] != losses[1]
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6), params, expected_params
    )
    assert "full rematerialization" not in capfd.readouterr().err
    found = collectives(hlo, program.mesh)
    for axis in layout.split(" x "):
        assert any(kind == NEEDED[axis] and axis in axes for kind, axes, _ in found), axis
    rows = B // (mesh.fsdp * mesh.expert * max(mesh.data, 1)) * T
    allowed = {
        ("fsdp",): 4 * 4 * D * D * (4 if model == "experts" else 1),  # a layer's largest parameter
        ("sequence",): 4 * rows * D,  # keys, values or tokens of a device's rows
        ("tensor",): 4 * rows * max(D, 8),  # the residual stream, before products
        ("pipeline",): 4 * 2 * rows * D,  # the gradient of what leaves the last stage, once
    }
    for kind, axes, size in found:
        # Else no more than one number of each device for each token, as for the largest logit.
        if kind == "all-gather":
            assert size <= allowed.get(axes, 4 * rows * 8), f"a surprising all-gather over {axes}"


@pytest.mark.parametrize(
    "model",
    [
        MLP(widths=(32, 16)),
        CNN(widths=(8,), convs=1, hidden=(32,)),
        pytest.param(
            ResNet(depths=(1, 1), width=8, bottleneck=True, outputs=10), marks=pytest.mark.slow
        ),
        pytest.param(
            ConvNeXt(depths=(1, 1), widths=(8, 16), patch=2, outputs=10), marks=pytest.mark.slow
        ),
        pytest.param(
            vit_ti(layers=2, heads=2, width=16, stem=4, outputs=10), marks=pytest.mark.slow
        ),
        pytest.param(
            Mixer(layers=2, width=16, tokens=8, channels=32, patch=2, outputs=10),
            marks=pytest.mark.slow,
        ),
    ],
    ids=lambda model: type(model).__name__,
)
def test_tensor_parallel_models_of_pictures_equal_one_device(model):
    random = np.random.default_rng(0)
    batch = {
        "image": random.integers(0, 256, (B, 8, 8, 1), dtype=np.uint8),
        "label": random.integers(0, 10, B, dtype=np.int32),
    }
    task = Classification(model=model)
    losses, params, _ = run(program_of(task, Mesh(), batch, devices=1), [batch] * 3)
    program = program_of(task, Mesh(data=2, fsdp=2, tensor=2), batch, devices=8)
    split, many, _ = run(program, [batch] * 3)
    np.testing.assert_allclose(split, losses, rtol=1e-5)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5), many, params)
    specs = {
        row[3] for row in program.table() if row[0].startswith("params") and "kernel" in row[0]
    }
    assert any("tensor" in spec for spec in specs)


@pytest.mark.parametrize(
    ("task", "mesh", "message"),
    [
        (
            LanguageModelling(model=MODELS["llama"]),
            Mesh(data=2, tensor=4),
            "tensor=4 does not divide the 2 key heads",
        ),
        (LanguageModelling(model=MODELS["llama"]), Mesh(pipeline=8, data=1), "pipeline=8 does not"),
        (Classification(model=MLP()), Mesh(sequence=2), "mesh.sequence: 2 given, but MLP makes"),
    ],
)
def test_a_mesh_that_the_model_cannot_use_is_one_line(task, mesh, message):
    with pytest.raises(MeshError, match=message):
        batch = (
            text(0) if isinstance(task, LanguageModelling) else {"image": np.zeros((B, 8, 8, 1))}
        )
        program = program_of(task, mesh, batch, devices=8)
        program.step.lower(program.abstract_state, batch)
