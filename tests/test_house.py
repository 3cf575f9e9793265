"""The rules of the house, read from its source."""

import ast
import graphlib
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
FLOORS = [
    [
        *("lsm.errors", "lsm.command_line", "lsm.durations", "lsm.rng", "lsm.files", "lsm.checks"),
        *("lsm.params", "lsm.cpu"),
    ],
    ["lsm.mesh", "lsm.processes"],
    ["lsm.metrics", "lsm.cost"],
    ["lsm.losses", "lsm.models", "lsm.optim", "lsm.generate"],
    ["lsm.tasks", "lsm.data", "lsm.writers", "lsm.evaluate", "lsm.interop"],
    ["lsm.run"],
    ["lsm.config"],
    ["lsm.train", "lsm.adapt", "lsm.compress", "lsm.export"],
    ["lsm"],
    ["lsm.cli", "lsm.__main__", "lsm.interop.__main__", "lsm.export.onnx", "lsm.export.page"],
    ["experiments", "launch", "benchmarks"],
]
"""From the ground up: a module imports from its own floor or one below."""

ROOMS = ("lsm", "experiments", "launch", "benchmarks")

EXPERIMENTAL = ("topologies", "mesh_utils", "multihost_utils", "pallas")
"""What is used of `jax.experimental`: documented, and with no other home."""

SOURCES = sorted(path for folder in ROOMS for path in (ROOT / folder).rglob("*.py"))


def module_name(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def floor(module):
    found = [
        (len(room), height)
        for height, rooms in enumerate(FLOORS)
        for room in rooms
        if module == room or (room != "lsm" and module.startswith(room + "."))
    ]
    return max(found)[1] if found else None


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_no_import_runs_upward(path):
    here = floor(module_name(path))
    assert here is not None, "a new room needs a floor in this file"
    for name in imported(path):
        there = floor(name) if name.split(".")[0] in ROOMS else None
        if there is None or (name == "lsm" and here < floor("lsm")):
            continue
        assert there <= here, f"{module_name(path)} imports {name} from a floor above"


def test_no_circle():
    modules = {module_name(path): path for path in SOURCES}
    graph = {name: {*_needed(path, modules)} for name, path in modules.items()}
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


def _needed(path, modules):
    """The modules that a file imports; `from lsm import cpu` needs the room, not the house."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in modules)
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield from [name for name in (inner, node.module) if name in modules][:1]


def test_the_tree_of_the_docs_is_the_house():
    tree = (ROOT / "docs/design.md").read_text().split("```")[1].split()
    rooms = [p for p in (ROOT / "lsm").iterdir() if (p / "__init__.py").exists()]
    files = [p for p in (ROOT / "lsm").glob("*.py") if p.name != "__init__.py"]
    assert {f"{p.name}/" for p in rooms} | {p.name for p in files} <= set(tree)
    # What the tree names is there.
    named = {word for word in tree if word.endswith((".py", "/")) and word[0].isalpha()}
    known = {f"{p.name}/" for f in (*ROOMS, "tests") for p in [ROOT / f, *(ROOT / f).iterdir()]}
    assert named - {"configs/NAME/"} <= known | {p.name for p in files}


def test_the_ground_floor_has_at_most_ten_files():
    ground = [p for p in (ROOT / "lsm").glob("*.py") if not p.name.startswith("__")]
    assert len(ground) <= 10


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_only_public_jax_and_no_tensorflow(path):
    for name in imported(path):
        assert not re.match(r"jax\._src|flax\.training|tensorflow(\.|$)", name)
        experimental = re.match(r"jax\.experimental\.(\w+)", name)
        assert not experimental or experimental[1] in EXPERIMENTAL


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_every_command_line_is_absl_s(path):
    parsers = {"argparse", "optparse", "getopt", "click", "absl.flags.argparse_flags"}
    assert not parsers.intersection(imported(path))


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_files_stay_under_400_lines(path):
    assert path.read_text().count("\n") <= 400


def run(code, **options):
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        **options,
    ).stdout.split()


def test_import_touches_no_device_and_no_tensorflow():
    code = """
import sys, lsm, lsm.cli, lsm.models, lsm.tasks, lsm.data, lsm.optim, lsm.writers
import lsm.evaluate, lsm.interop, lsm.export
heavy = "tensorflow tensorflow_datasets orbax grain sklearn matplotlib tensorboardX PIL torch safetensors pyarrow h5py"
print(*[name for name in heavy.split() if name in sys.modules], "|")
import jax
jax.config.update("jax_platforms", "no_such_platform")  # raises where a back end is up already
try:
    jax.devices()
except RuntimeError:
    print("untouched")
"""
    assert run(code) == ["|", "untouched"]


def test_import_adds_nothing_but_itself_to_its_libraries():
    """What starting takes beyond that is measured by benchmarks/start.py."""
    code = """
import sys
import jax, flax.linen, optax, typeguard, rich.progress
before = set(sys.modules)
import lsm
added = {name.split(".")[0] for name in set(sys.modules) - before}
print(*sorted(added - set(sys.stdlib_module_names) - {"jax"}))
"""
    assert run(code) == ["lsm"]


@pytest.mark.slow
def test_training_never_imports_tensorflow(tmp_path):
    code = f"""
import sys, lsm
from lsm.config import flags
experiment = flags.load("experiments/configs/digits/cnn.py", {{"train.steps": "2"}})
lsm.fit(experiment, {str(tmp_path)!r})
print("tensorflow" in sys.modules, file=sys.stderr)
sys.exit("tensorflow" in sys.modules)
"""
    run(code)
