"""Real processes, really killed: what a run leaves behind and how it goes on."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "experiments.digits"]
SMALL = [
    "--config.train.steps=150",
    "--config.checkpoint.every=20",
    "--config.evaluation.every=50",
    "--config.task.model.dropout=0.2",
    "--config.data.augment=()",
]
ENVIRONMENT = os.environ | {"JAX_NUM_CPU_DEVICES": "1", "JAX_PLATFORMS": "cpu"}


def start(workdir, *extra, **options):
    return subprocess.Popen(
        [sys.executable, "-m", "experiments.digits", f"--workdir={workdir}", *SMALL, *extra],
        cwd=ROOT,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def run(workdir, *extra, **options):
    process = start(workdir, *extra, **options)
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def rows(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def result(workdir):
    return json.loads((workdir / "result.json").read_text())


def wait_for_step(process, step):
    for line in process.stdout:
        if line.startswith("step ") and int(line.split()[1].split("/")[0]) >= step:
            return
    pytest.fail(f"the run ended before step {step}: {process.stderr.read()}")


def assert_same_run(one, other):
    a, b = result(one), result(other)
    assert a["fingerprint"] == b["fingerprint"]
    assert a["metrics"] == b["metrics"]
    speed = {"examples_per_sec", "steps_per_sec", "input_wait", "tflops_per_sec_per_device"}
    clean = [
        [{k: v for k, v in r.items() if k not in speed} for r in rows(w) if r["split"] != "goodput"]
        for w in (one, other)
    ]
    assert clean[0] == clean[1]


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """An uninterrupted run."""
    workdir = tmp_path_factory.mktemp("straight")
    code, out, err = run(workdir)
    assert code == 0, err
    assert out.splitlines()[-1].startswith("digits: completed at step 150, ")
    return workdir


def test_the_same_command_gives_the_same_bits(straight, tmp_path):
    assert run(tmp_path)[0] == 0
    assert_same_run(straight, tmp_path)


def test_killed_at_random_steps_and_restarted(straight, tmp_path):
    random = np.random.default_rng(int.from_bytes(os.urandom(4)))
    for step in sorted(random.choice([20, 40, 60, 80, 100, 120], 2, replace=False)):
        process = start(tmp_path)
        wait_for_step(process, step)
        time.sleep(random.random() * 0.05)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert run(tmp_path)[0] == 0
    assert_same_run(straight, tmp_path)


def test_sigterm_saves_and_exits_cleanly(straight, tmp_path):
    process = start(tmp_path)
    wait_for_step(process, 40)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    stopped = int(out.splitlines()[-1].split("interrupted at step ")[1].split(",")[0])
    assert (tmp_path / "checkpoints" / str(stopped)).is_dir()
    assert not (tmp_path / "result.json").exists()
    assert run(tmp_path)[0] == 0
    assert result(tmp_path)["fingerprint"] == result(straight)["fingerprint"]


def test_a_finished_run_is_left_as_it_is(straight, tmp_path):
    shutil.copytree(straight, tmp_path / "run")
    assert run(tmp_path / "run")[0] == 0
    assert_same_run(straight, tmp_path / "run")


def test_eval_mode_repeats_the_figures(straight):
    code, out, err = run(straight, "--mode=eval")
    assert code == 0, err
    best = result(straight)["best_step"]
    accuracy = next(
        r["accuracy"] for r in rows(straight) if r["step"] == best and r["split"] == "validation"
    )
    assert f"step {best}, validation accuracy {accuracy:.4f}" in out


def assert_one_line(code, err, *parts):
    lines = err.strip().splitlines()
    assert code == 1 and len(lines) == 1, err
    for part in ("error: ", *parts):
        assert part in lines[0]


def test_another_config_is_refused_with_its_differences(straight, tmp_path):
    shutil.copytree(straight, tmp_path / "run")
    code, _, err = run(tmp_path / "run", "--config.optimizer.learning_rate=0.5")
    assert_one_line(code, err, "optimizer.learning_rate: 0.003 -> 0.5", "--allow_config_change")
    kept = json.loads((tmp_path / "run/config.json").read_text())
    assert kept["optimizer"]["learning_rate"] == 0.003


def test_a_checkpoint_of_another_model_is_refused(straight, tmp_path):
    shutil.copytree(straight, tmp_path / "run")
    wider = "--config.task.model.widths=(32,48)"
    code, _, err = run(tmp_path / "run", wider, "--allow_config_change")
    assert_one_line(code, err, "is of another model", "(64,)", "(48,)")


def test_a_truncated_checkpoint_is_refused_and_the_one_before_it_serves(straight, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(straight, workdir)
    (workdir / "result.json").unlink()
    last = workdir / "checkpoints/150"
    for path in (p for p in last.rglob("*") if p.is_file() and p.parent.name == "d"):
        os.truncate(path, path.stat().st_size // 2)
    code, _, err = run(workdir)
    assert_one_line(code, err, str(last), "cannot be read", "continue from step 140")
    shutil.rmtree(last)
    assert run(workdir)[0] == 0
    assert_same_run(straight, workdir)


def test_a_flipped_bit_is_found(straight, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(straight, workdir)
    (workdir / "result.json").unlink()  # with it the run is done, and reads no checkpoint
    files = (workdir / "checkpoints/150/state").rglob("ocdbt.process_0/d/*")
    largest = max(files, key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 0x10
    largest.write_bytes(content)
    code, _, err = run(workdir)
    assert_one_line(code, err, "checkpoints/150 cannot be read", "continue from step 140")
    assert not (workdir / "result.json").exists()


def test_two_runs_in_one_workdir_are_refused(tmp_path):
    long = "--config.train.steps=100_000"
    first = start(tmp_path, long)
    wait_for_step(first, 20)
    code, _, err = run(tmp_path, long)
    first.send_signal(signal.SIGTERM)
    out, first_err = first.communicate(timeout=120)
    assert_one_line(code, err, "another run is in progress")
    assert first.returncode == 0 and "interrupted at step" in out, first_err


def test_a_reader_that_goes_away_is_an_error(tmp_path):
    process = start(tmp_path)
    wait_for_step(process, 20)
    process.stdout.close()
    err = process.stderr.read()
    assert_one_line(process.wait(timeout=120), err, "stdout was closed")


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 12 MB."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(tmp_path)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs the right to mount a small file system")
    yield tmp_path
    subprocess.run(["umount", str(tmp_path)], check=True)


def test_a_full_disk_stops_the_run_and_keeps_what_was_saved(small_disk):
    assert run(small_disk, "--config.train.steps=40")[0] == 0
    free = shutil.disk_usage(small_disk).free
    (small_disk / "other").write_bytes(bytes(free - 200_000))
    code, _, err = run(small_disk, "--allow_config_change")
    assert_one_line(code, err, "cannot save to", "no space left", "step 40 is intact")
    assert sorted(p.name for p in (small_disk / "checkpoints").iterdir()) == ["20", "40"]
    (small_disk / "other").unlink()
    code, out, err = run(small_disk, "--allow_config_change")
    assert code == 0 and "completed at step 150" in out, err


def test_a_disk_without_a_byte_left_is_one_line_too(small_disk):
    (small_disk / "other").write_bytes(bytes(shutil.disk_usage(small_disk).free))
    code, _, err = run(small_disk / "run")
    assert_one_line(code, err, "No space left on device")
