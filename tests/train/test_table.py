"""The table of a state before anything is compiled."""

import dataclasses

import jax
import numpy as np
import pytest

import lsm
from lsm import Data, Experiment, Mesh, Train
from lsm.data import RandomFlip, RandomResizedCrop, Source, Tokens
from lsm.errors import DataError, MeshError
from lsm.models import MLP
from lsm.models.experts import Experts
from lsm.models.families import llama, mixtral
from lsm.optim import Adam
from lsm.tasks import Classification, LanguageModelling
from lsm.train import abstract_batch, state_table

SIZES = {"vocabulary": 64, "layers": 2, "heads": 4, "kv_heads": 2, "width": 32, "context": 16}
MODEL = llama(**SIZES, hidden=64, tied=True)


def experiment(**changes):
    fields = {
        "name": "table",
        "task": LanguageModelling(model=MODEL),
        "data": Data(source=Tokens("no/such/folder", length=16)),
        "optimizer": Adam(learning_rate=1e-3),
        "train": Train(steps=10, batch_size=8),
        "mesh": Mesh(data=1, fsdp=2, tensor=4, rules=None),
    }
    return Experiment(**fields | changes)


def test_lines_hold_path_shape_dtype_axes_and_bytes_and_totals_add_up():
    # kv_heads=2 is for the step to refuse with tensor=4: the table asks of parameters alone.
    lines = state_table(experiment(), devices=jax.devices()[:8]).splitlines()
    assert lines[0].split()[:4] == ["path", "shape", "dtype", "spec"]
    up = next(line for line in lines if line.startswith("params/blocks/up/kernel "))
    assert up.split()[1:] == ["2x32x64", "float32", "None,", "fsdp,", "tensor", "2,048"]
    rows = [line for line in lines[1:] if line.startswith(("step", "params/", "opt_state/"))]
    sizes = [int(line.split()[-1].replace(",", "")) for line in rows]
    assert int(lines[-1].split()[-1].replace(",", "")) == sum(sizes)
    params = [size for line, size in zip(rows, sizes, strict=True) if line.startswith("params/")]
    total = next(line for line in lines if line.startswith("parameters"))
    assert int(total.split()[-1].replace(",", "")) == sum(params)
    count = sum(
        leaf.size
        for leaf in jax.tree.leaves(
            jax.eval_shape(MODEL.init, jax.random.key(0), np.zeros((1, 4), int))
        )
    )
    assert total.split()[1] == f"{count:,}"
    assert len({len(line) for line in lines}) == 1, "columns are aligned"


def test_what_does_not_divide_is_named_with_a_way_out():
    odd = dataclasses.replace(experiment().task, model=llama(**SIZES, hidden=63))
    with pytest.raises(MeshError, match=r"tensor=4 .* dimension 1 of 'params/blocks/down/kernel'"):
        state_table(experiment(task=odd), devices=jax.devices()[:8])


def test_shapes_come_without_data_where_the_source_knows_them():
    batch, horizon = abstract_batch(experiment())
    assert {name: (x.shape, x.dtype) for name, x in batch.items()} == {
        "tokens": ((8, 17), np.dtype("int32"))
    }
    assert horizon.steps == 10
    with pytest.raises(DataError):
        abstract_batch(experiment(train=Train(epochs=1, batch_size=8)))


@dataclasses.dataclass(frozen=True)
class Absent(Source):
    """Pictures of any size, which are somewhere else."""

    def open(self, split, data_dir=None):
        raise DataError("not here")

    def spec(self, split, data_dir=None):
        label = jax.ShapeDtypeStruct((), np.int32)
        return {"image": jax.ShapeDtypeStruct((), object), "label": label}


def test_pictures_of_any_size_have_the_one_that_augmentation_gives_them():
    data = Data(source=Absent(), augment=(RandomResizedCrop(48), RandomFlip()))
    task = Classification(model=MLP())
    batch, _ = abstract_batch(experiment(data=data, task=task))
    assert batch["image"].shape == (8, 48, 48, 3) and batch["image"].dtype == np.uint8
    with pytest.raises(DataError, match="column 'image' has no one shape"):
        abstract_batch(experiment(data=dataclasses.replace(data, augment=()), task=task))


def test_with_experts_the_parameters_that_a_token_meets_are_told():
    task = LanguageModelling(model=mixtral(**SIZES, hidden=64, experts=Experts(count=4, top_k=1)))
    lines = state_table(experiment(task=task, mesh=Mesh()), devices=jax.devices()[:1]).splitlines()
    (whole,) = (line for line in lines if line.startswith("parameters  "))
    every, met = (
        int(line.split()[at].replace(",", "")) for line, at in ((whole, 1), (lines[-1], 5))
    )
    assert lines[-1].startswith("parameters that a token meets ")
    assert every - met == 2 * 3 * 3 * 32 * 64  # in 2 layers, 3 kernels of 3 of the 4 experts


def test_a_summary_has_every_parameter_and_what_a_step_computes():
    for case in (
        experiment(),
        experiment(task=LanguageModelling(model=mixtral(**SIZES, hidden=64))),
    ):
        head, *rows = (line.split("  ") for line in lsm.summary(case).splitlines())
        cells = [[cell.strip() for cell in row if cell.strip()] for row in rows]
        counts = {row[0]: int(row[-1].replace(",", "")) for row in cells}
        flops = counts.pop("FLOPs of a step of 8"), counts.pop("FLOPs of an example, forward")
        total = counts.pop("parameters")
        params, _ = jax.eval_shape(
            lambda case=case: case.task.init(
                jax.random.key(0), {"tokens": np.zeros((1, 17), np.int32)}
            )
        )
        assert total == sum(counts.values()) == sum(x.size for x in jax.tree.leaves(params))
        assert flops[0] == pytest.approx(3 * 8 * flops[1], rel=1e-6)
        by_layer = {row[0]: row for row in cells}
        assert by_layer["blocks/qkv"][1:3] == ["Dense", "(B, 16, 64)"]
        assert head[0] == "layer"


def test_a_summary_asks_neither_data_nor_mesh():
    assert "blocks/qkv" in lsm.summary(experiment(mesh=Mesh(data=64)))
