"""Runs that become ones of whole numbers: made, loaded, evaluated, trained for, on eight devices."""

import dataclasses
import json

import flax.linen as nn
import jax
import numpy as np
import pytest

import lsm
from experiments.configs.digits import cnn
from lsm import Data, Experiment, Mesh, Start, Train
from lsm.compress import Quantise, quantise
from lsm.compress.quantise import QUANTISED
from lsm.data import Arrays
from lsm.errors import CheckpointError, ConfigError, MeshError
from lsm.export import card
from lsm.generate import GREEDY, Draws
from lsm.models import GPT, MLP, Lora, QuantisationAware, Quantised, Transformer
from lsm.optim import SGD, AdamW
from lsm.params import flat
from lsm.tasks import Classification, LanguageModelling
from lsm.train.derived import write_run
from lsm.train.trainer import train_batches

SLOW = pytest.mark.slow
RNG = np.random.default_rng(0)
PICTURES = {
    "image": RNG.normal(size=(64, 32)).astype(np.float32),
    "label": np.arange(64, dtype=np.int32) % 4,
}
TOKENS = {"tokens": RNG.integers(0, 20, (32, 9)).astype(np.int32)}
MLP_ = MLP(widths=(64,), outputs=4)
BLOCKS = Transformer(layers=2, heads=2, width=16, theta=1e4, norm="rms")
GPT_ = GPT(vocabulary=20, transformer=BLOCKS, context=16)


def experiment(task, columns=PICTURES, **more):
    task = Classification(model=task) if not isinstance(task, LanguageModelling) else task
    return Experiment(
        **{
            "name": "quantised",
            "task": task,
            "data": Data(source=Arrays(train=columns, test=columns)),
            "optimizer": AdamW(learning_rate=1e-2),
            "train": Train(steps=8, batch_size=16),
            "writers": (),
        }
        | more
    )


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A run of a plain model, and its experiment."""
    workdir, case = tmp_path_factory.mktemp("base") / "run", experiment(MLP_)
    lsm.fit(case, workdir)
    return workdir, case


def of(case, model, **more):
    return dataclasses.replace(case, task=dataclasses.replace(case.task, model=model), **more)


def made(base, out, **options):
    """What `quantise` makes of a run: its experiment, loaded."""
    workdir, case = base
    quantise(workdir, out, experiment=case, **options)
    names = ("weights", "activations", "kept")
    model = Quantised(case.task.model, **{n: options[n] for n in names if n in options})
    # As is written: without what the optimiser said of kernels.
    here = of(case, model, optimizer=SGD(learning_rate=1e-3))
    return lsm.load(out, experiment=here)


def test_a_run_becomes_a_quarter_of_its_size_and_says_the_same(base, tmp_path):
    plain, run = lsm.load(base[0], experiment=base[1]), made(base, tmp_path / "out")
    assert run.step == 8
    held = flat(run.model_state["constants"]["quantised"])
    for path, x in flat(plain.params).items():
        if path.endswith("kernel"):
            assert held[path].dtype == "int8" and held[path].nbytes * 4 == x.nbytes
            error = np.abs(held[path] * held[f"{path}_scale"] - x)
            assert 0 < error.max() <= np.abs(x).max() / 254 * 1.001
        else:
            np.testing.assert_array_equal(flat(run.params)[path], x)
    given = {"image": PICTURES["image"]}
    found, expected = run.predict(given)["probability"], plain.predict(given)["probability"]
    assert 0 < np.abs(found - expected).max() < 0.02
    record = json.loads((tmp_path / "out" / QUANTISED).read_text())
    assert record["weights"] == "int8" and record["source"] == str(base[0])
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["task"]["model"]["class"].endswith("Quantised") and config["start"] is None
    # Evaluated as any run, without an optimiser's state.
    (step, figures), case = lsm.evaluate_run(run.experiment, tmp_path / "out"), base[1]
    assert step == 8
    assert figures["test"]["loss"] == pytest.approx(
        lsm.evaluate_run(case, base[0])[1]["test"]["loss"], abs=0.02
    )


def test_calibrated_inputs_are_the_mean_of_the_largest_of_batches(base, tmp_path, caplog):
    pytest.importorskip("qwix", reason="qwix makes products of whole numbers")
    workdir, case = base
    run = made(base, tmp_path / "out", activations="calibrated", calibration=4)
    plain = flat(lsm.load(workdir, experiment=case).params)
    largest = [], []
    for number in range(4):
        images = train_batches(case, None).batch_at(number)["image"]
        largest[0].append(np.abs(images).max())
        hidden = np.maximum(images @ plain["Dense_0/kernel"] + plain["Dense_0/bias"], 0)
        largest[1].append(hidden.max())
    held = flat(run.model_state["constants"]["quantised"])
    for layer, found in enumerate(largest):
        np.testing.assert_allclose(
            held[f"Dense_{layer}/input_largest"], [np.mean(found)], rtol=1e-5
        )
    record = json.loads((tmp_path / "out" / QUANTISED).read_text())
    assert record["calibration"] == {"split": "train", "batches": 4, "batch_size": 16, "seed": 0}
    with pytest.raises(ConfigError, match="calibration: 0 given; allowed: 1 batch or more"):
        quantise(workdir, tmp_path / "again", experiment=case, calibration=0)
    assert "several calls" not in caplog.text


class Twice(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        layer = nn.Dense(32)
        return nn.Dense(4)(layer(layer(x)))


@pytest.mark.slow
def test_a_layer_that_is_called_several_times_is_told_of(tmp_path, caplog):
    pytest.importorskip("qwix", reason="qwix makes products of whole numbers")
    case = experiment(Twice())
    lsm.fit(case, tmp_path / "run")
    quantise(tmp_path / "run", tmp_path / "out", activations="calibrated", experiment=case)
    assert "several calls a batch read the layers of Dense_0/kernel;" in caplog.text


def test_a_run_trained_for_it_becomes_what_it_was(base, tmp_path):
    """From the weights of a run, and as was trained: nothing has to be said again."""
    workdir, case = base
    aware = QuantisationAware(MLP_, weights="int4")
    trained = of(case, aware, start=Start(path=str(workdir)))
    lsm.fit(trained, tmp_path / "run")
    quantise(tmp_path / "run", tmp_path / "out", experiment=trained)
    assert Quantise().weights is None  # so does a link
    out = of(case, Quantised(MLP_, weights="int4"))
    given = {"image": PICTURES["image"]}
    loaded = lsm.load(tmp_path / "out", experiment=out)
    found = loaded.predict(given)
    floats = lsm.load(workdir, experiment=case).params
    assert card._parameters(loaded) == sum(x.size for x in jax.tree.leaves(floats))
    expected = lsm.load(tmp_path / "run", experiment=trained).predict(given)
    np.testing.assert_allclose(found["probability"], expected["probability"], rtol=1e-4, atol=1e-6)


def test_what_is_not_to_be_quantised_is_refused_in_a_line(base, tmp_path):
    workdir, case = base
    out = tmp_path / "out"
    made(base, out)
    faults = [
        (out, of(case, Quantised(MLP_)), {}, "a model that is quantised already; give the run"),
        (workdir, case, {"kept": "Dens_"}, "Quantised.kept: 'Dens_' matches no parameter"),
        (workdir, case, {"weights": "int2"}, "Quantised.weights: 'int2'"),
    ]
    for place, of_it, options, line in faults:
        with pytest.raises(ConfigError, match=line):
            quantise(place, tmp_path / "other", experiment=of_it, **options)
    with pytest.raises(ConfigError, match="holds a run already; give a new folder"):
        quantise(workdir, out, experiment=case)
    (out / "config.json").unlink()  # which is written last
    with pytest.raises(ConfigError, match="a part of a run, such as an interruption leaves; remov"):
        quantise(workdir, out, experiment=case)


@pytest.mark.slow
@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_a_start_gives_floats_and_whole_numbers_are_made_of_them(weights, base, tmp_path):
    """And what is float is trained: biases."""
    workdir, case = base
    start = Start(path=str(workdir), rename=(("^constants/quantised/", "params/"),))
    optimizer = SGD(learning_rate=0.1)
    begun = of(case, Quantised(MLP_, weights=weights), start=start, optimizer=optimizer)
    lsm.fit(begun, tmp_path / "run")
    found = lsm.load(tmp_path / "run", experiment=begun)
    expected = made(base, tmp_path / "out", weights=weights)
    jax.tree.map(np.testing.assert_array_equal, found.model_state, expected.model_state)
    for path, x in flat(expected.params).items():
        assert path.endswith("bias") and not np.array_equal(flat(found.params)[path], x)
    # Of a run that has whole numbers already they are taken as they are.
    again = of(begun, begun.task.model, start=Start(path=str(tmp_path / "run")))
    lsm.fit(again, tmp_path / "again")
    found = lsm.load(tmp_path / "again", experiment=again)
    jax.tree.map(np.testing.assert_array_equal, found.model_state, expected.model_state)


@pytest.mark.slow
def test_adapters_are_merged_first(base, tmp_path):
    case = of(base[1], Lora(MLP_, targets=".*", rank=2))
    lsm.fit(case, tmp_path / "run")
    with pytest.raises(ConfigError, match=r"is a run of adapters; merge them first"):
        quantise(tmp_path / "run", tmp_path / "out", experiment=case)


@pytest.mark.slow
def test_what_is_not_finite_is_named(base, tmp_path):
    workdir, case = base
    run = lsm.load(workdir, experiment=case)
    params = dict(run.params)
    params["Dense_1"] = {
        **params["Dense_1"],
        "kernel": params["Dense_1"]["kernel"].at[0, 0].set(np.nan),
    }
    write_run(workdir, tmp_path / "run", case, 8, params, {})
    with pytest.raises(CheckpointError, match="'Dense_1/kernel' of step 8 is not finite"):
        quantise(tmp_path / "run", tmp_path / "out", experiment=case)


@pytest.mark.slow
@pytest.mark.parametrize(
    "mesh",
    [Mesh(), Mesh(data=1, fsdp=8), Mesh(data=2, fsdp=2, tensor=2), Mesh(data=4, pipeline=2)],
    ids=["data", "fsdp", "tensor", "pipeline"],
)
@pytest.mark.parametrize("options", [{"weights": "int4"}, {"activations": "calibrated"}], ids=str)
def test_eight_devices_equal_one(options, mesh, tmp_path):
    case = experiment(LanguageModelling(model=GPT_), TOKENS)
    lsm.fit(case, tmp_path / "run")
    model = Quantised(GPT_, **options)
    found = {}
    if mesh.pipeline > 1 and "activations" in options:
        with pytest.raises(MeshError, match="mesh.pipeline=2 given, but calibration needs 1"):
            quantise(
                tmp_path / "run",
                tmp_path,
                experiment=dataclasses.replace(case, mesh=mesh),
                **options,
            )
        return
    for name, laid, devices in (("one", Mesh(), jax.devices()[:1]), ("many", mesh, None)):
        here = dataclasses.replace(case, mesh=laid)
        out = tmp_path / name
        quantise(tmp_path / "run", out, experiment=here, devices=devices, **options)
        run = lsm.load(out, experiment=of(here, model), devices=devices)
        found[name] = run.predict({"tokens": TOKENS["tokens"]})
    for name, x in found["one"].items():
        np.testing.assert_allclose(found["many"][name], x, rtol=1e-3, atol=1e-4)


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A trained network of digits (experiments/configs/digits/cnn.py), for half as long."""
    case = cnn.get_config()
    case = dataclasses.replace(case, train=dataclasses.replace(case.train, epochs=10), writers=())
    workdir = tmp_path_factory.mktemp("digits") / "run"
    return workdir, case, lsm.fit(case, workdir).metrics["test"]["accuracy"]


@pytest.mark.slow
@pytest.mark.parametrize("weights", ["int8", "int4"])
@pytest.mark.parametrize("activations", [None, "dynamic", "calibrated"])
def test_a_convolutional_network_loses_under_half_a_point(weights, activations, digits, tmp_path):
    workdir, case, accuracy = digits
    run = made((workdir, case), tmp_path, weights=weights, activations=activations)
    _, figures = lsm.evaluate_run(run.experiment, tmp_path)
    assert figures["test"]["accuracy"] > accuracy - (0.005 if weights == "int8" else 0.02)


@pytest.mark.slow
def test_a_language_model_of_whole_numbers_writes(tmp_path):
    case = experiment(LanguageModelling(model=GPT_), TOKENS)
    lsm.fit(case, tmp_path / "run")
    quantise(tmp_path / "run", tmp_path / "out", experiment=case)
    run = lsm.load(tmp_path / "out", experiment=of(case, Quantised(GPT_)))
    prompts = [TOKENS["tokens"][0, :5], TOKENS["tokens"][1, :3]]
    state, drawn = run.decoder.start(prompts, 4, Draws.of([GREEDY] * 2, [0, 0]))
    _, then = run.decoder.step(state, drawn)
    for row, prompt in enumerate(prompts):  # as all at once
        text = np.append(prompt, drawn.token_B[row])[None]
        logits = run.experiment.task.model.apply(
            {"params": run.params, **run.model_state}, text.astype(np.int32)
        )
        assert then.token_B[row] == logits[0, -1].argmax()
