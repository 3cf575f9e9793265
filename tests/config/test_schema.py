"""The way of an experiment to JSON and back."""

import dataclasses
import enum
import functools
import importlib.util
import json
import math
import operator
import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from lsm import Data, Evaluation, Experiment, Mesh, Train
from lsm.config import flags, schema
from lsm.data import Arrays, Digits
from lsm.errors import ConfigError
from lsm.mesh import Fsdp, Rule
from lsm.models import CNN, MLP
from lsm.models.initializers import HE
from lsm.optim import Adam, Cosine, Group, WarmUp
from lsm.tasks import Classification

ROOT = pathlib.Path(__file__).parents[2]
FILES = sorted((ROOT / "experiments/configs").rglob("*.py"))
CONFIGS = [f"{path}" for path in FILES if path.stem not in ("compress", "retrain")]  # no runs
ARGUMENTS = {
    "linear/descent.py": ("slope", "slope_best", "line", "line_best"),
    "mnist/pruned.py": ("pruned", "dense"),
    "mnist/student.py": ("alone", "taught"),
    "mnist/mlp.py": ("plain", "long", "standardised"),
    "mnist/mlp_softmax.py": ("faulty", "repaired"),
    "shakespeare/gpt.py": ("tuned", "nanogpt"),
}
SPECS = [
    path + arg
    for path in CONFIGS
    for arg in ("", *(f":{a}" for k, v in ARGUMENTS.items() if path.endswith(k) for a in v))
]


class Colour(enum.Enum):
    RED = 1


@dataclasses.dataclass(frozen=True)
class Inner:
    rate: float | None = None
    padding: Literal["SAME", "VALID"] | tuple[int, int] = "SAME"


@dataclasses.dataclass(frozen=True)
class Thing:
    """One field of every kind of type."""

    mean: float | tuple[float, ...] = 0.0
    inner: Inner | None = None
    named: Mapping[str, tuple[Inner, ...]] = dataclasses.field(default_factory=dict)
    counts: Mapping[int, int] = dataclasses.field(default_factory=dict)
    pair: tuple[str, Callable] = ("lsm.models.MLP", nn.relu)
    function: Callable | None = None
    either: str | Callable = "jax.nn.relu"
    functions: tuple[Callable, ...] | list[Callable] = ()
    texts: list[str] = dataclasses.field(default_factory=list)
    cls: type | None = None
    anything: Any = None

    @dataclasses.dataclass(frozen=True)
    class Nested:
        size: int = 3

    def method(self, x):
        return x


@dataclasses.dataclass(frozen=True)
class Picky:
    size: int

    def __post_init__(self):
        1 / self.size


class Net(nn.Module):
    body: nn.Module
    dtype: Any = jnp.float32
    sizes: Mapping[str, int] | None = None


def through(value, hint=Any):
    return schema.from_json(json.loads(json.dumps(schema.to_json(value))), hint)


def refused(value, match):
    with pytest.raises(ConfigError, match=match) as caught:
        through(value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.split("configs/")[1])
def test_every_shipped_config_comes_back(spec):
    experiment = flags.load(spec)
    assert through(experiment, Experiment) == experiment


@pytest.mark.parametrize(
    "value",
    [
        Thing(),
        Thing(mean=(0.5, math.inf, -math.inf), inner=Inner(rate=1, padding=(1, 2))),
        Thing(mean=1, named={"a": (Inner(), Inner(rate=2.5))}, counts={-3: 4, 0: 1}),
        Thing(function=nn.gelu, either=nn.relu, functions=(nn.relu, jnp.tanh, operator.neg)),
        Thing(function=HE, cls=MLP, texts=["jax.nn.relu", "a.b"]),
        Thing(function=nn.initializers.zeros, functions=(len, np.sort, nn.avg_pool, Inner)),
        Thing(anything=(1, "jax.nn.relu", nn.relu, None, True, {"a": (nn.relu, "b")})),
        Thing(anything=Thing.Nested(size=4), function=Thing.method),
        Thing(anything=jnp.bfloat16),
        Net(body=MLP(widths=(3,), activation=nn.tanh), dtype=jnp.bfloat16, sizes={"a": 1}),
        nn.Dense(3, dtype=jnp.float32, kernel_init=HE),
        nn.Sequential((nn.Dense(3), nn.relu, nn.LayerNorm())),
        Mesh(rules=(Rule("a", (None, ("fsdp", "tensor"), "data")), Rule("b", Fsdp(min_size=3)))),
        Mesh(rules=(Rule("a", (), otherwise=(("fsdp",), None)),)),
        Adam(learning_rate=1, groups=(Group("x", 0),), schedule=WarmUp("5%", then=Cosine())),
        CNN(padding="VALID", kernel_init=HE, hidden=(3, 4)),
        Evaluation(batch_size=None, every=3),
    ],
    ids=lambda value: f"{schema.to_json(value)}"[:60],
)
def test_values_come_back_as_they_were(value):
    back = through(value)
    assert back == value
    assert schema.to_json(back) == schema.to_json(value)
    schema.check(back)


def test_numbers_keep_their_type_and_nan_comes_back():
    back = through(Thing(mean=(1, 2.0, math.nan), anything=True))
    assert [type(x) for x in back.mean] == [int, float, float] and math.isnan(back.mean[2])
    assert back.anything is True


def test_functions_keep_the_short_form_where_the_type_takes_no_text():
    tree = schema.to_json(MLP())
    assert tree["activation"] == "jax.nn.relu"
    assert schema.to_json(Thing(functions=(nn.relu,)))["functions"] == ["jax.nn.relu"]
    assert schema.to_json(Thing(either=nn.relu))["either"]["name"] == "jax.nn.relu"


def test_partials_come_back_and_their_changes_show():
    soft = functools.partial(nn.gelu, approximate=False)
    back = through(Thing(function=soft, functions=(functools.partial(max, 3, key=abs),)))
    assert back.function.func is nn.gelu and back.function.keywords == {"approximate": False}
    assert back.functions[0](-5) == -5
    old, new = (
        schema.to_json(MLP(activation=f))
        for f in (soft, functools.partial(nn.gelu, approximate=True))
    )
    assert schema.differences(old, new) == ["activation.keywords.approximate: False -> True"]
    with pytest.raises(ConfigError, match="activation: functools.partial cannot .*not there"):
        schema.from_json(old | {"activation": "functools.partial"})


def test_what_a_local_function_was_made_with_shows():
    """JAX's initialisers are made by functions, and have no name of their own."""
    normal, other = (
        schema.to_json(nn.Dense(3, kernel_init=nn.initializers.normal(s))) for s in (0.02, 0.1)
    )
    (line,) = schema.differences(normal, other)
    assert line.startswith("kernel_init: ") and "stddev=0.02" in line and "stddev=0.1" in line
    scaled = [
        nn.initializers.variance_scaling(1.0, mode, "normal") for mode in ("fan_in", "fan_out")
    ]
    assert schema.differences(*(schema.to_json(Thing(function=f)) for f in scaled))
    assert schema.to_json(Thing(function=scaled[0])) == schema.to_json(
        Thing(function=nn.initializers.variance_scaling(1.0, "fan_in", "normal"))
    )

    def made(power, table, cache):
        def raised(x):
            return (x**power @ table, cache, raised)

        return raised

    table = np.arange(3)
    told = [
        schema.to_json(made(*given))
        for given in ((2, table, {}), (2, table + 1, {}), (3, table, {}))
    ]
    assert len({one["name"] for one in told}) == 3
    assert schema.to_json(made(2, table, {"filled": 1})) == told[0]


def test_a_local_function_in_the_config_of_an_earlier_version_is_the_same():
    """It was named without what it was made with."""
    now = schema.to_json(nn.Dense(3, kernel_init=nn.initializers.normal(0.02)))
    before = now | {"kernel_init": now["kernel_init"].partition("(")[0]}
    assert schema.differences(before, now) == []
    assert schema.differences(before | {"kernel_init": "mine.made.<locals>.init"}, now)
    assert schema.differences(
        before | {"kernel_init": "mine.init"}, now | {"kernel_init": "mine.init(a)"}
    )


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6.0).reshape(2, 3).T,
        np.zeros((0, 3), np.float32),
        np.float32([1, 2]).astype(ml_dtypes.bfloat16),
        np.array(["a", "bc"]),
        np.array("2020-01-01", "datetime64[D]"),
        jnp.arange(4),
        np.array([np.zeros(2), np.ones(3), "text"], object),
    ],
    ids=lambda array: str(array.dtype),
)
def test_arrays_are_told_apart_by_content(array):
    tree = schema.to_json(array)
    assert tree == schema.to_json(array.copy()) and json.dumps(tree)
    assert tree["shape"] == list(array.shape) and tree["dtype"] == str(array.dtype)
    refused(array, rf"config: an array .*{re.escape(str(array.dtype))}, .* checksum")


def test_one_number_of_a_large_array_is_seen():
    x = np.zeros((5000, 3))
    old, new = (schema.to_json(Arrays(train={"x": array})) for array in (x, x.copy()))
    assert schema.differences(old, new) == []
    x[2500, 1] = 1e-300
    (line,) = schema.differences(old, schema.to_json(Arrays(train={"x": x})))
    assert line.startswith("train.x.sha256: ")


def test_a_changed_array_is_seen():
    old = Arrays(train={"x": np.arange(2.0), "ragged": np.array([np.ones(2), "a"], object)})
    new = Arrays(train={"x": np.arange(2.0), "ragged": np.array([np.ones(2), "b"], object)})
    assert schema.to_json(old)["train"]["x"] == schema.to_json(new)["train"]["x"]
    (line,) = schema.differences(schema.to_json(old), schema.to_json(new))
    assert line.startswith("train.ragged.sha256: ")
    known = schema.to_json(np.frombuffer(b"abc", np.uint8))["sha256"]  # FIPS 180-2, B.1
    assert known == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_what_json_cannot_give_back_is_named_in_one_line():
    refused(
        Thing(function=lambda x: x),
        r"^function: test_schema\.test_\S*<lambda> cannot be imported \(it",
    )
    refused(
        nn.Dense(3, kernel_init=nn.initializers.he_normal()), "^kernel_init: jax.*<locals>.init"
    )
    refused(Thing(anything=object()), "^anything: <object object>, which")
    refused(Thing(inner=None, functions=(nn.relu, nn.initializers.normal())), r"^functions\.1: .*<")
    refused(
        Thing(named={"a": ()}, anything={"b": (Colour.RED,)}), r"anything\.b\.0: <Colour\.RED: 1>, "
    )
    refused(Thing(function=Thing(anything=1).method), r"^function: <bound method .*not give back")
    refused(Thing(anything=np.float32(1)), r"^anything: np.float32\(1\.0\), which JSON does not")
    refused(
        Thing(function=functools.partial(nn.gelu, np.ones(2))), r"^function\.arguments\.0: an a"
    )
    source = Arrays(train={"x": np.ones((2, 3))})
    experiment = Experiment(
        name="x", task=Classification(model=MLP()), data=Data(source=source),
        optimizer=Adam(learning_rate=1.0), train=Train(steps=1),
    )  # fmt: skip
    with pytest.raises(ConfigError) as caught:
        schema.from_json(schema.to_json(experiment), Experiment, "Give experiment= to lsm.load.")
    assert str(caught.value) == (
        "data.source.train.x: an array (2, 3) float64, of which JSON holds no more than a "
        "checksum. Give experiment= to lsm.load."
    )


CONFIG = """
import flax.linen as nn
from lsm import Data, Experiment, Train
from lsm.data import Digits
from lsm.models import MLP
from lsm.optim import Adam
from lsm.tasks import Classification

class Net(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        return nn.Dense(10)(x)

def mine(x):
    return x

def get_config(arg=""):
    model = Net() if arg == "class" else MLP(activation=mine)
    return Experiment(name="x", task=Classification(model=model), data=Data(source=Digits()),
                      optimizer=Adam(learning_rate=1.0), train=Train(steps=1))
"""


@pytest.mark.parametrize(
    ("arg", "match"),
    [
        ("class", r"^task\.model: lsm_config_own\.Net cannot be imported \(it stands in a"),
        ("function", r"^task\.model\.activation: lsm_config_own\.mine cannot be imported"),
    ],
)
def test_what_a_config_file_defines_is_refused(tmp_path, arg, match):
    (tmp_path / "own.py").write_text(CONFIG)
    refused(flags.load(f"{tmp_path}/own.py:{arg}"), match)


@pytest.mark.parametrize(
    ("tree", "hint", "match"),
    [
        ({"class": "lsm.config.Train", "step": 3}, Any, r"^step: Train has no such .* 'steps'\?$"),
        ({"class": "lsm.config.Train"}, Any, "^Train|^train: one of steps"),
        ({"class": "lsm.config.Trian"}, Any, r"^config: lsm.config.Trian cannot be .*Attribute"),
        ({"class": "no_such_room.X"}, Any, r"cannot be imported \(ModuleNotFoundError"),
        ({"class": "__main__.X"}, Any, r"__main__\.X cannot be imported \(it stands"),
        ({"class": "subprocess.run", "args": "ls"}, Any, r"^config: subprocess\.run is no datac"),
        ({"class": "pathlib.Path"}, Any, r"^config: pathlib\.Path is no"),
        ({"class": "lsm.optim.optimizers.Adam"}, Any, "^learning_rate: absent; Adam needs it"),
        ({"class": "lsm.config.Train", "steps": "3"}, Any, r"^steps: '3' given, .* int \| None"),
        ({"class": "lsm.config.Train", "steps": 3}, Data, "^config: Train.* given.*Data is needed"),
        ({"class": "lsm.models.mlp.MLP", "activation": "jax.nn.relux"}, Any, "^activation: jax.nn"),
    ],
)
def test_json_of_another_version_is_refused_in_one_line(tree, hint, match):
    with pytest.raises(ConfigError, match=match) as caught:
        schema.from_json(tree, hint)
    assert "\n" not in str(caught.value)


def test_what_a_constructor_raises_is_one_line():
    tree = {"class": "test_schema.Picky", "size": 0}
    with pytest.raises(ConfigError, match=r"^0: Picky refuses it \(ZeroDivisionError: division by"):
        schema.from_json([tree])


def test_absent_fields_take_their_defaults():
    assert schema.from_json({"class": "lsm.config.Train", "steps": 3}) == Train(steps=3)
    assert schema.from_json({"class": "lsm.data.digits.Digits"}) == Digits()


def test_a_module_that_raises_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "broken_room.py").write_text("raise RuntimeError('two\\nlines')")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert importlib.util.find_spec("broken_room")
    with pytest.raises(ConfigError, match=r"^config: broken_room\.X cannot .*RuntimeError: two l"):
        schema.from_json({"class": "broken_room.X"})


def test_public_names_of_jax():
    assert schema.dotted(nn.initializers.zeros) == "jax.nn.initializers.zeros"
    assert schema.dotted(jax.lax.add) == "jax.lax.add"


def test_nan_is_no_difference():
    assert schema.differences({"fill": math.nan}, {"fill": math.nan}) == []
    assert schema.differences({"fill": math.nan}, {"fill": 0.0}) == ["fill: nan -> 0.0"]
