"""Configs: files, overrides, and what is said when something in them is wrong."""

import dataclasses
import json
import pathlib
import sys

import flax.linen as nn
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lsm import Data, EarlyStopping, Evaluation, Experiment, Mesh, Start, Train
from lsm.config import flags, schema
from lsm.data import Digits
from lsm.errors import ConfigError, LsmError
from lsm.mesh import Fsdp, Rule
from lsm.models import MLP
from lsm.optim import Adam, Cosine, Group, WarmUp
from lsm.tasks import Classification

FILES = sorted((pathlib.Path(__file__).parents[2] / "experiments/configs").glob("*/*.py"))
CONFIGS = [path for path in FILES if path.stem not in ("compress", "retrain")]  # no runs


def experiment(**changes):
    fields = {
        "name": "x",
        "task": Classification(model=MLP(widths=(32, 16))),
        "data": Data(source=Digits()),
        "optimizer": Adam(learning_rate=1e-3, groups=(Group("Dense_0", 0.5),)),
        "train": Train(epochs=2),
        "mesh": Mesh(rules=(Rule(".*"),)),
    }
    return Experiment(**fields | changes)


FILE = """
from lsm import *
from lsm import optim
from lsm.data import Digits
from lsm.models import MLP
from lsm.tasks import Classification

def get_config(arg="3"):
    return Experiment(
        name="x", task=Classification(model=MLP(widths=(8,))), data=Data(source=Digits()),
        optimizer=optim.Adam(learning_rate=1e-3), train=Train(steps=int(arg)),
    )
"""


def write(tmp_path, *replace):
    text = FILE.replace(*replace) if replace else FILE
    path = tmp_path / "config.py"
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_every_shipped_config_loads_and_has_its_documentation(path):
    config = flags.load(str(path))
    assert json.loads(json.dumps(schema.to_json(config)))["name"] == config.name
    assert "python -m experiments." in path.read_text().split('"""')[1]
    lines = list(flags.describe(config))
    fields = [line for line in lines if line.startswith("--config.")]
    undocumented = [a for a, b in zip(lines, [*lines[1:], ""], strict=True)
                    if a.startswith("--") and not b.startswith("    ")
                    and not a.split(":")[0].split(".")[-1].isdigit()]  # fmt: skip
    assert len(fields) > 30 and not undocumented


def test_argument_of_the_file(tmp_path):
    path = write(tmp_path)
    assert flags.load(path).train.steps == 3
    assert flags.load(f"{path}:7").train.steps == 7


@pytest.mark.parametrize(
    ("path", "text", "value"),
    [
        ("optimizer.learning_rate", "3e-4", 3e-4),
        ("optimizer.learning_rate", "1", 1),
        ("optimizer.clip_norm", "none", None),
        ("train.batch_size", "64", 64),
        ("train.batch_size", "1e2", 100),
        ("train.log_every", "2 epochs", "2 epochs"),
        ("train.log_every", "20", 20),
        ("train.skip_nonfinite", "true", True),
        ("task.model.widths", "(64, 32)", (64, 32)),
        ("task.model.widths", "[64,32]", (64, 32)),
        ("task.model.widths", "64", (64,)),
        ("task.model.activation", "jax.nn.gelu", nn.gelu),
        ("task.model.dtype", "bfloat16", "bfloat16"),
        ("optimizer.groups.0.scale", "0", 0),
        ("mesh.rules.0.spec.min_size", "1", 1),
        ("data.validation", "train[90%:]", "train[90%:]"),
        ("name", "5", "5"),
    ],
)
def test_override_by_type(path, text, value):
    found = flags.override(experiment(), {path: text})
    for name in path.split("."):
        found = found[int(name)] if name.isdigit() else getattr(found, name)
    assert found == value and type(found) is type(value)


@dataclasses.dataclass(frozen=True)
class Items:
    mean: tuple[float, ...] | None = (0, 0.5)
    pair: tuple[int, str] = (1, "a")
    plain: tuple = (1, "a")
    nested: tuple[tuple[float, ...], ...] = ((0, 1),)
    names: tuple[str, ...] = ()
    many: list[float] = dataclasses.field(default_factory=lambda: [1, 2])


@pytest.mark.parametrize(
    ("path", "text", "field", "value"),
    [
        ("mean.0", "0.5", "mean", (0.5, 0.5)),
        ("pair.1", "5", "pair", (1, "5")),
        ("plain.1", "5", "plain", (1, "5")),
        ("nested.0.1", "0.5", "nested", ((0, 0.5),)),
        ("many.1", "0.5", "many", [1, 0.5]),
        ("names", "cat,dog", "names", ("cat", "dog")),
        ("names", "1, 2", "names", ("1", "2")),
        ("names", "cat", "names", ("cat",)),
        ("names", "('a,b', 'c')", "names", ("a,b", "c")),
    ],
)
def test_an_item_is_of_the_type_that_its_field_says(path, text, field, value):
    assert getattr(flags.override(Items(), {path: text}), field) == value


def test_an_item_of_another_type_is_refused():
    for path, said in (("pair.0", "int is needed"), ("plain.0", "int is needed")):
        with pytest.raises(ConfigError, match=f"--config.{path}: '0.5' given; {said}"):
            flags.override(Items(), {path: "0.5"})
    with pytest.raises(ConfigError, match=r"there is no item 2; there are 2, counted from 0"):
        flags.override(Items(), {"many.2": "1"})


def test_one_length_replaces_another():
    assert flags.override(experiment(), {"train.steps": "9"}).train == Train(steps=9)
    with pytest.raises(ConfigError, match="one of steps, epochs, examples is needed; steps=9, ep"):
        flags.override(experiment(), {"train.steps": "9", "train.epochs": "1"})


def test_fields_that_depend_on_each_other_change_together():
    changed = flags.override(experiment(), {"train.accumulation": "3", "train.batch_size": "12"})
    assert (changed.train.accumulation, changed.train.batch_size) == (3, 12)


def test_a_field_of_what_is_none_makes_its_default():
    config = experiment(data=Data(source=Digits(), validation="train[90%:]"))
    changed = flags.override(config, {"evaluation.early_stopping.patience": "7"})
    assert changed.evaluation.early_stopping == EarlyStopping(patience=7)


def test_a_start_is_begun_by_its_needed_field():
    changed = flags.override(
        experiment(), {"start.path": "runs/base", "start.rename": "(('^params/', ''),)"}
    )
    assert changed.start == Start(path="runs/base", rename=(("^params/", ""),))
    with pytest.raises(ConfigError, match=r"--config.start.path: Start needs it; give it too."):
        flags.override(experiment(), {"start.fresh": "head/"})


def test_a_file_may_defer_its_annotations(tmp_path):
    path = tmp_path / "deferred.py"
    path.write_text(
        "from __future__ import annotations\n"
        "import dataclasses\n"
        "from lsm import Data, Experiment, Train\n"
        "from lsm.data import Digits\n"
        "from lsm.models import MLP\n"
        "from lsm.optim import Adam\n"
        "from lsm.tasks import Classification\n"
        "@dataclasses.dataclass(frozen=True, kw_only=True)\n"
        "class Mine(Classification):\n"
        "    factor: float = 2.0\n"
        "def get_config(arg=None):\n"
        "    return Experiment(name='x', task=Mine(model=MLP()), data=Data(source=Digits()),\n"
        "        optimizer=Adam(learning_rate=1e-3), train=Train(steps=1))\n"
    )
    assert flags.load(str(path), {"task.factor": "3"}).task.factor == 3.0


@pytest.mark.parametrize("error", ["KeyError('x')", "AssertionError('x')", "OSError('x')"])
def test_any_error_of_the_file_is_one_line_with_its_place(tmp_path, error):
    path = write(tmp_path, "    return Exp", f"    raise {error}\n    return Exp")
    with pytest.raises(ConfigError, match=r"config.py:9: \w+Error: '?x'?$"):
        flags.load(path)


def test_both_forms_on_the_line():
    line = ["x", "--workdir=w", "--config.a.b=1", "--config.c", "2 epochs", "--mode=eval"]
    rest, found = flags.split_overrides(line)
    assert rest == ["x", "--workdir=w", "--mode=eval"]
    assert found == {"a.b": "1", "c": "2 epochs"}
    line = ["-config.a=1", "--config.b=x=y", "--config.a=2", "--config=f", "--", "--config.c=3"]
    rest, found = flags.split_overrides(line)
    assert rest == ["--config=f", "--", "--config.c=3"]
    assert found == {"a": "2", "b": "x=y"}


@pytest.mark.parametrize("line", [["--config.a"], ["--config.a", "--config.b=1"]])
def test_a_field_without_a_value_is_told(line):
    with pytest.raises(ConfigError, match=r"^--config.a: a value is needed, as in --config.a=VAL"):
        flags.split_overrides(line)


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        (
            ("train", "train.steps"),
            "--config.train.steps: a field above it is set on the line too.",
        ),
        (("train.steps", "train"), "--config.train: a field below it is set on the line too."),
    ],
)
def test_a_field_and_what_is_inside_it_are_not_both_set(paths, message):
    with pytest.raises(ConfigError) as caught:
        flags.override(experiment(), dict.fromkeys(paths, "1"))
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"optimizer.lerning_rate": "1"}, "--config.optimizer.lerning_rate: Adam has no field 'lerning_rate'; it has .* Did you mean 'learning_rate'?"),
        ({"optimiser.learning_rate": "1"}, "Experiment has no field 'optimiser'.* Did you mean 'optimizer'?"),
        ({"task.model.width": "1"}, "MLP has no field 'width'.* Did you mean 'widths'?"),
        ({"train.steps": "1.5"}, "--config.train.steps: '1.5' given; int | None is needed."),
        ({"train.seed": "true"}, "'true' given; int is needed."),
        ({"optimizer.learning_rate": "fast"}, "'fast' given; float is needed."),
        ({"task.model.dtype": "bf16"}, "'float32' | 'bfloat16' is needed."),
        ({"train.steps.x": "1"}, "None has no fields to set"),
        ({"train.batch_size": "0"}, "Train.batch_size: 0 given; allowed: a number in (0, 16777216]."),
        ({"train.accumulation": "3"}, "3 does not divide train.batch_size=128"),
        ({"checkpoint.every": "2 epocs"}, "'2 epocs' is not a duration.* Did you mean 'epochs'?"),
        ({"checkpoint.every": "5_ steps"}, "'5_ steps' is not a duration"),
        ({"checkpoint.every": "1__0 steps"}, "'1__0 steps' is not a duration"),
        ({"optimizer": "Adam"}, "--config.optimizer: 'Adam' given; Optimizer is needed."),
        ({"task.model.widths": "(32, 0)"}, "MLP.widths: (32, 0) given; allowed: 1 or more."),
        ({"train.seed": "4294967296"}, "Train.seed: 4294967296 given; allowed: a number in [0, 4294967296)."),
        ({"train.batch_size": "1" + "0" * 30}, "allowed: a number in (0, 16777216]"),
        ({"data.workers": "100000"}, "Data.workers: 100000 given; allowed: a number in [1, 1024]."),
        ({"task.model.widths": "(32, 1000000000)"}, "MLP.widths: (32, 1000000000) given; allowed: 16,777,216 or less."),
        ({"task.model.activation": "this.s"}, "--config.task.model.activation: 'this.s' given; Callable is needed."),
        ({"task.model.activation": "jax.nn.geul"}, "'jax.nn.geul' given; Callable is needed. Did you mean 'jax.nn.gelu'?"),
        ({"train.steps": "9" * 5000}, "' given; int | None is needed."),
        ({"train.steps": "0x" + "9" * 5000}, "given; allowed: a number in (0, 2147483647]"),
        ({"train.log_every": "9" * 5000 + " steps"}, "99 steps' is not a duration"),
        ({"train.log_every": "1e999 steps"}, "'1e999 steps' is not a duration"),
        ({"train.seed": "(" * 5000}, "int is needed."),
        ({"train.seed": "{[]}"}, "int is needed."),
        ({"start.path": "x", "start.take": "(" * 5000}, "is not a regular expression"),
        ({"start.path": "x", "start.take": "a{99999999999999999999}"}, "is not a regular expression"),
        ({"task.model.widths": str((0,) * 2000)}, "allowed: 1 or more."),
        ({"x" * 5000: "1"}, "xxx'; it has name, task, data"),
        ({"mesh.data": "0"}, "mesh.data: 0 given; it must be 1 or more, or -1."),
    ],
)  # fmt: skip
def test_what_is_wrong_on_the_line(overrides, message):
    with pytest.raises(ConfigError) as caught:
        flags.override(experiment(), overrides)
    text = str(caught.value)
    assert "\n" not in text and len(text) <= 1000
    for part in message.split(".* "):
        assert part in text


PATHS = [
    "train.steps",
    "train.epochs",
    "train.log_every",
    "train.skip_nonfinite",
    "optimizer.learning_rate",
    "optimizer.groups.0.scale",
    "task.model.widths",
    "task.model.widths.0",
    "task.model.activation",
    "task.model.dtype",
    "mesh.rules.0.pattern",
    "data.validation",
    "data.source",
    "start.path",
    "name",
]
TEXTS = st.one_of(
    st.text(max_size=20),
    st.text("0123456789.-+e_jx", max_size=12),
    st.text("()[]{},'\"0a:", max_size=12),
    st.sampled_from(
        ["none", "true", "1e3", "(1,2)", "[3]", "jax.nn.gelu", "os.path.join", "{1:2}"]
    ),
    st.recursive(st.integers() | st.text() | st.none(), lambda x: st.tuples(x, x)).map(repr),
)


@given(st.dictionaries(st.sampled_from(PATHS) | st.text(max_size=8), TEXTS, max_size=3))
def test_any_override_is_a_checked_experiment_or_one_line(overrides):
    try:
        changed = flags.override(experiment(), overrides)
    except LsmError as error:
        assert "\n" not in str(error) and len(str(error)) <= 1000
    else:
        schema.check(changed)
        json.dumps(schema.to_json(changed))


@given(
    st.from_type(int)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
    | st.tuples(st.integers())
)
def test_what_a_field_shows_can_be_given(value):
    """As text of its own: `repr`, and a text also as it stands."""
    hint = type(value) if not isinstance(value, tuple) else tuple[int, ...]
    assert flags.parse_value(repr(value), hint, "--x") == value
    if isinstance(value, str) and value.lower() not in ("none", "null", "true", "false"):
        assert isinstance(flags.parse_value(value, str, "--x"), str)


def test_no_module_is_imported_for_a_value():
    sys.modules.pop("this", None)
    for text in ("this.s", "antigravity.fly", "test.support.verbose", "no_such.__doc__"):
        with pytest.raises(ConfigError):
            flags.override(experiment(), {"task.model.activation": text})
        assert text.rpartition(".")[0] not in sys.modules


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("widths", "withs", "config.py:10: MLP has no field 'withs'; .* Did you mean 'widths'?"),
        ("learning_rate", "lr", "config.py:11: Adam has no field 'lr'; it has learning_rate, "),
        ("steps=", "stpes=", "Train has no field 'stpes'.* Did you mean 'steps'?"),
        ("(8,)", "'8'", "task.model.widths: '8' given, which is str; tuple[int, ...] is needed."),
        ("1e-3", "'1e-3'", "config.py:11: Adam.learning_rate: '1e-3' given"),
        ("int(arg)", "1.5", "train.steps: 1.5 given, which is float; int | None is needed."),
        ("int(arg)", "True", "Train.steps: True given; allowed: a number in (0, 2147483647]."),
        ("Digits()", "Digit()", "config.py:10: name 'Digit' is not defined. Did you mean 'Digits'?"),
        ("Digits()", "None", "data.source: None given, which is NoneType; Source is needed."),
        ("get_config", "make", "no function get_config(arg=None) in it"),
        ("return Exp", "return 3\n    return Exp", "get_config returned int"),
        ("name=", "name==", "config.py:10: "),
        ("import optim", "import optimm", "config.py:3: ImportError: cannot import name 'optimm'"),
    ],
)  # fmt: skip
def test_what_is_wrong_in_the_file(tmp_path, old, new, message):
    with pytest.raises(ConfigError) as caught:
        flags.load(write(tmp_path, old, new))
    text = str(caught.value)
    assert "\n" not in text and str(tmp_path) in text
    for part in message.split(".* "):
        assert part in text


def test_assigning_in_the_file_is_refused_readably(tmp_path):
    path = write(
        tmp_path, "    return Exp", "    c = Train(steps=1)\n    c.steps = 2\n    return Exp"
    )
    with pytest.raises(ConfigError, match="config.py:10: cannot assign to field 'steps'"):
        flags.load(path)


def test_a_missing_file_names_the_nearest(tmp_path):
    path = write(tmp_path)
    with pytest.raises(ConfigError, match=r"no file .*confg.py.* Did you mean .*config.py"):
        flags.load(path.replace("config.py", "confg.py"))


def test_early_stopping_needs_a_validation_split():
    with pytest.raises(ConfigError, match="evaluation.early_stopping: data.validation is None"):
        experiment(evaluation=Evaluation(early_stopping=EarlyStopping()))


def test_json_holds_every_object_and_differences_name_paths():
    old = experiment()
    new = experiment(
        train=Train(epochs=3, log_every=7),
        optimizer=Adam(learning_rate=1e-3, schedule=WarmUp("5%", then=Cosine())),
        mesh=Mesh(fsdp=2, rules=(Rule("kernel", (None, "fsdp")), Rule(".*", Fsdp()))),
    )
    lines = schema.differences(schema.to_json(old), schema.to_json(new), schema.free_fields(new))
    paths = {line.split(":")[0] for line in lines}
    assert "train.epochs: 2 -> 3" in lines
    assert "optimizer.schedule.class" in paths and "optimizer.groups.0.scale" in paths
    assert not any(path.startswith(("mesh", "train.log_every")) for path in paths)
    assert schema.differences(schema.to_json(old), schema.to_json(experiment())) == []


def test_errors_share_a_base():
    assert issubclass(ConfigError, LsmError)
