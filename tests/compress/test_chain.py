"""Chains: measured, held to their bounds, interrupted and gone on with, read from a file."""

import dataclasses
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file

import lsm
from lsm import Start
from lsm.compress import Derived, Distil, Quantise, Recipe, Shorten, Shrink, Tune, compress
from lsm.compress import __main__ as command
from lsm.compress import chain as chains
from lsm.compress.measure import Latency, Size, size_of
from lsm.compress.rows import Row, lost, missed
from lsm.config import flags
from lsm.config.origin import experiment_of
from lsm.data import Arrays, Digits
from lsm.errors import ConfigError, TrainingError
from lsm.export.weights import stored
from lsm.models import MLP, quantised
from lsm.optim import Adam, FixedMasks, Magnitude
from lsm.tasks import Classification
from lsm.train.derived import write_run
from lsm.train.trained import load

ROOT = pathlib.Path(__file__).parents[2]
ADAM = Adam(learning_rate=1e-2)


def experiment(**more):
    return lsm.Experiment(
        name="first",
        task=Classification(model=MLP(widths=(32,), outputs=10)),
        data=lsm.Data(source=Digits(), test="test"),
        optimizer=ADAM,
        train=lsm.Train(steps=60, batch_size=64),
        writers=(),
        **more,
    )


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """The workdir of a finished run."""
    workdir = tmp_path_factory.mktemp("base") / "run"
    lsm.fit(experiment(), workdir)
    return workdir


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rounded(Derived):
    """Small parameters become 0, as pruning would make them."""

    below: float

    def make(self, source, out, data_dir):
        run = load(source)
        params = {
            layer: {name: jnp.where(abs(x) < self.below, 0, x) for name, x in of.items()}
            for layer, of in run.params.items()
        }
        write_run(source, out, run.experiment, run.step, params, run.model_state)


def small(steps=40, **bounds):
    train = lsm.Train(steps=steps, batch_size=64)
    return Distil(model=MLP(widths=(8,), outputs=10), optimizer=ADAM, train=train, **bounds)


def recipe(*links, **more):
    return Recipe(links=links, split="test", **more)


@pytest.fixture(scope="module")
def chain(base, tmp_path_factory):
    """A chain of one link, in a folder, its rows, and what it said."""
    out, said = tmp_path_factory.mktemp("chain") / "out", []
    made = recipe(Rounded(below=0.05))
    return out, made, compress(base, made, out, say=said.append), said


def check(row):
    """That a row is what is there: a plain run, its accuracy, its numbers."""
    case = experiment_of(pathlib.Path(row.workdir))
    _, figures = lsm.evaluate_run(case, row.workdir)
    assert row.value == figures["test"]["accuracy"]
    run = load(row.workdir)
    assert isinstance(run.experiment.task, Classification)  # and no distillation
    arrays = [np.asarray(x) for of in run.params.values() for x in of.values()]
    assert row.size.parameters == sum(x.size for x in arrays)
    assert row.size.bytes == 4 * row.size.parameters
    assert row.size.parameters - row.size.nonzero == sum((x == 0).sum() for x in arrays)
    assert all(latency.p95 >= latency.median > 0 for latency in row.latency.values())


def test_a_link_is_a_run_and_a_row(chain):
    out, _, rows, said = chain
    names = ["0 source", "1 rounded"]
    assert [row.name for row in rows] == names and len(said) == 2
    for row in rows:
        check(row)
    source, rounded = rows[0].size, rows[1].size
    assert source.parameters == rounded.parameters == 64 * 32 + 32 + 32 * 10 + 10
    assert rounded.nonzero < source.nonzero - 300 and rounded.compressed < source.compressed
    state = json.loads((out / "compress.json").read_text())
    assert [row["name"] for row in state["rows"]] == names
    page = (out / "compress.md").read_text()
    assert all(f"| {name} | " in page for name in names)
    assert (out / "frontier.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_a_student_is_tuned_on(base, tmp_path):
    tune = Tune(optimizer=ADAM, train=lsm.Train(steps=2, batch_size=64))
    made = recipe(small(size_at_most=0.3), Rounded(below=0.01), tune)
    rows = compress(base, made, tmp_path / "out")
    assert [row.name for row in rows[1:]] == ["1 distil", "2 rounded", "3 tune"]
    for row in rows[1:]:
        check(row)
        assert row.size.parameters == 64 * 8 + 8 + 8 * 10 + 10
    assert rows[3].value > 0.5 and rows[3].size.nonzero > rows[2].size.nonzero


@pytest.mark.slow
def test_a_student_learns_from_other_data_without_labels(tmp_path):
    """What it learns is the teacher's alone; what is made tells of the source's data."""
    watched = lsm.Evaluation(every=2, early_stopping=lsm.EarlyStopping(), monitor="accuracy")
    digits = lsm.Data(source=Digits(), validation="test", test=None)
    train = lsm.Train(steps=8, batch_size=64)
    first = dataclasses.replace(experiment(), data=digits, train=train, evaluation=watched)
    lsm.fit(first, tmp_path / "run")
    images = Digits().open("train").take(np.arange(256))["image"]
    found = []
    for number, labels in enumerate((np.zeros(256, np.int32), np.arange(256) % 10)):
        others = lsm.Data(
            source=Arrays({"image": images, "label": labels}, classes=tuple("abcdefghij")),
            test=None,
        )
        link = dataclasses.replace(small(4), data=others, share=1.0)
        out = tmp_path / str(number)
        link.run(tmp_path / "run", out, tmp_path / "run", None)
        made = experiment_of(out)
        assert made.data == digits and made.evaluation == watched and made.start is None
        for told in ("data.json", "inputs.json"):
            assert (out / told).read_bytes() == (tmp_path / "run" / told).read_bytes()
        found.append(load(out).params)
        assert load(out).step == 4  # and not what is best by such labels
    jax.tree.map(np.testing.assert_array_equal, *found)


def test_a_chain_that_is_done_is_read_and_held_to_new_bounds(chain, base):
    out, made, rows, _ = chain
    said = []
    assert compress(base, made, out, say=said.append) == rows and not said
    links = (dataclasses.replace(made.links[0], size_at_most=0.1),)
    line = r"link 1 rounded: share of the bytes: 1.000, allowed: 0.1 at the most. What is made sta"
    with pytest.raises(TrainingError, match=line):
        compress(base, dataclasses.replace(made, links=links), out)


def test_links_to_come_may_be_others_than_were_said(chain, base, tmp_path):
    out, made, rows, _ = chain
    shutil.copytree(out, tmp_path / "out")
    more = dataclasses.replace(made, links=(*made.links, Rounded(below=0.1)))
    found = compress(base, more, tmp_path / "out")
    assert [row.name for row in found] == ["0 source", "1 rounded", "2 rounded"]
    assert found[1].seconds == rows[1].seconds and found[2].size.nonzero < found[1].size.nonzero


@pytest.fixture
def interrupted(monkeypatch):
    """Runs a chain up to where a link is made, and not measured."""

    def run(name, *chain):
        def add(self, link, *rest):
            if link == name:
                raise KeyboardInterrupt
            real(self, link, *rest)

        real = chains._Chain._add
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(chains._Chain, "_add", add)
            compress(*chain)

    return run


def test_what_an_interruption_has_left_is_no_other_link_s(base, tmp_path, interrupted):
    interrupted("1 rounded", base, recipe(Rounded(below=0.05)), tmp_path)
    with pytest.raises(ConfigError, match="another recipe: links.0.below: 0.05 -> 0.1; give a new"):
        compress(base, recipe(Rounded(below=0.1)), tmp_path)
    rows = compress(base, recipe(Rounded(below=0.05)), tmp_path)
    assert [row.seconds for row in rows] == [None, None]  # nobody knows how long it took


def test_a_chain_of_an_earlier_version_goes_on(chain, base, tmp_path):
    """Whose record lacks a field that links have now."""
    out, made, rows, _ = chain
    shutil.copytree(out, tmp_path / "out")
    saved = json.loads((out / "compress.json").read_text())
    assert saved["recipe"].pop("metric") == "accuracy"
    (tmp_path / "out/compress.json").write_text(json.dumps(saved))
    assert [row.value for row in compress(base, made, tmp_path / "out")] == [r.value for r in rows]


def test_a_chain_is_moved_with_what_it_has_made(chain, base, tmp_path):
    out, made, *_ = chain
    shutil.copytree(out, tmp_path / "out")
    more = dataclasses.replace(made, links=(*made.links, Rounded(below=0.1)))
    found = compress(base, more, tmp_path / "out")
    assert [row.workdir for row in found[1:]] == [
        str(tmp_path / f"out/{n}_rounded") for n in (1, 2)
    ]


@pytest.mark.parametrize("left", ["1_shrink", "export"])
def test_what_is_in_the_folder_without_a_chain_is_nobody_s_link(base, tmp_path, left):
    (tmp_path / left).mkdir()
    (tmp_path / left / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match=f"holds {left}, and no compress.json that says of what"):
        compress(base, recipe(Shrink(hidden=0.5), export=True), tmp_path)
    assert (tmp_path / left / "notes.txt").read_text() == "mine"


@pytest.mark.slow
def test_a_chain_that_was_interrupted_in_a_training_is_moved(base, tmp_path, interrupted):
    """Its training began from a path that is no more."""
    made = recipe(Shrink(hidden=0.5), Tune(optimizer=ADAM, train=lsm.Train(steps=4, batch_size=64)))
    interrupted("2 tune", base, made, tmp_path / "before")
    os.rename(tmp_path / "before", tmp_path / "after")
    rows = compress(base, made, tmp_path / "after")
    assert rows[2].value == compress(base, made, tmp_path / "once")[2].value


@pytest.mark.slow
def test_what_is_exported_is_the_last_result(base, tmp_path, monkeypatch):
    for links in ((Shrink(hidden=0.5),), (Shrink(hidden=0.5), Quantise())):
        rows = compress(base, recipe(*links, export=True), tmp_path)
        held = load_file(tmp_path / "export/model.safetensors").values()
        assert any(x.dtype == np.int8 for x in held) == (len(rows) == 3)
    monkeypatch.setattr(chains, "export", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        compress(base, recipe(*links, Rounded(below=0.1), export=True), tmp_path)
    assert (tmp_path / "export/model.safetensors").exists(), "the one before stays until then"


@pytest.mark.slow
def test_what_is_pruned_stays_so_where_the_next_link_says_it(base, tmp_path):
    train = lsm.Train(steps=10, batch_size=64)
    prunes = (Magnitude(sparsity=0.8), FixedMasks(), None)
    links = (Tune(optimizer=Adam(learning_rate=1e-2, prune=prune), train=train) for prune in prunes)
    rows = compress(base, recipe(*links), tmp_path)
    first, fixed, free = (row.size.nonzero for row in rows[1:])
    assert first < 0.3 * rows[0].size.nonzero and fixed <= first and free > 2 * first


@pytest.mark.parametrize(
    ("link", "line"),
    [
        (lambda: Shrink(hidden=1.5), "Shrink.hidden: 1.5 given"),
        (lambda: Shrink(), "Shrink: nothing would go"),
        (lambda: Shorten(layers=(3, 1)), r"Shorten.layers: \(3, 1\) given; rising numbers"),
        (lambda: Quantise(kept="("), "Quantise.kept: '.' is not a regular"),
        (lambda: Distil(start=Start(path="x"), optimizer=ADAM, train=lsm.Train(steps=1)), "Distil.start: is of ano"),
        (lambda: Recipe(links=(Rounded(below=1.0),), split="trian"), "Recipe.split: 'trian' given"),
    ],
)  # fmt: skip
def test_a_slip_in_a_link_is_told_before_any_is_made(link, line):
    with pytest.raises(ConfigError, match=line):
        link()


def test_another_recipe_or_source_is_told(chain, base, tmp_path):
    out, made, *_ = chain
    line = r"--out: .* holds a chain of another recipe: links.0.below: 0.05 -> 0.1; give a new fol"
    with pytest.raises(ConfigError, match=line):
        compress(base, recipe(Rounded(below=0.1)), out)
    shutil.copytree(base, tmp_path / "copy")
    with pytest.raises(ConfigError, match="holds a chain of another source: workdir: "):
        compress(tmp_path / "copy", made, out)
    same = base / ".." / base.name
    assert len(compress(same, made, out)) == 2
    with pytest.raises(ConfigError, match="Recipe.split: 'validation' given; the run's data.valid"):
        compress(base, dataclasses.replace(made, split="validation"), tmp_path / "new")


def row(value=0.9, size=100, ratio=1.0):
    latency = dict.fromkeys((1, 32), Latency(1.0, 2.0))
    return Row("n", "w", value, Size(25, 25, size, size), latency, dict.fromkeys((1, 32), ratio))


@pytest.mark.parametrize(
    ("bounds", "floor", "told"),
    [
        ({"loses_at_most": 0.5}, None, ["accuracy lost, in points: 1.000, allowed: 0.5 at the mos"]),
        ({"loses_at_most": 1.1, "size_at_most": 0.25, "latency_at_most": 0.6}, 0.88, []),
        ({"size_at_most": 0.2}, None, ["share of the bytes: 0.250, allowed: 0.2 at the most"]),
        ({"latency_at_most": 0.5}, None, [f"share of the time for a batch of {n}: 0.6" for n in (1, 32)]),
        ({}, 0.895, ["accuracy 0.8900, and the floor is 0.895"]),
    ],
    ids=["lost", "kept", "size", "latency", "floor"],
)  # fmt: skip
def test_bounds(bounds, floor, told):
    given = recipe(small(**bounds), floor=floor)
    found = [*missed(given, given.links[0], row(), row(0.89, 25, 0.6))]
    assert len(found) == len(told) and all(
        a.startswith(b) for a, b in zip(found, told, strict=True)
    )


def test_what_is_no_number_misses_and_a_loss_is_worse_where_it_is_higher():
    given = recipe(small(loses_at_most=5))
    assert len([*missed(given, given.links[0], row(), row(float("nan")))]) == 1
    assert lost(recipe(small(), metric="loss"), row(0.5), row(0.7)) == pytest.approx(20)


def test_which_value_is_better_can_be_said():
    given = recipe(small(loses_at_most=5), metric="mae", better="lower", floor=0.6)
    assert lost(given, row(0.5), row(0.7)) == pytest.approx(20)
    told = [*missed(given, given.links[0], row(0.5), row(0.7))]
    assert told == [
        "mae lost, in points: 20.000, allowed: 5 at the most",
        "mae 0.7000, and the floor is 0.6",
    ]
    assert not [*missed(given, given.links[0], row(0.5), row(0.1))]
    with pytest.raises(
        ConfigError, match="Recipe.better: 'less' given; allowed: 'lower', 'higher'"
    ):
        recipe(small(), better="less")


def test_bytes_are_those_of_a_file_and_four_bits_take_half_of_one():
    x = np.arange(-8, 7).astype(ml_dtypes.int4)
    assert len(stored(x).tobytes()) == 8 and stored(x).tobytes()[:2] == bytes([0x98, 0xBA])
    assert stored(np.float32([1.5])).tobytes() == np.float32([1.5]).tobytes()
    assert size_of({"params/x": x, "params/y": np.float32([1.5])}).bytes == 8 + 4
    # 9 zeros in 10 go almost for nothing, though not all.
    random = np.random.default_rng(0)
    sparse = np.where(random.random(10_000) < 0.9, 0, random.normal(size=10_000)).astype(np.float32)
    assert 0.1 < size_of({"params/x": sparse}).compressed / 40_000 < 0.2


@pytest.mark.parametrize("bits", ["int8", "int4"])
def test_two_numbers_in_a_byte_are_two_parameters(bits):
    kernel_DxF = np.random.default_rng(0).normal(size=(32, 6)).astype(np.float32)
    kernel_DxF[:, 0] = 0
    kernel_DxF[0, 1:] = 0.05 * abs(kernel_DxF).max(0)[1:]  # 0 of 7 steps, 6 of 127
    whole, scale = quantised.quantise(jnp.array(kernel_DxF), bits)
    expected = np.rint(kernel_DxF / np.where(scale == 0, 1, scale))
    size = size_of({"params/kernel": np.asarray(whole), "params/kernel_scale": np.asarray(scale)})
    assert size.bytes == 32 * 6 // (2 if bits == "int4" else 1) + 4 * 6
    assert size.parameters == 32 * 6 + 6
    assert size.nonzero == np.count_nonzero(expected) + 5  # a scale is 0
    assert (size.nonzero < 31 * 5 + 5) == (bits == "int4")


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ([], "--workdir is needed"),
        (["--recipe=digits.py"], "--recipe: there is no file"),
        (["--recipe.links.0.temprature=2"], "Distil has no field 'temprature'; it has .* Did you"),
        (["--recipe.links.0.temperature=0"], "Distil.temperature: 0 given; allowed: a number in"),
        (["--recipe=experiments/configs/digits/cnn.py"], "no function get_recipe.arg=None. in it"),
        (["--config.train.steps=2"], "there is no such flag; .*--recipe.FIELD=VALUE changes a fie"),
        (["--workdir=nowhere"], "no run in .*nowhere; train there first"),
    ],
)  # fmt: skip
def test_the_command_says_in_one_line_what_is_wrong(
    words, line, base, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(ROOT)
    given = {"workdir": base, "out": tmp_path / "out"} if words else {}
    given["recipe"] = "experiments/configs/digits/compress.py"
    given |= {w.lstrip("-").partition("=")[0]: w.partition("=")[2] for w in words}
    assert command.main([f"--{name}={value}" for name, value in given.items()]) == 1
    told = capsys.readouterr().err
    assert re.search(line, told) and told.count("\n") == 1


@pytest.mark.parametrize("name", ["digits", "cifar", "sst2"])
def test_shipped_recipes_are_recipes(name):
    spec = str(ROOT / f"experiments/configs/{name}/compress.py")
    given = flags.read(spec, Recipe, {"links.0.size_at_most": "0.5"}, "get_recipe", "recipe")
    assert given.links and given.links[0].size_at_most == 0.5


@pytest.mark.slow
def test_killed_in_a_link_the_same_command_goes_on_there(base, tmp_path):
    words = [sys.executable, "-m", "lsm.compress", f"--workdir={base}", f"--out={tmp_path}/out"]
    file = tmp_path / "recipe.py"
    file.write_text(
        "from lsm import Train\nfrom lsm.compress import Distil, Recipe\n"
        "from lsm.models import MLP\nfrom lsm.optim import Adam\n"
        "def get_recipe():\n"
        "    train = Train(steps=1000, batch_size=64)\n"
        "    link = Distil(model=MLP(widths=(8,)), optimizer=Adam(learning_rate=1e-2), train=train)\n"
        "    return Recipe(links=(link,), split='test')\n"
    )
    words += [f"--recipe={file}"]
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "8", "PYTHONPATH": str(ROOT)}
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    process = subprocess.Popen(words, env=environment, cwd=ROOT, **options)
    steps = tmp_path / "out/1_distil/training/checkpoints"
    until = time.monotonic() + 200
    while not (steps.is_dir() and any(p.name.isdigit() for p in steps.iterdir())):
        assert time.monotonic() < until and process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (tmp_path / "out/1_distil/config.json").exists()
    again = subprocess.run(words, env=environment, cwd=ROOT, timeout=300, check=False, **options)
    assert again.returncode == 0, again.stdout
    assert "goes on from step" in again.stdout and "0 source: " not in again.stdout
    assert "1 distil: accuracy" in again.stdout
    # And it is what an uninterrupted training gives.
    (result,) = (tmp_path / "out").rglob("result.json")
    other = compress(base, flags.read(str(file), Recipe, {}, "get_recipe"), tmp_path / "straight")
    (straight,) = (tmp_path / "straight").rglob("result.json")
    a, b = (json.loads(path.read_text())["fingerprint"] for path in (result, straight))
    assert a == b and other[1].value > 0.8
