"""Runs that prune: resumed, on eight devices, best steps, rewound to an early checkpoint."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

import lsm
from lsm import Checkpoint, Data, Evaluation, Experiment, Mesh, Start, Train
from lsm.data import Arrays
from lsm.errors import CheckpointError, ConfigError
from lsm.models import GPT, MLP, Transformer
from lsm.optim import SGD, AdamW, FixedMasks, Magnitude, Movement, TwoOfFour, masks_of
from lsm.params import flat
from lsm.tasks import Classification, LanguageModelling
from lsm.train import build
from lsm.train.start import begin
from lsm.writers import Jsonl

RANDOM = np.random.default_rng(0)
PICTURES = {
    "image": RANDOM.normal(size=(48, 16)).astype(np.float32),
    "label": np.arange(48, dtype=np.int32) % 3,
}
TASK = Classification(model=MLP(widths=(16,), outputs=3))
PRUNE = Magnitude(sparsity=0.75, begin=2, end=6, every=2)


def experiment(prune=PRUNE, task=TASK, columns=PICTURES, steps=8, train=None, **more):
    return Experiment(
        **{
            "name": "pruned",
            "task": task,
            "data": Data(
                source=Arrays(train=columns, validation=columns), validation="validation", test=None
            ),
            "optimizer": AdamW(learning_rate=1e-2, ema=0.5, prune=prune),
            "train": Train(**{"steps": steps, "batch_size": 16, "log_every": 1} | (train or {})),
            "evaluation": Evaluation(every=1),
            "checkpoint": Checkpoint(every=1, keep=9),
            "writers": (Jsonl(),),
        }
        | more
    )


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    """A run that is pruned on its way."""
    workdir, case = tmp_path_factory.mktemp("dense") / "run", experiment()
    return workdir, case, lsm.fit(case, workdir)


def zeros(params):
    return {path: np.asarray(x, np.float32) == 0 for path, x in flat(params).items() if "kernel" in path}  # fmt: skip


def test_the_rows_say_how_sparse_it_is_and_only_pruned_steps_are_best(dense):
    workdir, case, result = dense
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    found = {row["step"]: row["sparsity"] for row in rows if "sparsity" in row}
    total, half = 16 * 16 + 16 * 3, int(0.75 * (1 - 0.5**3) * 304) / 304
    assert [found[step] for step in (1, 2, 4, 5, 6, 8)] == [0, 0, half, half, 0.75, 0.75]
    assert result.best_step >= 6
    run = lsm.load(workdir, experiment=case)  # the averaged parameters
    assert sum(zero.sum() for zero in zeros(run.params).values()) == 0.75 * total


@pytest.mark.slow
def test_masks_survive_a_restart_to_the_last_bit(tmp_path):
    case = experiment(train={"params": "bfloat16", "accumulation": 2, "steps_per_execution": 4})
    case = dataclasses.replace(case, evaluation=Evaluation(every=4))
    workdir = tmp_path / "whole"
    whole = lsm.fit(case, workdir)
    assert (
        sum(zero.sum() for zero in zeros(lsm.load(workdir, experiment=case).params).values()) == 228
    )
    for saved in (4, 5):  # where it was pruned, and between
        parts = tmp_path / str(saved)
        shutil.copytree(workdir, parts)
        (parts / "result.json").unlink()
        for step in range(saved + 1, 9):
            shutil.rmtree(parts / "checkpoints" / str(step))
        resumed = lsm.fit(case, parts)
        assert resumed.fingerprint == whole.fingerprint and resumed.metrics == whole.metrics


def trained(case, columns, devices):
    """Masks and parameters after four steps."""
    batches = [{name: x[at : at + 16] for name, x in columns.items()} for at in (0, 16, 32, 0)]
    program = build(case, case.horizon(48), batches[0], devices)
    state = program.init()
    for batch in batches:
        state, _ = program.step(state, jax.device_put(batch, program.batch))
    return jax.device_get((masks_of(state.opt_state), flat(state.params)))


BLOCKS = Transformer(layers=2, heads=2, width=8)
TOKENS = {"tokens": RANDOM.integers(0, 20, (48, 9)).astype(np.int32)}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (Magnitude, {"sparsity": 0.6}),
        (Magnitude, {"sparsity": 0.6, "scope": "layer"}),
        (Movement, {"sparsity": 0.6, "scope": "layer"}),
        (TwoOfFour, {}),
    ],
)
def test_eight_devices_prune_what_one_does(kind, options):
    times = {"begin": 3} if kind is TwoOfFour else {"begin": 2, "end": 4, "every": 1}
    task = LanguageModelling(model=GPT(vocabulary=20, transformer=BLOCKS, context=8))
    optimizer = SGD(learning_rate=1e-3, prune=kind(**options, **times))
    case = experiment(task=task, columns=TOKENS, optimizer=optimizer)
    many = dataclasses.replace(case, mesh=Mesh(data=2, fsdp=4))
    (one, params), (masks, _) = (
        trained(case, TOKENS, jax.devices()[:1]),
        trained(many, TOKENS, jax.devices()),
    )
    assert set(one) == {f"blocks/{name}/kernel" for name in ("qkv", "out", "up", "down")}
    share = 0.5 if kind is TwoOfFour else 0.6
    weights, gone = (
        sum(of(mask) for mask in one.values()) for of in (np.size, lambda m: (~m).sum())
    )
    assert share * weights - 8 < gone <= share * weights  # each of eight layers is rounded down
    for name, mask in one.items():
        np.testing.assert_array_equal(masks[name], mask)
        np.testing.assert_array_equal(params[name] == 0, ~mask)


def rewound(workdir, **more):
    start = Start(path=str(workdir / "checkpoints/1"), masks=str(workdir))
    return experiment(FixedMasks(), **{"start": start} | more)


def first_state(case):
    program = build(case, case.horizon(48), {n: x[:16] for n, x in PICTURES.items()})
    return begin(program, case.start, case.task, None)


def test_rewinding_takes_early_weights_and_the_masks_of_the_end(dense):
    workdir, before, _ = dense
    case = rewound(workdir)
    state, early = first_state(case), flat(lsm.load(workdir, experiment=before, step=1).params)
    end = zeros(lsm.load(workdir, experiment=before).params)
    for path, x in flat(state.params).items():
        zero = end.get(path, np.zeros(x.shape, bool))
        np.testing.assert_array_equal(x, np.where(zero, 0, np.asarray(early[path], np.float32)))
    masks = masks_of(state.opt_state)
    assert masks.keys() == end.keys()
    for path, mask in masks.items():
        np.testing.assert_array_equal(mask, ~end[path])


@pytest.mark.slow
def test_a_ticket_trains_and_keeps_its_masks(dense, tmp_path):
    workdir, before, _ = dense
    lsm.fit(rewound(workdir, steps=4), tmp_path / "run")
    end = zeros(lsm.load(workdir, experiment=before).params)
    run = lsm.load(tmp_path / "run", experiment=rewound(workdir, steps=4))
    for path, zero in zeros(run.params).items():
        np.testing.assert_array_equal(zero, end[path])


def test_a_head_that_starts_at_0_is_not_taken_for_pruned(dense):
    """Masks are not made of the first weights: a fresh kernel of zeros would never learn."""
    workdir, _, _ = dense
    start = Start(path=str(workdir), fresh="Dense_1/", masks=str(workdir))
    prune = FixedMasks(pattern="Dense_0/kernel")
    state = first_state(experiment(prune, start=start))
    assert list(masks_of(state.opt_state)) == ["Dense_0/kernel"]
    assert (np.asarray(state.params["Dense_1"]["kernel"]) != 0).all()


def test_what_masks_need_is_one_line(dense, tmp_path):
    workdir, _, _ = dense
    with pytest.raises(ConfigError, match="FixedMasks: it prunes what Start.masks says, and there"):
        lsm.fit(experiment(FixedMasks()), tmp_path / "run")
    with pytest.raises(ConfigError, match="Start.masks: .* given, but nothing is pruned"):
        case = experiment(None, start=Start(path=str(workdir), masks=str(workdir)))
        lsm.fit(case, tmp_path / "run")
    start = Start(path=str(workdir), masks=str(tmp_path / "nowhere"))
    with pytest.raises(CheckpointError, match="^start.masks: .*nowhere is not there"):
        first_state(experiment(FixedMasks(), start=start))
    wide = Classification(model=MLP(widths=(24,), outputs=3))
    start = Start(path=str(workdir), fresh=".*", masks=str(workdir))
    with pytest.raises(
        CheckpointError, match="start.masks: .*another shape, params/Dense_0/kernel"
    ):
        first_state(experiment(FixedMasks(), task=wide, start=start))
