"""The optimiser state in host memory, on simulated devices: the same bits, elsewhere."""

import jax
import numpy as np
import pytest

import lsm
from lsm import Checkpoint, Data, Evaluation, Experiment, Mesh, Train
from lsm.data import Arrays
from lsm.durations import Horizon
from lsm.models import MLP
from lsm.optim import AdamW, Group
from lsm.run.checkpoint import Checkpoints
from lsm.tasks import Classification
from lsm.train import build
from lsm.train.program import evaluated

B = 16


def pictures(seed=0, rows=B):
    random = np.random.default_rng(seed)
    return {
        "image": random.integers(0, 256, (rows, 8, 8, 1), dtype=np.uint8),
        "label": random.integers(0, 10, rows, dtype=np.int32),
    }


def experiment(offload=True, params="float32", steps=6, mesh=None, **optimizer):
    columns = {split: pictures(seed, 96) for seed, split in enumerate(("train", "test"))}
    return Experiment(
        name="offload",
        task=Classification(model=MLP(widths=(128,))),
        data=Data(source=Arrays(**columns), test="test"),
        optimizer=AdamW(learning_rate=1e-2, **optimizer),
        train=Train(steps=steps, batch_size=B, params=params),
        evaluation=Evaluation(every=3),
        checkpoint=Checkpoint(every=3, keep=9),
        mesh=Mesh(**mesh or {"data": 2, "fsdp": 4}, offload=offload),
        writers=(),
    )


def program_of(config, devices=8):
    return build(config, Horizon(6, B, 96), pictures(), jax.devices()[:devices])


def assert_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(a), jax.device_get(b))


def assert_in_host_memory(state):
    for leaf in jax.tree.leaves(state.opt_state):
        assert leaf.sharding.memory_kind == ("pinned_host" if leaf.ndim else "device")
    for leaf in jax.tree.leaves((state.params, state.step)):
        assert leaf.sharding.memory_kind == "device"


@pytest.mark.slow
@pytest.mark.parametrize("params", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "optimizer", [{"clip_norm": 1.0}, {"ema": 0.9}, {"groups": (Group("Dense_0", 0.0),)}], ids=str
)
def test_offload_changes_no_bit(optimizer, params):
    results = []
    for offload in (False, True):
        program = program_of(experiment(offload, params, **optimizer))
        state = program.init()
        for seed in range(3):
            batch = jax.device_put(pictures(seed), program.batch)
            state, metrics = program.step(state, batch)
        if offload:
            assert_in_host_memory(state)
        figures = program.evaluate(*evaluated(state), batch, np.int32(0), state.step)
        results.append((state, metrics, figures, program.checksums(state)))
    assert_equal(*results)


def test_every_leaf_may_be_replicated():
    """Those have an empty spec, and go to the host all the same."""
    program = program_of(experiment(mesh={"data": 2}), devices=2)
    assert_in_host_memory(program.init())


def test_checkpoints_are_restored_into_host_memory(tmp_path):
    program = program_of(experiment())
    state, _ = program.step(program.init(), jax.device_put(pictures(), program.batch))
    checkpoints = Checkpoints(tmp_path, checksums=program.checksums)
    checkpoints.save(1, state, {})
    checkpoints.wait()
    restored = checkpoints.restore(program.abstract_state, 1)
    assert_equal(state, restored)
    assert_in_host_memory(restored)
    again, _ = program.step(restored, jax.device_put(pictures(1), program.batch))
    assert int(again.step) == 2
    checkpoints.close()
    plain = program_of(experiment(offload=False))  # and as well into the devices' memory
    checkpoints = Checkpoints(tmp_path, checksums=plain.checksums, read_only=True)
    restored = checkpoints.restore(plain.abstract_state, 1)
    checkpoints.close()
    plain_again, _ = plain.step(restored, jax.device_put(pictures(1), plain.batch))
    assert_equal(again, plain_again)


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"ema": 0.9}, {"params": "bfloat16"}], ids=str)
def test_a_run_with_offload_resumes_and_equals_one_without(tmp_path, options):
    plain = lsm.fit(experiment(offload=False, **options), tmp_path / "plain")
    lsm.fit(experiment(steps=3, **options), tmp_path / "parts")
    parts = lsm.fit(experiment(**options), tmp_path / "parts", allow_config_change=True)
    assert parts.fingerprint == plain.fingerprint
    assert parts.metrics == plain.metrics
