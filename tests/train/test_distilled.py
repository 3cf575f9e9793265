"""A run of distillation: its teacher is read, not saved; what is loaded of it is the student."""

import dataclasses
import shutil

import jax
import numpy as np
import pytest

import lsm
from lsm import Data, Experiment, Start, Train
from lsm.data import Arrays
from lsm.errors import CheckpointError
from lsm.interop import open_model, save_model
from lsm.models import MLP
from lsm.models.families import llama
from lsm.optim import Adam
from lsm.params import flat
from lsm.tasks import Classification, Distillation, LanguageModelling, Match, Teacher
from lsm.train import build
from lsm.train.start import begin
from lsm.train.start import teacher as teacher_arrays

RANDOM = np.random.default_rng(0)
COLUMNS = {"image": RANDOM.normal(size=(64, 6)).astype(np.float32)}
COLUMNS["label"] = (COLUMNS["image"][:, :3].argmax(1)).astype(np.int32)
BIG, SMALL = (Classification(model=MLP(widths=(width,), outputs=3)) for width in (16, 4))


def experiment(task, steps=6, **more):
    return Experiment(
        name="distilled",
        task=task,
        data=Data(source=Arrays(train=COLUMNS, test=COLUMNS)),
        optimizer=Adam(learning_rate=1e-2),
        train=Train(steps=steps, batch_size=32),
        writers=(),
        **more,
    )


def taught(path, **more):
    teacher = Teacher(task=BIG, path=str(path))
    return Distillation(
        student=SMALL, teacher=teacher, features=(Match("Dense_0", "Dense_0"),), **more
    )


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """The workdir of a finished run of the teacher."""
    workdir = tmp_path_factory.mktemp("base") / "run"
    lsm.fit(experiment(BIG, 60), workdir)
    return workdir


@pytest.fixture(scope="module")
def distilled(base, tmp_path_factory):
    """A run of the student, its experiment, and its result."""
    case = experiment(taught(base))
    workdir = tmp_path_factory.mktemp("distilled") / "run"
    return workdir, case, lsm.fit(case, workdir)


def first_state(case):
    program = build(case, case.horizon(64), {name: x[:32] for name, x in COLUMNS.items()})
    return begin(program, case.start, case.task, None)


def assert_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(a), jax.device_get(b))


def test_a_run_begins_with_its_teacher_which_the_optimiser_does_not_see(base):
    state, there = first_state(experiment(taught(base))), lsm.load(base, experiment=experiment(BIG, 60))  # fmt: skip
    assert_equal(state.model_state["constants"]["teacher"]["params"], there.params)
    moments = [path for path in flat(state.opt_state) if "Dense" in path or "projections" in path]
    assert moments and not any("teacher" in path for path in flat(state.opt_state))
    assert not any(x.shape in ((6, 16), (16, 3)) for x in jax.tree.leaves(state.opt_state))


@pytest.mark.slow
def test_a_student_may_begin_with_weights_of_its_own(base, tmp_path):
    small = experiment(SMALL, 2)
    lsm.fit(small, tmp_path)
    state = first_state(experiment(taught(base), start=Start(path=str(tmp_path))))
    own = lsm.load(tmp_path, experiment=small).params
    assert_equal({name: state.params[name] for name in own}, own)
    assert_equal(
        state.model_state["constants"]["teacher"]["params"],
        lsm.load(base, experiment=experiment(BIG, 60)).params,
    )


def test_what_is_saved_and_loaded_is_the_student_alone(distilled, base):
    workdir, case, result = distilled
    assert not (workdir / "checkpoints/constants").exists()
    hidden = workdir.with_name("base_is_away")
    shutil.move(base, hidden)  # nothing of all this needs the teacher
    try:
        run = lsm.load(workdir, experiment=case)
        assert run.experiment.task == SMALL and run.model_state == {}
        assert {path: x.shape for path, x in flat(run.params).items()} == {
            "Dense_0/kernel": (6, 4),
            "Dense_0/bias": (4,),
            "Dense_1/kernel": (4, 3),
            "Dense_1/bias": (3,),
        }
        assert run.predict(COLUMNS["image"])["probability"].shape == (64, 3)
        step, figures = lsm.evaluate_run(case, workdir)
        assert (step, figures["test"]) == (6, pytest.approx(result.metrics["test"], rel=1e-5))
        assert figures["test"].keys() == {"loss", "accuracy"}
        lsm.predict_run(case, workdir)
        # And others begin with it.
        begun = first_state(experiment(SMALL, start=Start(path=str(workdir))))
        assert_equal(begun.params, run.params)
    finally:
        shutil.move(hidden, base)


@pytest.mark.slow
def test_a_run_goes_on_with_the_teacher_it_had_to_the_last_bit(distilled, base, tmp_path):
    _, case, whole = distilled
    lsm.fit(dataclasses.replace(case, train=Train(steps=3, batch_size=32)), tmp_path / "run")
    again = {"allow_config_change": True}
    moved = tmp_path / "teacher"
    gone = experiment(taught(moved))
    with pytest.raises(CheckpointError, match=r"task.teacher.path: .*teacher is not there. A work"):
        lsm.fit(gone, tmp_path / "run", **again)
    # Of another seed, in the place of the first.
    other = experiment(BIG, 2)
    lsm.fit(dataclasses.replace(other, train=Train(steps=2, batch_size=32, seed=1)), moved)
    with pytest.raises(
        CheckpointError, match=r"task.teacher: it has changed since step 3 of .*'par"
    ):
        lsm.fit(gone, tmp_path / "run", **again)
    parts = lsm.fit(case, tmp_path / "run", **again)
    assert parts.fingerprint == whole.fingerprint and parts.metrics == whole.metrics


def test_a_teacher_may_be_a_published_folder(tmp_path):
    sizes = {"vocabulary": 20, "heads": 2, "kv_heads": 1, "hidden": 16, "context": 8}
    large, small = (llama(layers=n, width=8, **sizes) for n in (2, 1))
    tokens = {"tokens": RANDOM.integers(0, 20, (32, 9)).astype(np.int32)}
    variables = jax.jit(large.init)(jax.random.key(0), tokens["tokens"][:, :-1])
    save_model(large, variables, tmp_path / "folder")
    published = open_model(tmp_path / "folder")
    teacher = Teacher(
        task=LanguageModelling(model=published.model),
        path=str(tmp_path / "folder"),
        names=published.names,
    )
    task = Distillation(student=LanguageModelling(model=small), teacher=teacher)
    case = dataclasses.replace(experiment(task), data=Data(source=Arrays(train=tokens)))
    program = build(case, case.horizon(32), tokens)
    found = teacher_arrays(program, task)
    there = {f"constants/teacher/{path}": x for path, x in flat(dict(variables)).items()}
    assert found.keys() == there.keys()
    for path, x in there.items():
        np.testing.assert_array_equal(found[path], x)


def test_a_teacher_of_another_model_is_one_line(base):
    wide = Classification(model=MLP(widths=(8,), outputs=3))
    task = dataclasses.replace(taught(base), teacher=Teacher(task=wide, path=str(base)))
    line = r"task.teacher: .* does not fit this model; of another shape or kind: .*Teacher.names"
    with pytest.raises(CheckpointError, match=line):
        first_state(experiment(task))
