"""Plans for GPUs: exact bytes, communication as the textbooks count it, prices, and errors."""

import dataclasses
import importlib.util
import json
import pathlib

import numpy as np
import pytest

from launch.plan import compiled, estimate, topology
from launch.plan.__main__ import main
from launch.plan.compiled import Request
from launch.plan.text import text_of
from lsm import Data, Experiment, Mesh, Train
from lsm.data import Arrays, Digits
from lsm.errors import ConfigError, MeshError
from lsm.models import GPT, MLP, Transformer
from lsm.optim import Adam
from lsm.tasks import Classification, LanguageModelling

ROOT = pathlib.Path(__file__).parents[2]
B, T, D, F, LAYERS = 64, 128, 256, 1024, 3
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("libtpu") is None, reason="needs libtpu: pip install 'lsm[plan]'"
    ),
]


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


def plan(one, name="h100:8", quick=True):
    """What is asked here does not depend on optimisation, where `quick` is left as it is."""
    return compiled.plan(Request(one), topology.load(name), quick)


@pytest.fixture(scope="module")
def plain():
    return plan(gpt(), quick=False)


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


def test_it_says_that_it_is_an_estimate_everywhere(plain):
    one = plain
    assert one.basis == json.loads(one.as_json())["basis"] == "priced"
    assert "ESTIMATE: compiled by the TPU's compiler" in text_of(one)
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


def test_fsdp_sends_every_weight_three_times():
    """Gathered before forward and backward, gradients scattered behind (arXiv:1910.02054).

    Where a product begins with the part that is there, the parts go round as permutations.
    """
    one = plan(gpt(mesh=Mesh(data=1, fsdp=8)))
    sent = sum(
        c.total * (1 if c.kind == "collective-permute" else 7 / 8)
        for c in one.collectives
        if c.kind != "all-reduce" and c.axes == ("fsdp",)
    )
    blocks, table = LAYERS * 12 * D * D * 2, 512 * D * 4  # bfloat16, and float32 at most
    assert 3 * blocks * 7 / 8 <= sent <= 3 * blocks * 9 / 8 + 3 * table


def test_plain_data_parallelism_sums_every_gradient_once(plain):
    one = plain
    total = sum(size * n for size, n in sent(one, "all-reduce", ("data",)).items())
    blocks = LAYERS * 12 * D * D * 2  # bfloat16, as the products leave them
    table = 512 * D
    assert blocks + 2 * table <= total <= blocks + 2 * 4 * table  # as input, and for the logits
    assert {c.kind for c in one.collectives} == {"all-reduce"}


def test_a_sequence_that_is_split_gathers_keys_and_values():
    one = plan(gpt(mesh=Mesh(data=4, sequence=2)))
    assert sent(one, "all-gather", ("sequence",))[B // 4 * T * D * 2] >= 2 * LAYERS


def test_what_is_kept_is_what_the_policy_says():
    plans = {name: plan(gpt(remat=name)) for name in ("none", "dots", "full")}
    none, dots, full = (one.memory.temporaries for one in plans.values())
    assert full < dots < none
    rows = B // 8 * T * D * 2  # each layer's input
    assert full > LAYERS * rows
    layer = rows * (3 + 1 + 4 + 1)  # qkv, out, up, down
    assert dots - full >= 0.5 * LAYERS * layer
    flops = [one.flops.hardware for one in plans.values()]
    assert flops == sorted(flops)


def test_offloaded_inputs_are_in_the_hosts_memory():
    """Each layer's input, (B, T, D) in bfloat16."""
    memory = plan(gpt(remat="offload")).memory
    assert memory.host == LAYERS * B // 8 * T * D * 2
    assert memory.temporaries < plan(gpt(remat="full")).memory.temporaries


def test_micro_batches_take_less_memory():
    sizes = [plan(gpt(accumulation=n)).memory.temporaries for n in (1, 2, 4)]
    assert sizes == sorted(sizes, reverse=True) and sizes[0] > 1.5 * sizes[2]


def test_within_a_node_or_across(plain):
    assert {c.network for c in plain.collectives} == {"NVLink"} and plain.roofline.network == 0
    far = plan(gpt(mesh=Mesh(data=8, tensor=2)), "h100:16")
    assert far.roofline.network > 0
    networks = {c.axes: (c.network, c.slices) for c in far.collectives}
    assert networks["data",] == ("network", 2) and networks["tensor",] == ("NVLink", 1)


def test_the_time_of_a_ring_over_nvlink(plain):
    """An all-reduce of S bytes over n GPUs: 2 S (n - 1) / n at 450 GB/s."""
    one = plain
    largest = max(one.collectives, key=lambda c: c.bytes)
    each = largest.seconds / largest.times
    assert each == pytest.approx(max(2 * largest.bytes * 7 / 8 / 4.5e11, 8e-6))


def test_the_range_is_the_assumed_efficiency(plain):
    low, high = estimate.OTHERS
    roof, (fast, slow) = plain.roofline, plain.projection.step_seconds
    assert fast == max(roof.compute / high, roof.memory, roof.interconnect)
    assert slow == max(roof.compute / low, roof.memory) + roof.interconnect


def test_memory_is_that_of_the_compiler_for_tpus():
    """The same step for v5p, without kernels, to the byte; what is available is the GPU's."""
    gpus, tpus = topology.load("h100:4"), topology.load("v5p:2x2x1")
    request = Request(gpt(mesh=Mesh(data=1, fsdp=4)))
    one = compiled.plan(request, gpus, quick=True)
    other = compiled.plan(request, dataclasses.replace(tpus, lowered_for="cuda"), quick=True)
    room = {"available": gpus.available, "capacity": int(gpus.chip.memory)}
    assert one.memory == dataclasses.replace(other.memory, **room)
    assert one.memory.available == 60 * 2**30


def test_numbers_of_gpus_that_no_slice_has():
    for count in (1, 3):
        mlp = experiment(Classification(model=MLP(widths=(64,))), Digits(), 3 * 8)
        one = plan(mlp, f"a100:{count}")
        assert one.topology.size == count and one.fits


def test_jax_takes_three_quarters_of_a_gpu(monkeypatch):
    for name in ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION"):
        monkeypatch.delenv(name, raising=False)
    assert topology.load("a100:8").available == 60 * 2**30
    monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.95")
    assert topology.load("a100:8").available == 76 * 2**30
    monkeypatch.setenv("XLA_CLIENT_MEM_FRACTION", "0.5")  # the newer name
    assert topology.load("a100:8").available == 40 * 2**30
    monkeypatch.setenv("XLA_CLIENT_MEM_FRACTION", "75")
    with pytest.raises(ConfigError, match="XLA_CLIENT_MEM_FRACTION: '75' given; a number above 0"):
        topology.load("a100:8")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("h100", "needs a number of GPUs"),
        ("h100:0", "needs a number of GPUs"),
        ("h100:12", "whole nodes of 8"),
        ("h100:4x4", "needs a number of GPUs"),
        ("h101:8", "Did you mean 'h100'"),
        (
            "h100:100000",
            "100000 GPUs given; above 4096 a multiple of 16 is needed, above 16384 of 64",
        ),
        ("h100:999999", "whole nodes of 8"),
        ("h100:800000", "800,000 chips given in 1 slices; at most 131,072"),
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
    with pytest.raises(MeshError, match="64 does not divide over 3"):
        plan(experiment(Classification(model=MLP()), Digits()), "h100:3")
