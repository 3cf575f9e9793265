"""Plans by the TPU's own compiler, which libtpu has; no TPU is needed."""

import dataclasses
import glob
import importlib.util
import json
import pathlib
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from launch.plan import collectives, compiled, topology
from launch.plan.__main__ import main
from launch.plan.compiled import Request
from launch.plan.hlo import parse
from launch.plan.sections import amount, count, duration
from launch.plan.text import text_of
from lsm import Data, Experiment, Mesh, Train
from lsm.data import Arrays, Digits
from lsm.errors import ConfigError, MeshError
from lsm.models import GPT, MLP, Transformer
from lsm.optim import Adam
from lsm.tasks import Classification, LanguageModelling

ROOT = pathlib.Path(__file__).parents[2]
DIGITS = "experiments/configs/digits/cnn.py"
libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="needs libtpu: pip install 'lsm[plan]'"
)


@pytest.fixture(scope="module")
def v5e():
    return topology.load("v5e:2x2")


def experiment(task, source, batch_size=64, **fields):
    return Experiment(
        name="planned",
        task=task,
        data=Data(source=source, test=None),
        optimizer=Adam(learning_rate=1e-3),
        train=Train(steps=1000, batch_size=batch_size),
        **fields,
    )


def mlp(**fields):
    return experiment(Classification(model=MLP(widths=(512, 512))), Digits(), **fields)


def gpt(batch_size=8, **fields):
    tokens = Arrays(train={"tokens": np.zeros((8, 97), np.int32)})
    model = GPT(vocabulary=256, context=96, transformer=Transformer(layers=3, heads=2, width=128))
    return experiment(LanguageModelling(model=model), tokens, batch_size, **fields)


@pytest.fixture(scope="module")
def plans(v5e):
    """A plan of an MLP with sharded parameters, and of a GPT."""
    return {
        "mlp": compiled.plan(Request(mlp(mesh=Mesh(data=2, fsdp=2))), v5e),
        "gpt": compiled.plan(Request(gpt()), v5e),
    }


@pytest.mark.slow
@libtpu
@pytest.mark.parametrize("name", ["mlp", "gpt"])
def test_flops_agree_with_the_analytic_count(plans, name):
    flops = plans[name].flops
    assert flops.compiled == pytest.approx(flops.hardware, rel=0.02)
    assert flops.custom_calls == 0 and plans[name].unknown_loops == 0


@pytest.mark.slow
@libtpu
def test_flops_of_the_mlp_by_hand(plans):
    """64 -> 512 -> 512 -> 10; the first layer's input needs no gradient."""
    layers = 64 * 512, 512 * 512, 512 * 10
    assert plans["mlp"].flops.model == 2 * 64 * (3 * sum(layers) - layers[0])


@pytest.mark.slow
@libtpu
def test_memory_is_the_compilers_own(v5e, monkeypatch):
    """The parts add up, to the byte, to what the compiler says of the very same program."""
    seen = []
    monkeypatch.setattr(
        compiled, "memory_of", lambda *args, old=compiled.memory_of: seen.append(args) or old(*args)
    )
    memory = compiled.plan(Request(mlp(mesh=Mesh(data=1, fsdp=4))), v5e).memory
    stats = seen[0][0].memory_analysis()
    assert memory.total == (
        stats.argument_size_in_bytes
        + stats.output_size_in_bytes
        - stats.alias_size_in_bytes
        + stats.temp_size_in_bytes
        + stats.generated_code_size_in_bytes
    )
    results = stats.output_size_in_bytes - stats.alias_size_in_bytes
    rest = results + stats.temp_size_in_bytes + stats.generated_code_size_in_bytes
    assert memory.total - rest == stats.argument_size_in_bytes
    weights = 4 * (64 * 512 + 512 * 512 + 512 * 10) // 4  # float32, a quarter each
    assert weights <= memory.parameters <= weights + 4 * (512 + 512 + 10)
    assert 2 * memory.parameters <= memory.optimizer_state <= 2 * memory.parameters + 64


@pytest.mark.slow
@libtpu
def test_a_plan_says_the_same_twice(v5e, plans):
    again = compiled.plan(Request(gpt()), v5e)
    assert dataclasses.replace(again, compile_seconds={}) == dataclasses.replace(
        plans["gpt"], compile_seconds={}
    )


@pytest.mark.slow
@libtpu
def test_json_holds_what_the_text_says(plans):
    for plan in plans.values():
        content, text = json.loads(plan.as_json()), text_of(plan)
        assert content["fits"] and content["memory"]["total"] == plan.memory.total
        assert content["roofline"]["bound"] == plan.roofline.bound
        assert f"bound by {plan.roofline.bound}" in text
        assert max(map(len, text.splitlines())) <= 100
    assert json.loads(plans["gpt"].as_json())["run"]["tokens_per_example"] == 96


def test_numbers_are_readable():
    sizes = [amount(n) for n in (0, 1023, 1536, -2048, 5 * 2**30, 3 * 2**50)]
    assert sizes == ["0 B", "1023 B", "1.50 KiB", "-2.00 KiB", "5.00 GiB", "3072.00 TiB"]
    assert [duration(s) for s in (0, 1.2e-5, 0.00123, 28.8)] == [
        "0 us",
        "12 us",
        "1.23 ms",
        "28.8 s",
    ]
    assert [count(n) for n in (0, 1440, 1.12e14)] == ["0", "1,440", "1.120e+14"]


@pytest.mark.slow
@libtpu
def test_projection_is_arithmetic(plans):
    plan = plans["gpt"]
    fast, slow = plan.projection.step_seconds
    assert fast == plan.roofline.least < slow
    assert plan.projection.tokens_per_second == (8 * 96 / slow, 8 * 96 / fast)
    peak = 4 * 1.97e14
    assert plan.projection.mfu[1] == pytest.approx(plan.flops.model / peak / fast)
    assert plan.projection.usd[1] == pytest.approx(slow * 1000 / 3600 * 4 * plan.price)


@pytest.mark.slow
@libtpu
def test_gradients_are_summed_over_the_data_axes(plans):
    """The MLP's gradients meet once over "data", each device holding half of each matrix."""
    reduced = [one for one in plans["mlp"].collectives if "data" in one.axes]
    assert {one.network for one in reduced} == {"ICI"}
    sizes = [512 * 512 * 4 // 2, 64 * 512 * 4 // 2]
    assert sum(one.total for one in reduced) >= sum(sizes)


def sharded_product(mesh):
    """(1024, 512) x (512, 2048) x (2048, 512), the inner size over "columns": Megatron's MLP."""

    def function(x, w1, w2):
        def turn(x, _):
            y = jnp.tanh(x @ w1) @ w2
            return jax.lax.with_sharding_constraint(y, NamedSharding(mesh, P("rows", None))), None

        return jax.lax.scan(turn, x, length=6)[0]

    return function, [
        ((1024, 512), jnp.float32, P("rows", None)),
        ((512, 2048), jnp.float32, P(None, "columns")),
        ((2048, 512), jnp.float32, P("columns", None)),
    ]


def gathered_product(mesh):
    """(1024, 512) x (512, 512), six matrices whose rows are over "columns": FSDP's weights."""

    def function(x, w):
        def turn(x, w):
            w = jax.lax.with_sharding_constraint(w, NamedSharding(mesh, P(None, None)))
            y = jnp.tanh(x @ w)
            return jax.lax.with_sharding_constraint(y, NamedSharding(mesh, P("rows", None))), None

        return jax.lax.scan(turn, x, w)[0]

    return function, [
        ((1024, 512), jnp.bfloat16, P("rows", None)),
        ((6, 512, 512), jnp.bfloat16, P(None, "columns", None)),
    ]


@pytest.mark.slow
@libtpu
@pytest.mark.parametrize(
    ("program", "kind", "size"),
    [
        (sharded_product, "all-reduce", 512 * 512 * 4),  # this device's rows, float32
        (gathered_product, "all-gather", 512 * 512 * 2),  # a whole matrix, bfloat16
    ],
)
def test_collectives_of_sharded_products(v5e, program, kind, size):
    devices = np.array(v5e.devices).reshape(2, 2)
    mesh = jax.sharding.Mesh(devices, ("rows", "columns"), axis_types=(AxisType.Auto,) * 2)
    function, arguments = program(mesh)
    shapes = [
        jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))
        for shape, dtype, spec in arguments
    ]
    entry = parse(jax.jit(function).lower(*shapes).compile().as_text())
    (row,) = collectives.collectives_of(entry, mesh, v5e.chip)
    assert (row.kind, row.axes, row.group, row.slices) == (kind, ("columns",), 2, 1)
    assert (row.bytes, row.times, row.total) == (size, 6, 6 * size)


@pytest.mark.slow
@libtpu
def test_what_the_compiler_refuses_is_a_plan(v5e):
    wide = experiment(
        Classification(model=MLP(widths=(60_000, 60_000))), Digits(), mesh=Mesh(data=4)
    )
    plan = compiled.plan(Request(wide), v5e)
    assert not plan.fits and plan.memory is None and plan.projection is None
    assert plan.refusal.needed > 4 * 60_000**2 > plan.refusal.available / 2
    assert "DOES NOT FIT: the compiler refuses the init." in text_of(plan)
    assert not json.loads(plan.as_json())["fits"]


def test_refusals_in_both_forms_of_the_compiler():
    new = compiled.refusal(
        "step",
        "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total memory "
        "required for HLO temporaries (35.00G) exceeds available HBM (15.75G). HLO module: jit_f.\n"
        "See https://openxla.org/xla/errors/error_1000 for more details.",
    )
    assert (new.needed, new.available) == (35 * 2**30, 15.75 * 2**30)
    assert new.reason.startswith("CompileTimeHbmOom: Ran out") and "\n" not in new.reason
    old = compiled.refusal(
        "step",
        "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 17.00G of 15.75G hbm.\n\n"
        "  1. Size: 10.00G\n     Operator: op_name=x\n     Shape: f32[2621440,1024]{1,0}\n",
    )
    assert (old.needed, old.available) == (17 * 2**30, 15.75 * 2**30)
    assert old.largest == ((10 * 2**30, "f32[2621440,1024]{1,0}"),)


@pytest.mark.slow
@libtpu
def test_a_mesh_that_does_not_fit_is_an_error(v5e):
    with pytest.raises(MeshError, match="does not fit 4 tpu"):
        compiled.plan(Request(mlp(mesh=Mesh(data=3))), v5e)


@pytest.mark.slow
@libtpu
def test_several_slices_and_the_network_between_them():
    two = topology.load("v5e:2x2", slices=2)
    assert two.chips == len(two.devices) == 8
    plan = compiled.plan(Request(mlp()), two)
    across = [one for one in plan.collectives if one.network == "DCN"]
    assert {(one.kind, one.axes, one.group) for one in across} == {("all-reduce", ("data",), 2)}
    # Within a slice the gradient is scattered first: a quarter of it crosses from each device.
    assert 512 * 512 * 4 // 4 in [one.bytes for one in across]
    assert plan.roofline.network == sum(one.seconds for one in across)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--topology=v5e:4x4"], "--config is needed"),
        ([f"--config={DIGITS}"], "--topology is needed"),
        ([f"--config={DIGITS}", "--topology=v5x:4x4"], "there is no chip 'v5x'"),
        ([f"--config={DIGITS}", "--topology=h100:12"], "whole nodes of 8"),
        ([f"--config={DIGITS}", "--topology=v5e:4"], "v5e needs 2 sizes, as in v5e:4x4"),
        ([f"--config={DIGITS}", "--topology=v5p:4x4"], "v5p needs 3 sizes, as in v5p:4x4x4"),
        ([f"--config={DIGITS}", "--topology=v5e:32x32"], "8x16, 16x16."),
        ([f"--config={DIGITS}", "--topology=v5e:3x4"], "Did you mean '4x4'?"),
        ([f"--config={DIGITS}", "--topology=v5p:400x400x400"], "at most 6144 chips in all"),
        ([f"--config={DIGITS}", "--topology=v3:64x64"], "a slice of v3 is at most 32x32"),
        ([f"--config={DIGITS}", "--topology=v5e:2x2", "--slices=1000000"], "at most 131,072"),
        ([f"--config={DIGITS}", "--topology=v5e:2x2", "--json=a", "--html=a"], "--json writes"),
        ([f"--config={DIGITS}", "--topology=v5e:4x4", "--slices=0"], "1 or more is needed"),
        ([f"--config={DIGITS}", "--topology=v5e:4x4", "--price=x"], "a number is needed"),
        ([f"--config={DIGITS}", "--topologie=v5e:4x4"], "Did you mean '--topology'?"),
        (
            [f"--config={DIGITS}", "--config.train.batchsize=3", "--topology=v5e:4x4"],
            "Did you mean 'batch_size'?",
        ),
        (["--config=nowhere.py", "--topology=v5e:4x4"], "there is no file 'nowhere.py'"),
    ],
)
def test_errors_are_one_line(arguments, message, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert main(arguments) == 1
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1
    assert printed.err.startswith("error: ") and message in printed.err


@pytest.mark.slow
@libtpu
def test_a_shape_that_libtpu_refuses_is_one_line():
    with pytest.raises(ConfigError, match=r"--topology: 'v3:3x5': libtpu refuses it"):
        topology.load("v3:3x5")


def test_without_libtpu_there_is_one_line(monkeypatch):
    def missing(name):
        raise topology.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(topology.importlib.metadata, "version", missing)
    with pytest.raises(topology.PlanError, match=r"pip install 'lsm\[plan\]'"):
        topology.load("v5e:4x4")


def run(*command):
    return subprocess.run(
        [sys.executable, *command], cwd=ROOT, capture_output=True, text=True, timeout=600
    )


@pytest.mark.slow
@libtpu
def test_the_command_prints_a_plan_and_on_stderr_its_stages(tmp_path):
    path = tmp_path / "plan.json"
    done = run("-m", "launch.plan", f"--config={DIGITS}", "--topology=v5e:2x2", f"--json={path}")
    stages = re.sub(r"^ +\d+\.\d s  ", "", done.stderr, flags=re.MULTILINE).splitlines()
    work = [f"{what} {program}" for program in ("init", "step") for what in ("lower", "compile")]
    assert (done.returncode, stages) == (0, ["shapes", *work, "read step"])
    assert done.stdout.startswith("digits: 65,834 parameters") and "v5e:2x2" in done.stdout
    assert json.loads(path.read_text())["price_source"].startswith("Google's list")


def test_ordinary_runs_know_nothing_of_it():
    """No import, no variable of libtpu's set, no platform chosen."""
    code = """
import os, sys
before = dict(os.environ)
import jax
ours = set(os.environ) - set(before)
import lsm, lsm.cli
print(sorted(name for name in sys.modules if name.startswith("launch")))
print(sorted(set(os.environ) - set(before) - ours), jax.config.jax_platforms)
"""
    done = run("-c", code)
    assert done.stdout.split("\n")[:2] == ["[]", f"[] {jax.config.jax_platforms}"], done.stderr


@pytest.mark.slow
@libtpu
@pytest.mark.skipif(bool(glob.glob("/dev/accel*")), reason="there is a TPU here")
def test_ordinary_runs_do_not_load_libtpu(monkeypatch):
    """An experiment's command on a machine without a TPU: no warning, no 700 MB mapped."""
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    monkeypatch.delenv("TPU_LIBRARY_PATH", raising=False)
    code = """
import sys
import lsm.cli
def look(*args, **options):
    import jax
    print(jax.default_backend(), "libtpu.so" in open("/proc/self/maps").read())
    raise KeyboardInterrupt
lsm.cli.fit = look
sys.argv[1:] = ["--workdir=/nonexistent"]
lsm.cli.main("experiments/configs/digits/cnn.py")
"""
    done = run("-c", code)
    assert done.stdout == "cpu False\n"
    assert done.stderr == "error: interrupted; the same command continues.\n"


@pytest.mark.slow
@libtpu
@pytest.mark.skipif(bool(glob.glob("/dev/accel*")), reason="there is a TPU here")
def test_library_use_does_not_load_it_either_and_a_plan_may_follow(monkeypatch):
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    monkeypatch.delenv("TPU_LIBRARY_PATH", raising=False)
    code = """
import jax
from lsm.train.trainer import prepare_jax
prepare_jax()  # as fit, load and the like do
print(jax.default_backend(), "libtpu.so" in open("/proc/self/maps").read())
from launch.plan import topology
print(len(topology.load("v5e:2x2").devices))
"""
    done = run("-c", code)
    assert (done.stdout, done.stderr) == ("cpu False\n4\n", "")
