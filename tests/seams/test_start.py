"""Runs that begin with what another run or a file holds; constants."""

import dataclasses
import json
import shutil

import flax.linen as nn
import jax
import numpy as np
import optax
import pytest
from safetensors.numpy import save_file
from user_tasks import SMALL, assert_equal, experiment, pictures

import lsm
from lsm import Mesh, Start, Train
from lsm.errors import CheckpointError, ConfigError
from lsm.interop import Torch
from lsm.models import CNN, MLP, Lora
from lsm.optim import SGD, Adam, Group, Raw, params_ema
from lsm.params import flat
from lsm.run.result import fingerprint
from lsm.tasks import CONSTANTS, Classification
from lsm.train import build
from lsm.train.start import begin


def first_state(case, devices=None):
    batch = {name: x[:16] for name, x in case.data.source.train.items()}
    program = build(case, case.horizon(64), batch, devices)
    return begin(program, case.start, case.task, None)


def test_a_run_starts_from_the_averages_of_another(base):
    state = first_state(experiment(start=Start(path=str(base))))
    found = lsm.load(base, experiment=experiment())
    assert_equal(state.params, found.params)
    assert_equal(state.opt_state["ema"].average, found.params)
    raw = json.loads((base / "result.json").read_text())["fingerprint"]
    assert fingerprint(found.params) != raw  # these are no averages


@pytest.mark.slow
def test_a_new_head_is_drawn_and_the_rest_taken(base, tmp_path):
    columns = pictures(seed=1) | {"label": pictures(seed=1)["label"] % 3}
    task = Classification(model=MLP(widths=(8,), outputs=3))
    start = Start(path=str(base), fresh="^params/Dense_1/")
    case = experiment(task, columns, start=start, optimizer=Adam(learning_rate=1e-2))
    state, drawn = first_state(case), first_state(dataclasses.replace(case, start=None))
    assert_equal(state.params["Dense_0"], lsm.load(base, experiment=experiment()).params["Dense_0"])
    assert_equal(state.params["Dense_1"], drawn.params["Dense_1"])
    one = lsm.fit(case, tmp_path / "one")
    # Interrupted, it goes on from its own checkpoint: the other run is not needed any more.
    half = dataclasses.replace(case, train=Train(steps=2, batch_size=16))
    lsm.fit(half, tmp_path / "parts")
    gone = dataclasses.replace(case, start=dataclasses.replace(start, path="gone"))
    parts = lsm.fit(gone, tmp_path / "parts", allow_config_change=True)
    assert parts.fingerprint == one.fingerprint


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [Mesh(), Mesh(data=1, fsdp=8)], ids=["data", "fsdp"])
def test_what_is_taken_goes_straight_to_its_place(base, mesh):
    task = Classification(model=MLP(widths=(64,), outputs=8))
    wide = experiment(task, train={"params": "bfloat16"}, start=None, mesh=mesh)
    source = base.parent / f"wide-{mesh.fsdp}"
    lsm.fit(dataclasses.replace(wide, mesh=Mesh()), source)
    many = first_state(dataclasses.replace(wide, start=Start(path=str(source))))
    one = first_state(
        dataclasses.replace(wide, mesh=Mesh(), start=Start(path=str(source))), jax.devices()[:1]
    )
    assert_equal(many, one)
    for x, y in zip(jax.tree.leaves(many), jax.tree.leaves(first_state(wide)), strict=True):
        assert x.sharding == y.sharding
    assert many.params["Dense_0"]["kernel"].dtype == "bfloat16"
    assert many.opt_state["master"]["Dense_0"]["kernel"].dtype == "float32"


def test_a_start_from_one_checkpoint(base):
    start = Start(path=str(base / "checkpoints" / "4"))
    assert_equal(
        first_state(experiment(start=start)).params,
        lsm.load(base, experiment=experiment(), step=4).params,
    )


def test_a_start_from_safetensors_with_other_names(tmp_path):
    random = np.random.default_rng(0)
    tensors = {
        "body.weight": random.normal(size=(12, 8)).astype(np.float32),
        "body.bias": random.normal(size=8).astype(np.float16),
        "head.weight": random.normal(size=(8, 4)).astype(np.float32),
        "head.bias": random.normal(size=4).astype(np.float32),
        "unused.weight": np.zeros(3, np.float32),
    }
    save_file(tensors, tmp_path / "model.safetensors")
    rename = (
        ("^params/Dense_0/", "body."),
        ("^params/Dense_1/", "head."),
        ("kernel$", "weight"),
    )
    start = Start(path=str(tmp_path), take="^(body|head)", rename=rename)
    params = first_state(experiment(start=start)).params
    np.testing.assert_array_equal(params["Dense_0"]["kernel"], tensors["body.weight"])
    np.testing.assert_array_equal(params["Dense_0"]["bias"], tensors["body.bias"])
    np.testing.assert_array_equal(params["Dense_1"]["kernel"], tensors["head.weight"])


def test_a_start_from_tensors_that_are_called_and_laid_out_in_another_way(base, tmp_path):
    random = np.random.default_rng(0)
    body = {
        "body.weight": random.normal(size=(8, 12)).astype(np.float32),
        "body.bias": random.normal(size=8).astype(np.float16),
    }
    file = tmp_path / "model.safetensors"
    save_file(body | {"fc.bias": np.zeros(9, np.float32)}, file)
    names = Torch(rename=(("^Dense_0/", "body/"), ("^Dense_1/", "fc/")))
    start = Start(path=str(file), names=names, fresh="^params/Dense_1/")
    params = first_state(experiment(start=start)).params
    np.testing.assert_array_equal(params["Dense_0"]["kernel"], body["body.weight"].T)
    np.testing.assert_array_equal(params["Dense_0"]["bias"], body["body.bias"])
    with pytest.raises(CheckpointError) as error:
        first_state(experiment(start=dataclasses.replace(start, fresh=None)))
    assert "missing there: 'params/Dense_1/kernel' (there 'fc.weight');" in str(error.value)
    assert "'params/Dense_1/bias' (there 'fc.bias') is (9,) float32 there" in str(error.value)
    with pytest.raises(ConfigError, match="Start.names: given for safetensors; .* is a run's"):
        first_state(experiment(start=dataclasses.replace(start, path=str(base))))


def test_every_fault_is_named_in_one_error(base):
    model = MLP(widths=(8, 8), outputs=5)
    start = Start(path=str(base), rename=(("Dense_2/", "Dense_1/"), ("Dense_0/bias", "nowhere")))
    with pytest.raises(CheckpointError) as error:
        first_state(experiment(Classification(model=model), start=start))
    told = str(error.value)
    assert "\n" not in told
    assert "missing there: 'params/Dense_0/bias' (there 'params/nowhere');" in told
    assert "left over there: 'params/Dense_0/bias'" in told
    for path, there, here in [
        ("'params/Dense_1/bias'", "(4,)", "(8,)"),
        ("'params/Dense_1/kernel'", "(8, 4)", "(8, 8)"),
        ("'params/Dense_2/bias' (there 'params/Dense_1/bias')", "(4,)", "(5,)"),
    ]:
        assert f"{path} is {there} float32 there and {here} float32 here" in told


@pytest.mark.parametrize(
    ("start", "error", "line"),
    [
        ({"path": "nowhere"}, CheckpointError, "start.path: nowhere is not there"),
        ({"fresh": "heads/"}, ConfigError, "Start.fresh: 'heads/' matches no"),
        ({"take": "encoder"}, ConfigError, "Start.take: 'encoder' matches no"),
    ],
    ids=["no file", "fresh", "take"],
)
def test_bad_starts_are_one_line(base, start, error, line):
    case = experiment(start=Start(**{"path": str(base)} | start))
    with pytest.raises(error, match=line) as raised:
        first_state(case)
    assert "\n" not in str(raised.value)


def test_bad_patterns_are_refused_when_written():
    with pytest.raises(ConfigError, match="Start: '' given as a pattern, which matches everything"):
        Start(path="x", fresh="")
    with pytest.raises(ConfigError, match=r"Start.fresh: '\(' is not a regular expression"):
        Start(path="x", fresh="(")
    for rename in [(("[", "y"),), ("^a", "b"), (("^a", "\\2"),), (("a", 1),)]:
        with pytest.raises(ConfigError, match="Start.rename: "):
            Start(path="x", rename=rename)


@pytest.mark.slow
def test_a_module_may_be_called_average(tmp_path):
    """Adam's moments of it are no averages of what it holds."""

    class Two(nn.Module):
        outputs: int = 4

        @nn.compact
        def __call__(self, x_BxD, train=False):
            y_BxD = nn.Dense(12)(MLP(widths=(), outputs=12, name="average")(x_BxD))
            return nn.Dense(4)(y_BxD)

    for ema in (None, 0.5):
        case = experiment(Classification(model=Two()), optimizer=Adam(learning_rate=1e-2, ema=ema))
        workdir = tmp_path / str(ema)
        result = lsm.fit(case, workdir)
        params = lsm.load(workdir, experiment=case).params
        assert (fingerprint(params) == result.fingerprint) is (ema is None)
        assert min(np.abs(x).max() for x in jax.tree.leaves(params)) > 1e-3


@pytest.mark.slow
def test_an_average_in_a_raw_chain_is_found(tmp_path):
    chain = Raw(lambda horizon: optax.chain(optax.sgd(0.1), params_ema(0.5)))
    case = experiment(optimizer=chain)
    result = lsm.fit(case, tmp_path)
    params = lsm.load(tmp_path, experiment=case).params
    assert fingerprint(params) != result.fingerprint
    plain = experiment(optimizer=SGD(learning_rate=0.1, ema=0.5))
    lsm.fit(plain, tmp_path / "plain")
    assert_equal(params, lsm.load(tmp_path / "plain", experiment=plain).params)


def test_a_start_takes_masters_before_rounded_parameters(tmp_path):
    case = experiment(optimizer=SGD(learning_rate=0.1), train={"params": "bfloat16"})
    lsm.fit(case, tmp_path)
    state = first_state(experiment(start=Start(path=str(tmp_path))))
    kernel = np.asarray(state.params["Dense_0"]["kernel"])
    rounded = np.asarray(lsm.load(tmp_path, experiment=case).params["Dense_0"]["kernel"])
    assert rounded.dtype == "bfloat16" and (kernel.astype(rounded.dtype) == rounded).all()
    assert (kernel != rounded.astype(np.float32)).any()


def test_a_start_that_takes_nothing_draws_everything(base):
    state = first_state(experiment(start=Start(path=str(base), fresh=".*")))
    assert_equal(state.params, first_state(experiment()).params)


# Constants.


def low_rank(base, **more):
    renamed = Start(
        path=str(base), rename=((f"^{CONSTANTS}/base/", "params/"),), fresh="^params/.*/lora_[ab]/"
    )
    return experiment(ADAPTED, start=renamed, **more)


ADAPTED = Classification(model=Lora(SMALL, targets=".*", rank=2, alpha=2.0))


def test_constants_are_not_trained_and_saved_once(base, tmp_path):
    case = low_rank(base, optimizer=Adam(learning_rate=1e-2), train={"params": "bfloat16"})
    before = first_state(case)
    result = lsm.fit(case, tmp_path)
    assert result.step == 4
    run = lsm.load(tmp_path, experiment=case)
    assert_equal(run.model_state[CONSTANTS], before.model_state[CONSTANTS])
    assert_equal(run.model_state[CONSTANTS]["base"], lsm.load(base, experiment=experiment()).params)
    trained = [path for path in flat(before.opt_state) if "Dense" in path]
    assert len(trained) == 12 and all("/lora_" in path for path in trained)
    folders = list((tmp_path / "checkpoints" / "constants").iterdir())
    assert len(folders) == 1
    with pytest.raises(AssertionError):
        assert_equal(run.params, before.params)


@pytest.mark.slow
def test_damaged_or_lost_constants_are_named(base, tmp_path):
    case = low_rank(base)
    lsm.fit(case, tmp_path)
    folder = next((tmp_path / "checkpoints" / "constants").iterdir())
    shutil.rmtree(folder)
    with pytest.raises(CheckpointError, match="constants cannot be read.*every step") as error:
        lsm.load(tmp_path, experiment=case)
    assert "\n" not in str(error.value)
    longer = dataclasses.replace(case, train=Train(steps=6, batch_size=16))
    with pytest.raises(CheckpointError, match="cannot be read"):
        lsm.fit(longer, tmp_path, allow_config_change=True)


def test_constants_that_change_are_refused(base, tmp_path):
    class Drifting(Classification):
        def after_update(self, params, model_state, step):
            base = jax.tree.map(lambda x: x + 1, model_state[CONSTANTS])
            return params, {**model_state, CONSTANTS: base}

    with pytest.raises(ConfigError, match="it changes the collection 'constants'"):
        lsm.fit(experiment(Drifting(model=ADAPTED.model)), tmp_path)


def test_frozen_parameters_have_neither_state_nor_master():
    frozen = Adam(learning_rate=1e-2, ema=0.9, groups=(Group("Dense_0", 0.0),))
    case = experiment(optimizer=frozen, train={"params": "bfloat16"})
    state = first_state(case)
    assert not [path for path in flat(state.opt_state) if "Dense_0" in path]
    assert [path for path in flat(state.opt_state) if "master/Dense_1" in path]


def test_batch_norm_statistics_are_taken_too(tmp_path):
    random = np.random.default_rng(0)
    columns = {
        "image": random.random((32, 8, 8, 1), dtype=np.float32),
        "label": random.integers(0, 10, 32).astype(np.int32),
    }
    case = experiment(Classification(model=CNN(widths=(8,), convs=1)), columns)
    lsm.fit(case, tmp_path)
    run = lsm.load(tmp_path, experiment=case)
    state = first_state(dataclasses.replace(case, start=Start(path=str(tmp_path))))
    assert_equal(state.model_state, run.model_state)
    assert np.abs(state.model_state["batch_stats"]["BatchNorm_0"]["mean"]).max() > 0
