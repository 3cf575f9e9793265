"""Fine-tuning by adapters: started from a run, on eight devices, resumed, merged, loaded."""

import dataclasses
import json

import jax
import numpy as np
import pytest

import lsm
from lsm import Data, Experiment, Mesh, Start, Train
from lsm.adapt import __main__ as command
from lsm.adapt import merge
from lsm.data import Arrays
from lsm.errors import ConfigError
from lsm.models import GPT, MLP, Lora, Transformer
from lsm.models.quantised import dequantise, quantise
from lsm.optim import AdamW
from lsm.params import flat
from lsm.tasks import CONSTANTS, Classification, DirectPreference, LanguageModelling, Task
from lsm.train import build
from lsm.train.start import begin

SMALL = Transformer(layers=2, heads=2, width=8, theta=1e4, norm="rms")
GPT_ = GPT(vocabulary=20, transformer=SMALL, context=16)
LORA = Lora(GPT_, targets="blocks/", rank=2, dropout=0.1)
COLUMNS = {"tokens": np.random.default_rng(0).integers(0, 20, (32, 9)).astype(np.int32)}
PAIRS = {
    name: np.random.default_rng(n).integers(10 * n, 10 * n + 10, (32, 9)).astype(np.int32)
    for n, name in enumerate(("chosen", "rejected"))
}
PAIRS |= {f"{name}_weight": np.ones((32, 8), np.float32) for name in tuple(PAIRS)}


MLP_ = MLP(widths=(64,), outputs=3)
SMALL_LORA = Lora(MLP_, targets=".*", rank=2)
PICTURES = {
    "image": np.random.default_rng(0).normal(size=(32, 64)).astype(np.float32),
    "label": np.arange(32, dtype=np.int32) % 3,
}


def experiment(model, columns=PICTURES, **more):
    """Of a model, or of a task."""
    task = model if isinstance(model, Task) else Classification(model=model)
    return Experiment(
        **{
            "name": "adapted",
            "task": task,
            "data": Data(source=Arrays(train=columns, test=columns)),
            "optimizer": AdamW(learning_rate=1e-2, weight_decay=0.1),
            "train": Train(steps=4, batch_size=16),
            "writers": (),
        }
        | more
    )


def plain(model=MLP_, *columns, **more):
    return experiment(model, *columns, optimizer=AdamW(learning_rate=1e-2), **more)


def assert_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(a), jax.device_get(b))


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """The workdir of a finished run of the plain model."""
    workdir = tmp_path_factory.mktemp("base") / "run"
    lsm.fit(plain(), workdir)
    return workdir


@pytest.fixture(scope="module")
def gpt(tmp_path_factory):
    """Likewise of a language model."""
    workdir = tmp_path_factory.mktemp("gpt") / "run"
    lsm.fit(plain(LanguageModelling(model=GPT_), COLUMNS), workdir)
    return workdir


def start(base, **more):
    rename = (("^constants/(base|reference)/", "params/"),)
    return Start(**{"path": str(base), "rename": rename, "fresh": "^params/"} | more)


@pytest.fixture(scope="module")
def adapted(base, tmp_path_factory):
    """A run of adapters of whole numbers, and its experiment."""
    case = experiment(dataclasses.replace(SMALL_LORA, held="int8"), start=start(base))
    workdir = tmp_path_factory.mktemp("adapted") / "run"
    return workdir, case, lsm.fit(case, workdir)


def first_state(case, devices=None):
    columns = case.data.source.train
    batch = {name: x[:16] for name, x in columns.items()}
    program = build(case, case.horizon(32), batch, devices)
    return begin(program, case.start, case.task, None), program


@pytest.mark.parametrize("held", ["int8", "int4"])
def test_a_start_gives_floats_and_whole_numbers_are_made_of_them(base, held, caplog):
    case = experiment(dataclasses.replace(SMALL_LORA, held=held), start=start(base))
    with caplog.at_level("INFO", "lsm"):
        state, _ = first_state(case)
    found = flat(state.model_state[CONSTANTS]["base"])
    there = flat(lsm.load(base, experiment=plain()).params)
    for path, x in there.items():
        if path.endswith("kernel"):
            whole, scale = quantise(x, held)
            # Three outputs do not pair up to bytes: held as int8.
            assert found[path].dtype == ("int8" if held == "int8" or x.shape[1] == 3 else "uint8")
            np.testing.assert_array_equal(found[path], whole)
            np.testing.assert_array_equal(found[f"{path}_scale"], scale)
            error = np.abs(dequantise(whole, scale) - x).max()
            assert 0 < error <= np.abs(x).max() / {"int8": 127, "int4": 7}[held]
        else:
            np.testing.assert_array_equal(found[path], x)
    assert f"{len(there)} arrays of" in caplog.text


def test_the_base_is_frozen_saved_once_and_not_optimised(adapted, base):
    workdir, case, result = adapted
    before, _ = first_state(case)
    run = lsm.load(workdir, experiment=case)
    assert result.step == run.step == 4
    assert_equal(run.model_state, before.model_state)
    assert all(not np.array_equal(x, y) for x, y in zip(
        jax.tree.leaves(run.params), jax.tree.leaves(before.params), strict=True))  # fmt: skip
    trained = {path for path in flat(before.opt_state) if "Dense" in path}
    assert trained and all(path.endswith(("lora_a/kernel", "lora_b/kernel")) for path in trained)
    assert len(list((workdir / "checkpoints" / "constants").iterdir())) == 1


@pytest.mark.slow
def test_a_run_of_adapters_resumes_to_the_last_bit(adapted, tmp_path):
    _, case, whole = adapted
    half = dataclasses.replace(case, train=dataclasses.replace(case.train, steps=2))
    lsm.fit(half, tmp_path)
    parts = lsm.fit(case, tmp_path, allow_config_change=True)
    assert parts.fingerprint == whole.fingerprint and parts.metrics == whole.metrics


@pytest.mark.slow
@pytest.mark.parametrize("held", ["float32", "int4"])
@pytest.mark.parametrize(
    "mesh",
    [
        Mesh(),
        Mesh(data=2, fsdp=4),
        Mesh(data=2, fsdp=2, tensor=2),
        Mesh(data=2, pipeline=2, tensor=2),
    ],
    ids=["data", "fsdp", "tensor", "pipeline"],
)
@pytest.mark.parametrize("task", ["language", "preference"])
def test_eight_devices_equal_one(task, mesh, held, gpt):
    if task == "preference" and (mesh.pipeline > 1 or held == "int4"):
        pytest.skip("as in language modelling")
    lora = dataclasses.replace(LORA, held=held, dropout=0.0)
    made = LanguageModelling(model=lora) if task == "language" else DirectPreference(model=lora)
    case = experiment(made, COLUMNS if task == "language" else PAIRS, start=start(gpt))

    def trained(case, devices):
        state, program = first_state(case, devices)
        for at in (0, 16):
            batch = {name: x[at : at + 16] for name, x in case.data.source.train.items()}
            state, metrics = program.step(state, jax.device_put(batch, program.batch))
        return jax.device_get((state.params, metrics))

    one = trained(case, jax.devices()[:1])
    many = trained(dataclasses.replace(case, mesh=mesh), jax.devices())
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), many, one)


def test_a_merged_run_is_one_of_the_plain_model(adapted, tmp_path):
    workdir, case, _ = adapted
    assert merge(workdir, tmp_path / "out", experiment=case) == 4
    run, merged = lsm.load(workdir, experiment=case), lsm.load(tmp_path / "out", experiment=plain())
    assert flat(merged.params).keys() == {f"Dense_{i}/{x}" for i in "01" for x in ("kernel", "bias")}  # fmt: skip
    expected, found = (of.predict({"image": PICTURES["image"]}) for of in (run, merged))
    np.testing.assert_allclose(found["probability"], expected["probability"], atol=1e-5)
    record = json.loads((tmp_path / "out/config.json").read_text())
    assert record["task"]["model"]["class"].endswith("MLP") and record["start"] is None
    # Others start from it as from any run.
    state, _ = first_state(plain(start=Start(path=str(tmp_path / "out"))))
    assert_equal(state.params, merged.params)
    with pytest.raises(ConfigError, match="--out: .* holds a run already; give a new folder"):
        merge(workdir, tmp_path / "out", experiment=case)
    with pytest.raises(ConfigError, match="is a run of MLP, which has no adapters"):
        merge(tmp_path / "out", tmp_path / "again", experiment=plain())


@pytest.mark.slow
@pytest.mark.parametrize("model", [LORA, GPT_], ids=["lora", "whole"])
def test_preferences_are_learnt_and_merged(model, gpt, tmp_path):
    task = DirectPreference(model=model, beta=1.0)
    optimizer = AdamW(learning_rate=3e-2)
    begun = start(gpt, fresh="^params/" if model is LORA else None)
    train = Train(steps=20, batch_size=16)
    case = experiment(task, PAIRS, start=begun, optimizer=optimizer, train=train)
    result = lsm.fit(case, tmp_path / "run")
    assert result.metrics["test"]["loss"] < np.log(2) - 0.01
    assert result.metrics["test"]["accuracy"] > 0.6
    run = lsm.load(tmp_path / "run", experiment=case)
    assert run.predict(PAIRS)["chosen_reward"].shape == (32,)
    if model is LORA:
        merge(tmp_path / "run", tmp_path / "out", experiment=case)
        language = LanguageModelling(model=GPT_, tokens="chosen")
        merged = lsm.load(tmp_path / "out", experiment=experiment(language, PAIRS))
        assert merged.step == 20


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--workdir=a", "--out=b"], "no action given; 'merge' is needed"),
        (["merg", "--workdir=a", "--out=b"], "merg given; 'merge' is needed. Did you mean 'merge'"),
        (["merge", "--workdir=a"], "--out"),
        (["merge", "--workdir=a", "--out=b"], "no run in"),
    ],
)
def test_the_command_says_in_one_line_what_it_misses(words, line, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert command.main(words) == 1
    told = capsys.readouterr().err
    assert line in told and told.count("\n") == 1
