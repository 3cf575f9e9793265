"""A retraining that is killed at each line of its journal ends as one that is not."""

import contextlib
import json
import os
import pathlib
import subprocess
import threading

import pytest
import retraining

from launch.retrain.cycle import REJECTED, STEPS
from launch.retrain.journal import Journal
from launch.serve.models import CURRENT, first
from lsm.export.artefact import Artefact

pytestmark = pytest.mark.slow


def ended(mode, folder, *more):
    """Runs the driver to the end; returns how many times it was killed."""
    env = os.environ | {"PYTHONPATH": str(retraining.ROOT), "JAX_NUM_CPU_DEVICES": "1"}
    done = subprocess.run(
        retraining.command(mode, folder, *more),
        env=env, capture_output=True, text=True, timeout=240, cwd=retraining.ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return int(done.stdout.split()[-1])


def lines(folder):
    return [
        (r["cycle"], r["step"], r["state"]) for r in Journal(folder / "work/journal.jsonl").records
    ]


def state(folder):
    """All that may not depend on kills."""
    records = Journal(folder / "work/journal.jsonl").records
    models = folder / "digits"
    return {
        "lines": lines(folder),
        "parameters": [r["parameters"] for r in records if "parameters" in r],
        "data": [r["data"] for r in records if r["step"] == "start"],
        "passed": [r["passed"] for r in records if "passed" in r],
        "verdicts": [r["verdict"] for r in records if "verdict" in r],
        "models": sorted(p.name for p in models.iterdir()),
        "rejected": sorted(p.name for p in models.glob(f"{REJECTED}/*")),
        "current": os.readlink(models / CURRENT),
        "incoming": sorted(p.relative_to(folder).as_posix() for p in (folder / "incoming").rglob("*")),
    }  # fmt: skip


def test_files_alone(tmp_path):
    found, kills = {}, {}
    for mode in ("never", "before", "after"):
        folder = tmp_path / mode
        retraining.prepared(folder)
        kills[mode] = ended(mode, folder)
        (folder / "incoming/b.npz").write_bytes(b"")
        retraining.digits(folder / "incoming/b.npz", 600, 1000)
        kills[mode] += ended(mode, folder)
        found[mode] = state(folder)
    one = found["never"]
    assert found["before"] == found["after"] == one
    # Each line of the journal was a place to be killed at; the last ones have none after them.
    assert kills == {"never": 0, "before": len(one["lines"]) - 2, "after": len(one["lines"])}
    assert len(set(one["lines"])) == len(one["lines"])  # nothing was done twice
    steps = [step for _, step, state in one["lines"] if state == "done"]
    alone = [step for step in STEPS if step not in ("offer", "canary")]
    assert steps == ["take", "set aside", *alone, "take", *alone]
    assert one["current"] == "2" and one["models"] == ["1", "2", CURRENT]
    assert one["verdicts"] == ["serves", "serves"]
    assert one["incoming"][-2:] == ["incoming/damaged", "incoming/damaged/torn.npz"]
    for number in "12":
        Artefact.open(tmp_path / "before/digits" / number)
    assert first(tmp_path / "before/digits")[0] == "2"
    config = json.loads((tmp_path / "never/work/cycles/2/run/config.json").read_text())
    assert config["start"]["path"].endswith("cycles/1/run")  # it went on from what served


def test_what_fails_its_gates_is_published_nowhere_and_not_tried_again(tmp_path):
    retraining.prepared(tmp_path)
    impossible = "--config.gates.0.least=1.1"
    assert ended("never", tmp_path, impossible) == 0
    assert not (tmp_path / "digits").exists()
    [end] = Journal(tmp_path / "work/journal.jsonl").found("end")
    assert end["verdict"] == "rejected by the gates"
    before = lines(tmp_path)
    ended("never", tmp_path, impossible)
    assert lines(tmp_path) == before


@contextlib.contextmanager
def asked(server, stop):
    """Requests without a version, one after the other, until the block ends."""
    row = {"name": "image", "datatype": "UINT8", "shape": [1, 8, 8, 1], "data": [0] * 64}
    statuses = []

    def ask():
        while not stop.wait(0.01):
            statuses.append(server.json("POST", "/v2/models/digits/infer", {"inputs": [row]})[0])

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield statuses
    finally:
        stop.set()
        thread.join()


TRIALS = {"serves": (), "withdrawn after its trial": ("--config.canary.latency_at_most=1e-9",)}


@pytest.mark.parametrize("verdict", TRIALS)
def test_with_a_server(tmp_path, verdict):
    serving = pytest.importorskip("tests.launch.serve.serving", reason="the extra `serve`")
    from launch.serve import keys, models

    retraining.prepared(tmp_path)
    ended("never", tmp_path)
    retraining.digits(tmp_path / "incoming/b.npz", 600, 1000)
    with serving.serving(tmp_path, {"digits": models.load}) as server:
        secret, entry = keys.new_key("retrain", list(keys.Scope), None, None)
        file = pathlib.Path(tmp_path / "keys.json")
        keys.write(file, [*keys.read(file), entry])
        (tmp_path / "retrain.key").write_text(secret)
        flags = [
            f"--server=http://127.0.0.1:{server.port}",
            f"--key_file={tmp_path / 'retrain.key'}",
            "--config.canary.requests=5",
            "--config.canary.share=0.3",
            "--config.canary.latency_at_most=1000",
            "--config.canary.drift_at_most=1000",
        ]
        with asked(server, threading.Event()) as statuses:
            kills = ended("before", tmp_path, *flags, *TRIALS[verdict])
        index = server.json("POST", "/v2/repository/index", key="admin")[1]
    found = state(tmp_path)
    second = [line for line in found["lines"] if line[0] == 2]
    assert len(second) == len(set(second)) == kills + 1
    assert len(statuses) > 20 and set(statuses) == {200}  # nobody noticed
    assert found["verdicts"] == ["serves", verdict]
    served = "2" if verdict == "serves" else "1"
    assert [(v["version"], v["share"]) for v in index] == [(served, 1)]
    assert found["current"] == served
    steps = [step for _, step, state in second if state == "done"]
    last = "promote" if verdict == "serves" else "withdraw"
    assert steps == ["take", *(last if step == "promote" else step for step in STEPS)]
    assert found["rejected"] == ([] if verdict == "serves" else ["2"])
