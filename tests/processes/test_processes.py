"""Real processes that train together on loopback: equal, killed, resumed, interrupted, in error."""

import contextlib
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from lsm import processes
from lsm.config import flags
from lsm.errors import ProcessError, TrainingError
from lsm.files import exclusive
from lsm.params import path_name
from lsm.processes import Cluster, detect
from lsm.processes.peers import free_port
from lsm.run.checkpoint import Checkpoints
from lsm.train.trainer import Trainer

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).parents[2]
STEPS = 60
CONFIG = """
from lsm import Checkpoint, Data, Evaluation, Experiment, Mesh, Train
from lsm.data import Digits, RandomCrop
from lsm.evaluate import RocAuc
from lsm.models import MLP
from lsm.optim import AdamW
from lsm.tasks import Classification
from lsm.writers import Console, Jsonl

def get_config(arg=None):
    return Experiment(
        name="together",
        task=Classification(model=MLP(widths=(256,), dropout=0.1)),
        data=Data(Digits(), "train[:90%]", "train[90%:]", "test", augment=(RandomCrop(1),)),
        optimizer=AdamW(learning_rate=3e-3),
        train=Train(steps=STEPS, batch_size=64, log_every=10),
        evaluation=Evaluation(every=30, metrics=(RocAuc(),)),
        checkpoint=Checkpoint(every=20),
        mesh=Mesh(data=2, fsdp=4),
        writers=(Console(), Jsonl()),
    )
""".replace("STEPS", str(STEPS))


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "together.py"
    path.write_text(CONFIG)
    return path


class Run:
    """Processes of one run, started by hand; whatever is left of them is killed at the end."""

    def __init__(self, config, workdir, count, *extra, numbers=None, own=()):
        self.processes = {}
        where = f"--coordinator=127.0.0.1:{free_port()}"
        for number in numbers or range(count):
            place = [where, f"--processes={count}", f"--process={number}"] if count > 1 else []
            self.processes[number] = subprocess.Popen(
                [sys.executable, "-m", "experiments.digits", f"--config={config}"]
                + [f"--workdir={workdir}", "--peer_timeout=20", *place, *extra]
                + [word for owner, word in own if owner == number],
                cwd=ROOT,
                env=os.environ
                | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(8 // count)}
                | {"PYTHONUNBUFFERED": "1"},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )

    def __enter__(self):
        return self

    def __exit__(self, *error):
        for process in self.processes.values():
            process.kill()
            process.wait()

    def wait_for_step(self, step):
        for line in self.processes[0].stdout:
            if line.startswith("step ") and int(line.split()[1].split("/")[0]) >= step:
                return
        pytest.fail(f"the run ended before step {step}: {self.processes[0].stderr.read()}")

    def end(self, seconds=120):
        """Returns {number: (exit status, stdout, stderr)}; none may take longer than `seconds`."""
        return {
            number: (*process.communicate(timeout=seconds), process.returncode)
            for number, process in self.processes.items()
        }


def run(config, workdir, count, *extra, **options):
    with Run(config, workdir, count, *extra, **options) as processes:
        return processes.end()


def completed(ended):
    return [status for *_, status in ended.values()] == [0] * len(ended)


def result(workdir):
    return json.loads((workdir / "result.json").read_text())


def final_params(config, workdir):
    """Restores the last state onto the eight devices of this one process."""
    trainer = Trainer.of(flags.load(str(config), {}), None)
    checkpoints = Checkpoints(workdir / "checkpoints", read_only=True)
    with contextlib.closing(checkpoints):
        state = checkpoints.restore(trainer.program.abstract_state, STEPS)
    leaves = jax.tree_util.tree_leaves_with_path(state.params)
    return {path_name(path): np.asarray(leaf) for path, leaf in leaves}


def assert_close(config, one, other):
    """Equal but for the order in which sums are added: gloo's differs from that of one process.

    AdamW divides a gradient by its own size: where it is rounding, a step of 3e-3 is rounding too.
    """
    a, b = final_params(config, one), final_params(config, other)
    assert a.keys() == b.keys()
    for path in a:
        np.testing.assert_allclose(a[path], b[path], rtol=1e-3, atol=1e-4, err_msg=path)
    for name in ("loss", "roc_auc"):
        figures = [result(w)["metrics"]["test"][name] for w in (one, other)]
        np.testing.assert_allclose(*figures, rtol=1e-4)


@pytest.fixture(scope="module")
def straight(config, tmp_path_factory):
    """An uninterrupted run of two processes with four devices each."""
    workdir = tmp_path_factory.mktemp("straight")
    ended = run(config, workdir, 2)
    assert completed(ended), ended
    assert f"together: completed at step {STEPS}" in ended[0][0]
    told = ended[1][0]  # gloo's threads write there too, into each other's lines
    assert told.count("process 1 of 2: ") == 2  # process 1 says that it is here,
    assert "step " not in told and "together" not in told  # and no more
    return workdir


def test_checkpoints_are_written_by_all_and_meta_once(straight):
    state = straight / f"checkpoints/{STEPS}/state"
    assert {"ocdbt.process_0", "ocdbt.process_1"} <= {path.name for path in state.iterdir()}
    assert not [path for path in straight.iterdir() if path.name.startswith(".claim")]


def test_2x4_equals_1x8(config, straight, tmp_path):
    ended = run(config, tmp_path, 1)
    assert completed(ended), ended
    assert_close(config, straight, tmp_path)


def test_two_processes_predict_what_one_does(config, straight, tmp_path):
    rows = []
    for count in (1, 2):
        workdir = tmp_path / str(count)
        shutil.copytree(straight, workdir)
        ended = run(config, workdir, count, "--mode=predict")
        assert completed(ended), ended
        lines = (workdir / "predictions/test.jsonl").read_text().splitlines()
        rows.append([json.loads(line) for line in lines])
    assert len(rows[0]) == len(rows[1]) == 360
    probabilities = [[row["probability"] for row in each] for each in rows]
    np.testing.assert_allclose(*probabilities, atol=1e-5)


def test_two_processes_start_from_another_run(config, straight, tmp_path):
    start = f"--config.start.path={straight}"
    ended = run(config, tmp_path / "run", 2, start, "--config.train.steps=2")
    assert completed(ended), ended
    loss = result(tmp_path / "run")["metrics"]["test"]["loss"]
    assert loss < 1.2 * result(straight)["metrics"]["test"]["loss"]


def test_what_the_devices_hold_is_read_alike_by_two(config, tmp_path):
    """Several steps a dispatch, of examples by number; and one by one, of rows by process."""
    digests = []
    for most in ("auto", "1"):
        own = ("--config.data.augment=()", f"--config.train.steps_per_execution={most}")
        ended = run(config, tmp_path / most, 2, *own)
        assert completed(ended), ended
        digests.append(result(tmp_path / most)["fingerprint"])
    assert digests[0] == digests[1]


@pytest.fixture(scope="module")
def killed(config, tmp_path_factory):
    """What is left of a run after kill -9 of process 1, and what process 0 said then."""
    workdir = tmp_path_factory.mktemp("killed")
    with Run(config, workdir, 2) as processes:
        processes.wait_for_step(30)
        processes.processes[1].send_signal(signal.SIGKILL)
        began = time.monotonic()
        ended = processes.end(20)
    return workdir, ended[0], time.monotonic() - began


def test_a_killed_process_ends_the_others(killed):
    _, (_, err, status), seconds = killed
    assert seconds < 10 and status == 1
    (line,) = err.splitlines()
    assert line.startswith("error: process 0 of 2 stops, because process 1 of 2 has gone"), line


def test_a_restart_gives_the_same_bits(config, straight, killed, tmp_path):
    shutil.copytree(killed[0], tmp_path / "run")
    ended = run(config, tmp_path / "run", 2)
    assert completed(ended), ended
    assert result(tmp_path / "run")["fingerprint"] == result(straight)["fingerprint"]
    assert result(tmp_path / "run")["metrics"] == result(straight)["metrics"]


def test_a_restart_in_one_process_goes_on_with_the_same_batches(config, straight, killed, tmp_path):
    shutil.copytree(killed[0], tmp_path / "run")
    ended = run(config, tmp_path / "run", 1)
    assert completed(ended), ended
    assert_close(config, straight, tmp_path / "run")


def test_killing_process_0_ends_the_others(config, tmp_path):
    with Run(config, tmp_path, 2) as processes:
        processes.wait_for_step(10)
        processes.processes[0].send_signal(signal.SIGKILL)
        began = time.monotonic()
        ended = processes.end(20)
    assert time.monotonic() - began < 15
    _, err, status = ended[1]
    if status == -signal.SIGABRT and "gloo::" in err:  # its thread was faster, on a busy machine
        return
    assert status in (1, -signal.SIGABRT)
    assert "process 1 of 2 stops, because process 0 of 2 has gone" in err


@pytest.fixture(scope="module")
def interrupted(config, tmp_path_factory):
    """A run after SIGTERM to process 1, and how its processes ended."""
    workdir = tmp_path_factory.mktemp("interrupted")
    with Run(config, workdir, 2) as processes:
        processes.wait_for_step(10)
        processes.processes[1].send_signal(signal.SIGTERM)
        return workdir, processes.end()


def test_sigterm_to_one_saves_the_same_step_in_all(interrupted):
    workdir, ended = interrupted
    assert completed(ended), ended
    step = int(ended[0][0].split("interrupted at step ")[1].split(",")[0])
    assert 10 < step < STEPS
    assert (workdir / f"checkpoints/{step}/state/ocdbt.process_1").is_dir()
    assert not (workdir / "result.json").exists()


def test_an_interrupted_run_goes_on_with_four_processes(config, straight, interrupted, tmp_path):
    shutil.copytree(interrupted[0], tmp_path / "run")
    ended = run(config, tmp_path / "run", 4)  # of two devices each
    assert completed(ended), ended
    assert_close(config, straight, tmp_path / "run")


def test_an_error_of_process_0_ends_all_with_its_line(config, tmp_path):
    with exclusive(tmp_path / ".lock", TrainingError("taken")):
        ended = run(config, tmp_path, 2)
    assert [status for *_, status in ended.values()] == [1, 1]
    locked = f"--workdir: another run is in progress in {tmp_path}."
    assert ended[0][1] == f"error: {locked}\n"
    failed = "error: process 1 of 2 stops, because process 0 of 2 failed:"
    assert ended[1][1] == f"{failed} {locked}\n"


def test_processes_of_different_configs_are_refused(config, tmp_path):
    ended = run(config, tmp_path, 2, own=[(1, "--config.train.seed=1")])
    assert [status for *_, status in ended.values()] == [1, 1]
    assert "process 1 of 2: not the config of process 0: train.seed: 0 -> 1." in ended[1][1]
    assert "process 1 of 2 failed: not the config of process 0" in ended[0][1]
    assert not (tmp_path / "config.json").exists()


def test_an_error_of_all_is_told_once(config, tmp_path):
    ended = run(config, tmp_path, 2, "--config.train.batch_size=63")
    assert [status for *_, status in ended.values()] == [1, 1]
    assert ended[0][1].count("\n") == 1 and ended[1][1].count("\n") <= 1
    assert "train.batch_size: 63 does not divide over 8 devices" in ended[0][1]


@pytest.mark.parametrize("present", [0, 1])
def test_a_missing_process_is_named(config, tmp_path, present):
    began = time.monotonic()
    ended = run(config, tmp_path, 2, "--start_timeout=2", numbers=[present])
    assert time.monotonic() - began < 60
    out, err, status = ended[present]
    assert status == 1 and err.count("\n") == 1
    assert f"process {1 - present}" in err and "missing" in err
    assert f"process {present} of 2: waits up to 2 s" in out


ROWS = """
import jax, numpy as np
from jax.sharding import AxisType, Mesh
from lsm import processes
from lsm.mesh import AXES, BATCH_AXES, batch_sharding, local_rows, place
processes.initialize()
devices = np.array(jax.devices())  # 0 to 3, two in each process
batch = {"x": np.arange(24.0, dtype=np.float32).reshape(8, 3)}
for order, expected in ((devices.reshape(2, 2), {0: range(4), 1: range(4, 8)}),
                        (devices.reshape(2, 2).T, {0: range(8), 1: range(8)})):
    sizes = [2 if axis in ("data", "tensor") else 1 for axis in AXES]
    mesh = Mesh(order.reshape(sizes), AXES, axis_types=(AxisType.Auto,) * len(AXES))
    rows = local_rows(batch_sharding(mesh), 8)
    assert rows.tolist() == list(expected[jax.process_index()]), rows
    placed = place({"x": batch["x"][rows]}, batch_sharding(mesh))["x"]
    assert placed.shape == (8, 3)
    for shard in placed.addressable_shards:
        np.testing.assert_array_equal(shard.data, batch["x"][shard.index])
print("rows are right")
"""


def test_a_process_reads_the_rows_of_its_devices(tmp_path):
    """Also where a tensor axis spans the processes, so that both hold the same rows."""
    (tmp_path / "rows.py").write_text(ROWS)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "launch.local", "--processes=2", "--devices=2"),
            *("--", sys.executable, str(tmp_path / "rows.py")),
        ],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    for number in (0, 1):
        assert f"[{number}] rows are right" in done.stdout


AUTO = """
from lsm import processes
processes.initialize()
number = processes.others().process
print(processes.gather("numbers", number))
print(processes.gather("names", {"name": "ä" * number, "values": [None, 0.1][: number + 1]}))
print(processes.share("what process 0 has", 1e-300 if number == 0 else {"long": 9 * "text"}))
processes.wait_for_all("the end")
"""


def pair(code):
    """Two processes that JAX finds, as under Slurm."""
    slurm = {"SLURM_JOB_ID": str(os.getpid()), "SLURM_STEP_NODELIST": "localhost"}
    environment = os.environ | slurm | {"LSM_COORDINATOR": "auto", "SLURM_NTASKS": "2"}
    return [
        subprocess.Popen(
            [sys.executable, "-c", code],
            cwd=ROOT,
            env=environment | {"SLURM_PROCID": number, "SLURM_LOCALID": number},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in ("0", "1")
    ]


def test_what_jax_detects_is_joined_and_values_go_round():
    for process in pair(AUTO):
        assert process.communicate(timeout=100)[0].splitlines()[-3:] == [
            "[0, 1]",
            str([{"name": "", "values": [None]}, {"name": "ä", "values": [None, 0.1]}]),
            "1e-300",
        ]
        assert process.returncode == 0


WAITING = """
import signal, time
from lsm import processes
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
processes.initialize()
if processes.others().process == 1:
    time.sleep(60)
print("waiting", flush=True)
processes.wait_for_all("the other")
"""


def test_a_process_that_waits_on_the_devices_hears_ctrl_c():
    first, other = pair(WAITING)
    while first.stdout.readline() != "waiting\n":
        assert first.poll() is None
    time.sleep(1)
    first.send_signal(signal.SIGINT)
    began = time.monotonic()
    told = [process.communicate(timeout=50)[1] for process in (first, other)]
    assert time.monotonic() - began < 30
    assert "KeyboardInterrupt" in told[0]
    assert "process 1 of 2 stops, because process 0 of 2 failed: KeyboardInterrupt" in told[1]


LATE = """
import time
from lsm import processes
from lsm.processes.hub import Hub
Hub.__init__.__kwdefaults__["patience"] = 1.0
processes.initialize()
if processes.others().process == 1:
    time.sleep(60)
processes.wait_for_all("the check of the disk")
"""


def test_a_process_that_waits_on_the_devices_is_ended_and_told_who_is_late():
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "launch.local", "--devices=1", "--", "python", "-c", LATE],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and time.monotonic() - began < 40
    for number in (0, 1):
        line = f"[{number}] error: process {number} of 2 stops, because process 1 of 2 is missing, "
        assert f"{line}after 1 s at the check of the disk.\n" in done.stderr


SLURM = {
    "SLURM_JOB_ID": "5001",
    "SLURM_STEP_NUM_TASKS": "16",
    "SLURM_PROCID": "3",
    "SLURM_STEP_NODELIST": "node[007-010,012],other3",
}


def test_clusters_are_found_by_their_environment_variables():
    assert detect({}) is None
    given = {"LSM_COORDINATOR": "10.0.0.1:99", "LSM_PROCESSES": "4", "LSM_PROCESS": "2"}
    assert detect(given | SLURM) == Cluster("10.0.0.1:99", 4, 2)
    assert detect(SLURM) == Cluster(f"node007:{61440 + 5001 - 4096}", 16, 3)
    lone = SLURM | {"SLURM_STEP_NODELIST": "a-1,b2"}
    assert Cluster("[::1]:7", 2, 0).address == ("::1", 7)
    assert [detect(of).secret for of in (given, SLURM)] == ["", "5001.0.0"]
    assert {detect(of | {"LSM_SECRET": "s"}).secret for of in (given, SLURM)} == {"s"}
    assert "hidden" not in repr(detect(given | {"LSM_SECRET": "hidden"}))
    assert detect(lone).address == ("a-1", 61440 + 5001 - 4096)
    assert detect(SLURM | {"SLURM_STEP_NUM_TASKS": "1"}) is None
    assert detect({"OMPI_COMM_WORLD_SIZE": "2"}) == Cluster("auto")
    assert detect({"TPU_WORKER_HOSTNAMES": "a,b"}) == Cluster("auto")
    assert detect({"TPU_WORKER_HOSTNAMES": "localhost"}) is None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((None, 2, 0), "--coordinator: HOST:PORT is needed with --processes and --process"),
        (("host", 2, 0), "--coordinator: 'host' given; allowed: HOST:PORT of process 0"),
        (("host:0", 2, 0), "--coordinator: 'host:0' given; allowed: HOST:PORT of process 0"),
        (("host:99", None, 0), "--processes: None given; with --coordinator=host:99 a number"),
        (("host:99", 2, None), "--process: None given; with --coordinator=host:99 a number"),
        (("host:99", 2, 2), "--process: 2 given; allowed: 0 to 1, as --processes is 2"),
    ],
)
def test_wrong_flags_are_one_line(given, message):
    with pytest.raises(ProcessError, match=message):
        processes.initialize(*given)


def test_alone_it_does_nothing_and_costs_nothing():
    before = time.perf_counter()
    processes.initialize()
    processes.initialize("127.0.0.1:1", 1, 0)
    assert time.perf_counter() - before < 0.05
    assert processes.others() is None and processes.is_first()
    assert processes.share("nothing", 7) == 7 and processes.gather("nothing", 7) == [7]


CALLBACK = """
import jax
from lsm import Callback, StopTraining

def stop(moment):
    if moment.step == (20 if jax.process_index() == 0 else 10):
        raise StopTraining("enough")

def fail(moment):
    if jax.process_index() == 1:
        moment.figures["accurcy"]
"""


def calling(name, tmp_path):
    path = tmp_path / f"{name}.py"
    own = f"callbacks=(Callback(after_row={name}),),\n        writers="
    path.write_text(CALLBACK + CONFIG.replace("writers=", own))
    return path


def test_process_0_decides_whether_a_callback_stops_all(tmp_path):
    ended = run(calling("stop", tmp_path), tmp_path, 2)
    assert completed(ended), ended
    found = result(tmp_path)
    assert (found["stopped"], found["step"]) == ("early stopping", 20)


def test_a_bug_of_one_process_ends_all(tmp_path):
    ended = run(calling("fail", tmp_path), tmp_path, 2)
    assert [status for *_, status in ended.values()] == [1, 1]
    assert "because process 1 of 2 failed: KeyError: 'accurcy'" in ended[0][1]
    assert 'moment.figures["accurcy"]' in ended[1][1]
