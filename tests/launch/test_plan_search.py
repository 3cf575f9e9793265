"""The search for the fastest plan that fits."""

import dataclasses
import importlib.util
import math
import pathlib

import numpy as np
import pytest

from launch.plan import compiled, search, topology
from launch.plan.__main__ import main
from launch.plan.compiled import Request
from launch.plan.topology import PlanError
from lsm import Data, Experiment, Mesh, Train
from lsm.config import flags
from lsm.data import Arrays, Digits
from lsm.errors import MeshError
from lsm.models import CNN, GPT, MLP, Transformer
from lsm.optim import Adam
from lsm.tasks import Classification, LanguageModelling

ROOT = pathlib.Path(__file__).parents[2]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("libtpu") is None, reason="needs libtpu: pip install 'lsm[plan]'"
    ),
]


def experiment(task, source, batch_size=16, **fields):
    return Experiment(
        name="fitted",
        task=task,
        data=Data(source=source, test=None),
        optimizer=Adam(learning_rate=1e-3),
        train=Train(steps=1000, batch_size=batch_size),
        **fields,
    )


def gpt(**fields):
    tokens = Arrays(train={"tokens": np.zeros((8, 129), np.int32)})
    blocks = Transformer(layers=2, heads=8, width=256, dtype="bfloat16")
    model = GPT(vocabulary=256, context=128, transformer=blocks)
    return experiment(LanguageModelling(model=model), tokens, **fields)


def gpus(count=2, available=None):
    machine = topology.load(f"h100:{count}")
    return machine if available is None else dataclasses.replace(machine, available=available)


def find(one, machine, overrides=None):
    overrides = overrides or {}
    request = Request(flags.override(one, overrides), overrides=overrides)
    return search.search(request, machine, lambda line: None)


@pytest.fixture(scope="module")
def roomy():
    return find(gpt(), gpus(), {"mesh.sequence": "1"})


def test_with_room_nothing_is_computed_again_or_split(roomy):
    run = roomy.best.plan.run
    assert roomy.best.changes["task.model.transformer.remat"] == "none"
    assert run.accumulation == 1 and run.batch_size == 16
    assert run.mesh["tensor"] == run.mesh["sequence"] == run.mesh["pipeline"] == 1
    assert roomy.best.plan.basis == "priced"


def test_the_best_is_the_first_and_none_beats_it(roomy):
    assert roomy.tried[0].changes == roomy.best.changes
    ranks = [one.rank for one in roomy.tried]
    assert ranks == sorted(ranks) and {one.plan.basis for one in roomy.tried} == {"quick"}
    meshes = [one.plan.run.mesh for one in roomy.tried]
    assert all(math.prod(mesh.values()) == 2 for mesh in meshes)
    assert any(mesh["pipeline"] == 2 for mesh in meshes)
    assert any(mesh["tensor"] == 2 for mesh in meshes)
    assert all(mesh["expert"] == 1 for mesh in meshes)  # there are none


def test_its_flags_make_the_plan(roomy):
    changes = dict(flag.removeprefix("--config.").split("=") for flag in roomy.flags)
    one = flags.override(gpt(), changes)
    again = compiled.plan(Request(one), gpus(), quick=True)
    assert again.memory == roomy.tried[0].plan.memory
    assert again.run.mesh == roomy.best.plan.run.mesh
    assert "mesh.tensor" not in changes  # 1 already


def test_little_memory_is_met_by_policy_or_parts(roomy):
    data = {f"mesh.{axis}": "1" for axis in ("pipeline", "sequence", "tensor")}
    split = ("pipeline", "tensor")
    plain = [one for one in roomy.tried if all(one.plan.run.mesh[axis] == 1 for axis in split)]
    least = min(one.plan.memory.total for one in plain)
    available = (least + roomy.best.plan.memory.total) // 2
    tight = find(gpt(), gpus(available=available), data)
    assert tight.best.plan.memory.total <= available
    policy = tight.best.changes["task.model.transformer.remat"]
    assert policy != "none" or tight.best.plan.run.accumulation > 1
    assert tight.best.plan.run.batch_size == 16


def test_what_is_on_the_line_stays():
    fixed = {"mesh.tensor": "2", "train.accumulation": "2", "task.model.transformer.remat": "full"}
    found = find(gpt(), gpus(), fixed)
    for one in found.tried:
        assert one.plan.run.mesh["tensor"] == 2 and one.plan.run.accumulation == 2
        assert "task.model.transformer.remat" not in one.changes
    assert found.best.plan.run.overrides["task.model.transformer.remat"] == "full"


@pytest.mark.parametrize("axis", ["data", "fsdp"])
def test_rows_are_split_as_the_line_says(axis):
    mlp = experiment(Classification(model=MLP(widths=(256,))), Digits())
    found = find(mlp, gpus(4), {f"mesh.{axis}": "2", "train.accumulation": "1"})
    meshes = [one.plan.run.mesh for one in found.tried]
    assert all(mesh[axis] == 2 and math.prod(mesh.values()) == 4 for mesh in meshes)
    assert any(mesh["data"] == mesh["fsdp"] == 2 for mesh in meshes)


def test_a_model_without_the_policy_has_fewer_candidates():
    mlp = experiment(Classification(model=MLP(widths=(256,))), Digits())
    found = find(mlp, gpus())
    assert all("task.model.transformer.remat" not in one.changes for one in found.tried)
    assert len(found.tried) <= 3 * 2  # data, fsdp and tensor, with most and fewest parts


def test_over_two_slices_fsdp_is_tried_within_one():
    mlp = experiment(Classification(model=MLP(widths=(64,))), Digits())
    found = find(mlp, topology.load("v5e:2x2", slices=2))
    meshes = [one.plan.run.mesh for one in found.tried]
    assert any((mesh["data"], mesh["fsdp"]) == (2, 4) for mesh in meshes)


def test_micro_batches_of_batch_norm_stay():
    cnn = experiment(Classification(model=CNN(widths=(8,))), Digits())
    found = find(cnn, gpus(), {"mesh.tensor": "1"})
    assert {one.plan.run.accumulation for one in found.tried} == {1}
    plain = dataclasses.replace(cnn.task.model, batch_norm=False)
    plain = dataclasses.replace(cnn, task=Classification(model=plain))
    found = find(plain, gpus(), {"mesh.tensor": "1"})
    assert {one.plan.run.accumulation for one in found.tried} > {1}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"mesh.fsdp": "3"}, "does not fit 2 gpu"),
        (
            {"train.batch_size": "7", "mesh.tensor": "1"},
            "7 does not divide over 2 devices; the nearest that does is 6",
        ),
    ],
)
def test_what_suits_no_mesh_is_said(overrides, message):
    mlp = experiment(Classification(model=MLP(widths=(64,))), Digits())
    with pytest.raises(MeshError, match=message):
        find(mlp, gpus(), overrides)


def test_nothing_fits_is_one_line_with_the_closest():
    with pytest.raises(PlanError) as caught:
        find(gpt(), gpus(available=1000), {"mesh.pipeline": "1", "mesh.sequence": "1"})
    message = str(caught.value)
    assert message.startswith("--fit: none of ") and "\n" not in message
    assert "more on each device" in message and "More chips would help" in message
    assert "mesh.fsdp=2" in message or "mesh.tensor" in message or "mesh.pipeline" in message


def test_the_command_tells_rows_on_stderr_and_prints_table_and_plan(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    command = ["--config=experiments/configs/digits/cnn.py", "--topology=h100:2", "--fit"]
    assert main(command) == 0
    printed = capsys.readouterr()
    rows = [line for line in printed.err.splitlines() if line[3:5] == ". "]
    assert rows[0].startswith("  1. ") and "fits: yes, step " in rows[0]
    lines = printed.out.splitlines()
    assert lines[0] == "Plans tried, the best first"
    assert lines[2 + len(rows)].startswith("  Add to the command: ")
    assert any(line.startswith("digits: 65,834 parameters") for line in lines)
    assert max(map(len, lines)) <= 110


def test_on_tpus_the_best_is_compiled_by_their_own_compiler():
    said = []
    mlp = experiment(Classification(model=MLP(widths=(256,))), Digits(), mesh=Mesh(data=-1))
    request = Request(mlp, overrides={"mesh.tensor": "1", "mesh.fsdp": "1"})
    found = search.search(request, topology.load("v5e:2x2"), said.append)
    assert found.best.plan.basis == "compiled" and found.best.plan.fits
    assert [line for line in said if line.startswith("compiling data=4")]
