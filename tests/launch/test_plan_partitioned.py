"""Plans from XLA's partitioner: exact bytes, communication as the textbooks count it, and errors."""

import importlib.util
import json
import math
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from launch.plan import compiled, partitioned, topology
from launch.plan.__main__ import main
from launch.plan.request import Request
from launch.plan.text import text_of
from lsm import Data, Experiment, Mesh, Train
from lsm.data import Arrays, Digits
from lsm.errors import ConfigError, MeshError
from lsm.models import GPT, MLP, Transformer
from lsm.optim import Adam
from lsm.tasks import Classification, LanguageModelling

ROOT = pathlib.Path(__file__).parents[2]
B, T, D, F, LAYERS = 64, 128, 256, 1024, 3
libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="needs libtpu: pip install 'lsm[plan]'"
)


def experiment(task, source, batch_size=B, accumulation=1, **fields):
    return Experiment(
        name="estimated",
        task=task,
        data=Data(source=source, test=None),
        optimizer=Adam(learning_rate=1e-3),
        train=Train(steps=1000, batch_size=batch_size, accumulation=accumulation),
        **fields,
    )


def gpt(remat="none", **fields):
    tokens = Arrays(train={"tokens": np.zeros((8, T + 1), np.int32)})
    blocks = Transformer(layers=LAYERS, heads=4, width=D, remat=remat, dtype="bfloat16")
    model = GPT(vocabulary=512, context=T, transformer=blocks)
    return experiment(LanguageModelling(model=model), tokens, **fields)


def plan(one, name="h100:8"):
    return partitioned.plan(Request(one), topology.load(name))


def sent(one, kind, axes):
    """{bytes: times} of the collectives of a kind over `axes`."""
    return {c.bytes: c.times for c in one.collectives if (c.kind, c.axes) == (kind, axes)}


def test_bytes_of_the_state_are_exact():
    """An MLP 64 -> 512 -> 512 -> 10: matrices in four parts, biases (below 4096) whole."""
    mlp = experiment(
        Classification(model=MLP(widths=(512, 512))), Digits(), mesh=Mesh(data=2, fsdp=4)
    )
    memory = plan(mlp).memory
    weights = 4 * ((64 * 512 + 512 * 512 + 512 * 10) // 4 + 512 + 512 + 10)
    assert memory.parameters == weights
    counts = memory.optimizer_state - 2 * weights  # of the optimiser's steps, 4 bytes each
    assert counts % 4 == 0 and 0 <= counts <= 16
    assert memory.batch == B // 8 * (64 + 4)  # uint8 pixels and an int32 label


def test_it_says_that_it_is_an_estimate_everywhere():
    one = plan(gpt())
    assert one.basis == json.loads(one.as_json())["basis"] == "analytic"
    assert "ANALYTIC ESTIMATE" in text_of(one) and "nothing was compiled" in text_of(one)
    assert max(map(len, text_of(one).splitlines())) <= 100


def test_megatron_sums_four_times_a_layer():
    """Two forward and two backward (arXiv:1909.08053, section 3), each of (B, T, D) in bfloat16.

    XLA scatters the sums where the rows between are split too, and gathers them again.
    """
    one = plan(gpt(mesh=Mesh(data=4, tensor=2)))
    activations = B // 4 * T * D * 2
    kinds = ("all-reduce", "reduce-scatter")
    times = sum(sent(one, kind, ("tensor",)).get(activations, 0) for kind in kinds)
    ends = 2  # rows looked up in a split table, and the gradient of the logits' product
    assert 4 * LAYERS <= times <= 4 * LAYERS + ends


def test_fsdp_gathers_twice_and_scatters_once():
    """Weights before forward and backward, gradients behind (arXiv:1910.02054), in bfloat16."""
    one = plan(gpt(mesh=Mesh(data=1, fsdp=8)))
    up_and_down = D * F * 2
    gathered = sent(one, "all-gather", ("fsdp",))
    assert gathered[up_and_down] == 2 * 2 * LAYERS
    assert sent(one, "reduce-scatter", ("fsdp",))[up_and_down] == 2 * LAYERS
    assert gathered[3 * D * D * 2] == 2 * LAYERS


def test_plain_data_parallelism_sums_every_gradient_once():
    one = plan(gpt(mesh=Mesh(data=8)))
    total = sum(size * n for size, n in sent(one, "all-reduce", ("data",)).items())
    blocks = LAYERS * 12 * D * D * 2  # bfloat16, as the products leave them
    table = 512 * D
    assert blocks + 2 * table <= total <= blocks + 2 * 4 * table  # as input, and for the logits
    assert {c.kind for c in one.collectives} == {"all-reduce"}


def test_a_sequence_that_is_split_gathers_keys_and_values():
    one = plan(gpt(mesh=Mesh(data=4, sequence=2)))
    assert sent(one, "all-gather", ("sequence",))[B // 4 * T * D * 2] >= 2 * LAYERS


def test_what_is_kept_is_what_the_policy_says():
    memory = {name: plan(gpt(remat=name)).memory for name in ("none", "dots", "full")}
    none, dots, full = (memory[name].temporaries for name in memory)
    assert full < dots < none
    rows = B // 8 * T * D * 2  # each layer's input
    assert full > LAYERS * rows
    layer = rows * (3 + 1 + 4 + 1)  # qkv, out, up, down
    assert dots - full >= 0.5 * LAYERS * layer
    flops = [plan(gpt(remat=name)).flops.hardware for name in memory]
    assert flops == sorted(flops)


def test_offloaded_inputs_are_in_the_hosts_memory():
    """Each layer's input, (B, T, D) in bfloat16."""
    memory = plan(gpt(remat="offload")).memory
    assert memory.host == LAYERS * B // 8 * T * D * 2
    assert memory.temporaries < plan(gpt(remat="full")).memory.temporaries


def test_micro_batches_take_less_memory():
    sizes = [plan(gpt(accumulation=n)).memory.temporaries for n in (1, 2, 4)]
    assert sizes == sorted(sizes, reverse=True) and sizes[0] > 1.5 * sizes[2]


def planned(path, topology, config, **changes):
    """The JSON of a plan from a process of its own: it simulates as many devices as it needs."""
    changes = [f"--config.{name.replace('__', '.')}={value}" for name, value in changes.items()]
    command = ["-m", "launch.plan", f"--config=experiments/configs/gpt/{config}.py", *changes]
    command += [f"--topology={topology}", f"--json={path}"]
    done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode in (0, 2), done.stderr
    return json.loads(path.read_text())


def test_within_a_node_or_across(tmp_path):
    near = plan(gpt())
    assert {c.network for c in near.collectives} == {"NVLink"} and near.roofline.network == 0
    small = {"transformer__layers": 2, "transformer__width": 128, "transformer__heads": 2}
    small = {f"task__model__{name}": value for name, value in small.items()}
    mesh = {"mesh__data": 8, "mesh__tensor": 2}
    far = planned(tmp_path / "far.json", "h100:16", "gpt2_124m", **small, **mesh)
    assert far["roofline"]["network"] > 0
    networks = {tuple(c["axes"]): (c["network"], c["slices"]) for c in far["collectives"]}
    assert networks["data",] == ("network", 2) and networks["tensor",] == ("NVLink", 1)


def test_the_time_of_a_ring_over_nvlink():
    """An all-reduce of S bytes over n GPUs: 2 S (n - 1) / n at 450 GB/s."""
    one = plan(gpt(mesh=Mesh(data=8)))
    largest = max(one.collectives, key=lambda c: c.bytes)
    each = largest.seconds / largest.times
    assert each == pytest.approx(max(2 * largest.bytes * 7 / 8 / 4.5e11, 8e-6))


def test_the_range_is_the_assumed_efficiency():
    one = plan(gpt())
    low, high = partitioned.efficiency(topology.load("h100:8").chip)
    roof, (fast, slow) = one.roofline, one.projection.step_seconds
    assert fast == max(roof.compute / high, roof.memory, roof.interconnect)
    assert slow == max(roof.compute / low, roof.memory) + roof.interconnect


@pytest.mark.parametrize(
    ("config", "changes", "published"),
    [  # Llama 3 on 64 A100, FSDP, a sequence of 8,192 on each: torchtitan's docs/performance.md
        ("llama_8b", {"task__model__transformer__remat": "dots"}, 0.582),
        (
            "llama_70b",
            {
                "data__source__length": 8192,
                "task__model__context": 8192,
                "task__model__vocabulary": 128256,
            },
            0.517,
        ),
    ],
)
def test_published_utilisation_lies_in_the_range(tmp_path, config, changes, published):
    changes = {"train__batch_size": 64, **changes}
    one = planned(tmp_path / "plan.json", "a100:64", config, **changes)
    low, high = one["projection"]["mfu"]
    assert low < published < high
    assert math.sqrt(low * high) == pytest.approx(published, rel=0.1)
    assert one["flops"]["compiled"] == pytest.approx(one["flops"]["hardware"], rel=0.02)


@libtpu
def test_near_the_compiler_where_there_is_one():
    """The same step on TPUs: the state's bytes and the FLOPs equal, the total within a quarter.

    docs/plan.md says where it is further off: a layer that is computed again, and small models.
    """
    tokens = Arrays(train={"tokens": np.zeros((8, 513), np.int32)})
    blocks = Transformer(layers=4, heads=8, width=512, remat="dots", dtype="bfloat16")
    model = GPT(vocabulary=512, context=512, transformer=blocks)
    mesh = Mesh(data=1, fsdp=4)
    request = Request(experiment(LanguageModelling(model=model), tokens, mesh=mesh))
    tpus = topology.load("v5e:2x2")
    estimated, exact = partitioned.plan(request, tpus), compiled.plan(request, tpus)
    assert estimated.memory.parameters == exact.memory.parameters
    assert estimated.memory.optimizer_state == exact.memory.optimizer_state
    assert estimated.flops.model == exact.flops.model
    assert estimated.flops.hardware == exact.flops.hardware
    assert estimated.memory.total == pytest.approx(exact.memory.total, rel=0.25)


def test_jax_takes_three_quarters_of_a_gpu(monkeypatch):
    monkeypatch.delenv("XLA_PYTHON_CLIENT_MEM_FRACTION", raising=False)
    assert topology.load("a100:8").available == 60 * 2**30
    monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.95")
    assert topology.load("a100:8").available == 76 * 2**30


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("h100", "needs a number of GPUs"),
        ("h100:0", "needs a number of GPUs"),
        ("h100:12", "whole nodes of 8"),
        ("h100:4x4", "needs a number of GPUs"),
        ("h101:8", "Did you mean 'h100'"),
    ],
)
def test_names_that_are_wrong(name, message):
    with pytest.raises(ConfigError, match=message):
        topology.load(name)


def test_a_mesh_that_does_not_fit_is_one_line(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    config = "--config=experiments/configs/digits/cnn.py"
    assert main([config, "--topology=h100:8", "--config.mesh.data=3"]) == 1
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1
    assert "does not fit 8 gpu device(s)" in printed.err
    assert main([config, "--topology=h100:8", "--slices=2"]) == 1
    assert "--slices: 2 given; GPUs have none" in capsys.readouterr().err
    assert main([config, "--topology=h100:8", "--config.mesh.offload=True"]) == 1
    assert "the estimate for GPUs needs False" in capsys.readouterr().err
    with pytest.raises(MeshError, match="64 does not divide over 3"):
        plan(experiment(Classification(model=MLP()), Digits()), "h100:3")
