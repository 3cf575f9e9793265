import contextlib
import json
import math
import os
import re
import resource
import statistics
import struct
import subprocess
import sys
import threading
import time
import types

import pytest

from lsm.errors import TrainingError
from lsm.files import AppendOnly
from lsm.writers import Console, Jsonl, RunInfo, TensorBoard, Writers, read_metrics
from lsm.writers.console import clock

RUN = RunInfo(name="digits", config={"seed": 0}, total_steps=1000, batch_size=128)
TRAIN = {"loss": 0.43214, "accuracy": 0.87, "examples_per_sec": 12345.4, "input_wait": 0.01}


@contextlib.contextmanager
def disk_with_room_for(size):
    """The kernel takes what fits, then refuses, as on a full disk, for any file over `size`."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)


class Recorder:
    """A config and a writer in one, which keeps what it is given."""

    def __init__(self, fails_on_close=False):
        self.rows, self.closed, self.fails_on_close = [], False, fails_on_close

    def open(self, workdir, run, resume_step):
        return self

    def write(self, step, split, metrics):
        self.rows.append((step, split, dict(metrics)))

    def close(self):
        self.closed = True
        if self.fails_on_close:
            raise OSError("the plug is out")


# ------------------------------------------------------------------- several writers


def test_a_row_goes_to_every_writer(tmp_path):
    configs = [Recorder(), Recorder()]
    writers = Writers.open(configs, tmp_path, RUN, resume_step=0)
    writers.write(1, "train", TRAIN)
    assert configs[0].rows == configs[1].rows == [(1, "train", TRAIN)]


def test_all_are_closed_although_two_fail():
    writers = [Recorder(fails_on_close=True), Recorder(fails_on_close=True), Recorder()]
    with pytest.raises(OSError, match="the plug is out") as caught:
        Writers(writers).close()
    assert [writer.closed for writer in writers] == [True, True, True]
    assert caught.value.__notes__ == ["also, on closing: OSError: the plug is out"]


def test_writers_that_are_open_are_closed_when_a_later_one_does_not_open(tmp_path):
    (tmp_path / "metrics.jsonl").mkdir()
    first = Recorder()
    with pytest.raises(TrainingError, match=r"metrics\.jsonl"):
        Writers.open([first, Jsonl()], tmp_path, RUN, resume_step=0)
    assert first.closed


def test_importing_the_writers_imports_none_of_their_libraries():
    heavy = "{'tensorboardX', 'wandb', 'mlflow', 'tensorflow', 'matplotlib'}"
    code = f"import sys, lsm.writers, lsm.run.result; print(sorted({heavy} & set(sys.modules)))"
    code = f"import sys; sys.path[:0] = {sys.path!r}; {code}"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


# ------------------------------------------------------------------- the screen


class Clock:
    def __init__(self, monkeypatch):
        self.now = 100.0
        monkeypatch.setattr("lsm.writers.console.time", types.SimpleNamespace(monotonic=self))

    def __call__(self):
        return self.now


def test_lines_where_stdout_is_not_a_terminal(tmp_path, capsys, monkeypatch):
    now = Clock(monkeypatch)
    writer = Console().open(tmp_path, RUN, resume_step=0)
    writer.write(100, "train", {"loss": 12345.678, "steps_per_sec": 10.0})
    now.now += 12.0  # 200 steps in 12 s, so 700 more in 42 s
    writer.write(300, "train", TRAIN)
    writer.write(300, "validation", {"loss": 0.5, "perplexity": 1.25})
    writer.close()
    assert capsys.readouterr().out.splitlines() == [
        "step 100/1000  train  loss 1.235e+04  examples/s 1,280  left 1:30",
        "step 300/1000  train  loss 0.4321  accuracy 0.8700  examples/s 12,345  left 0:42",
        "step 300/1000  validation  loss 0.5000  perplexity 1.2500",
    ]


def test_tiny_epochs_do_not_flood(tmp_path, capsys, monkeypatch):
    """The first 100 lines, then the newest of each split twice a second, and the last of all."""
    now = Clock(monkeypatch)
    writer = Console().open(tmp_path, RUN, resume_step=0)
    for step in range(1, 1001):
        now.now += 0.01
        writer.write(step, "train", {"loss": 1.0})
        writer.write(step, "validation", {"loss": 1.0})
    writer.write(1000, "test", {"loss": 1.0})
    writer.write(1000, "goodput", GOODPUT)
    told = re.findall(r"step (\d+)/1000  (\w+)", capsys.readouterr().out)
    shown = [(int(step), split) for step, split in told]
    assert shown[:100] == [(n, split) for n in range(1, 51) for split in ("train", "validation")]
    later = [(99, "validation"), (100, "train"), (149, "validation"), (150, "train")]
    assert shown[100:104] == later and len(shown) == 140
    assert shown[-3:] == [(1000, "train"), (1000, "validation"), (1000, "test")]
    assert shown == sorted(shown, key=lambda row: row[0])
    writer.close()
    assert capsys.readouterr().out == ""


def test_a_language_model_is_timed_in_tokens_and_a_known_chip_by_its_use(tmp_path, capsys):
    writer = Console().open(tmp_path, RUN, resume_step=0)
    speeds = {"steps_per_sec": 2.0, "examples_per_sec": 256.0, "tokens_per_sec": 16384.0}
    writer.write(100, "train", {"loss": 1.0} | speeds | {"mfu": 0.4321})
    line = "step 100/1000  train  loss 1.0000  tokens/s 16,384  mfu 43.2 %  left 7:30\n"
    assert capsys.readouterr().out == line


GOODPUT = {
    "goodput": 0.75,
    "wall_time": 40.0,
    "steps_seconds": 30.0,
    "input_seconds": 0.0,
    "compile_seconds": 2.0,
    "lost_seconds": 8.0,
    "replayed_steps": 70,
    "steps_per_sec": 12.5,
    "mfu": 0.4,
}


def test_the_account_at_the_end(tmp_path, capsys):
    writer = Console().open(tmp_path, RUN, resume_step=0)
    writer.write(1000, "goodput", GOODPUT)
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == "goodput 75.0 % of 40.0 s, 12.5 steps/s mfu 40.0 %, 70 steps made again"
    assert [line for line in lines[1:] if line.endswith("%")] == [
        "steps 30.0 75.0 %",
        "lost 8.0 20.0 %",
        "compile 2.0 5.0 %",
    ]


def test_a_resumed_run_is_paced_by_the_steps_it_takes_itself(tmp_path, capsys, monkeypatch):
    now = Clock(monkeypatch)
    writer = Console().open(tmp_path, RUN, resume_step=800)
    writer.write(810, "train", {"loss": math.nan})
    now.now += 10.0
    writer.write(820, "train", {"loss": math.inf})
    assert capsys.readouterr().out.splitlines() == [
        "step 810/1000  train  loss nan  examples/s 0  left ?",
        "step 820/1000  train  loss inf  examples/s 128  left 3:00",
    ]


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (41.6, "0:42"), (3599, "59:59"), (90061, "25:01:01")]
)
def test_clock(seconds, text):
    assert clock(seconds) == text


@contextlib.contextmanager
def terminal(monkeypatch):
    """Makes stdout a terminal of 100 columns; gives a function that reads what it shows."""
    pty = pytest.importorskip("pty", reason="no terminals on this system")
    leader, follower = pty.openpty()
    for name in ("TTY_COMPATIBLE", "TTY_INTERACTIVE", "NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    os.set_blocking(leader, False)
    screen, stdout = os.fdopen(leader, "rb", buffering=0), os.fdopen(follower, "w")
    with screen, stdout, contextlib.redirect_stdout(stdout):
        yield lambda: (screen.read() or b"").decode()


def test_bar_on_a_terminal(tmp_path, monkeypatch):
    now = Clock(monkeypatch)
    threads = threading.active_count()
    with terminal(monkeypatch) as shown:
        writer = Console().open(tmp_path, RUN, resume_step=0)
        shown()
        writer.write(100, "train", TRAIN)
        first = shown()
        for fact in ("digits", "100/1000", "loss 0.4321  accuracy 0.8700", "12,345 examples/s"):
            assert fact in first
        for step in range(101, 400):
            writer.write(step, "train", TRAIN)
        assert shown() == "", "a bar that is not due must not be drawn"
        now.now += 0.6
        writer.write(400, "train", TRAIN)
        assert "400/1000" in shown()
        writer.write(400, "validation", {"loss": 0.5})
        above = shown()
        assert above.index("step 400/1000  validation  loss 0.5000") < above.index("digits")
        assert threading.active_count() == threads
        writer.write(401, "train", TRAIN)
        writer.close()
        assert "401/1000" in shown(), "the last row is drawn on closing"


def test_a_row_that_is_not_due_costs_less_than_100_microseconds(tmp_path, monkeypatch):
    seconds = []
    with terminal(monkeypatch) as shown:
        writer = Console().open(tmp_path, RUN, resume_step=0)
        for step in range(1001):
            start = time.perf_counter()
            writer.write(step, "train", TRAIN)
            seconds.append(time.perf_counter() - start)
        writer.close()
        assert "1000/1000" in shown()
    assert statistics.median(seconds) < 100e-6


# ------------------------------------------------------------------- metrics.jsonl


def test_jsonl_rows(tmp_path):
    writer = Jsonl().open(tmp_path / "new", RUN, resume_step=0)
    writer.write(1, "train", TRAIN)
    lines = (tmp_path / "new" / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == 1, "a row is in the file at once, not on closing"
    assert list(json.loads(lines[0]).items()) == [("step", 1), ("split", "train"), *TRAIN.items()]
    writer.close()


def test_figures_that_are_not_finite_are_null(tmp_path):
    writer = Jsonl().open(tmp_path, RUN, resume_step=0)
    writer.write(1, "train", {"loss": math.nan, "norm": math.inf, "low": -math.inf})
    writer.close()

    def refuse(word):
        raise ValueError(f"{word} is not JSON")

    row = json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=refuse)
    assert row == {"step": 1, "split": "train", "loss": None, "norm": None, "low": None}


def rows_of_a_run(first, last):
    """A training row at every step, an evaluation at every third."""
    for step in range(first, last + 1):
        yield step, "train", {"loss": 1 / step}
        if step % 3 == 0:
            yield step, "validation", {"loss": 2 / step}


def write_run(workdir, first, last, resume_step):
    writer = Jsonl().open(workdir, RUN, resume_step)
    for row in rows_of_a_run(first, last):
        writer.write(*row)
    writer.close()
    return (workdir / "metrics.jsonl").read_bytes()


def test_killed_at_any_byte_and_resumed_has_each_row_once(tmp_path):
    straight = write_run(tmp_path / "straight", 1, 9, resume_step=0)
    killed = tmp_path / "killed"
    killed.mkdir()
    for cut in range(0, len(straight) + 1, 11):
        left = straight[:cut]
        whole = left.count(b'"validation"', 0, left.rfind(b"\n") + 1)
        for checkpoint in range(0, 3 * whole + 1, 3):
            (killed / "metrics.jsonl").write_bytes(left)
            resumed = write_run(killed, checkpoint + 1, 9, resume_step=checkpoint)
            assert resumed == straight, f"cut at byte {cut}, resumed from step {checkpoint}"
    assert [path.name for path in killed.iterdir()] == ["metrics.jsonl"]


def test_a_row_is_replaced_when_told_again(tmp_path):
    write_run(tmp_path, 1, 3, resume_step=0)
    writer = Jsonl().open(tmp_path, RUN, resume_step=3)
    for loss in (0.25, 0.75):
        writer.write(3, "test", {"loss": loss})
    writer.write(3, "validation", {"loss": 0.5})
    writer.write(2, "train", {"loss": 0.125})
    writer.close()
    rows = [(row["step"], row["split"], row["loss"]) for row in read_metrics(tmp_path)]
    assert rows == [
        (1, "train", 1.0),
        (3, "train", 1 / 3),
        (3, "test", 0.75),
        (3, "validation", 0.5),
        (2, "train", 0.125),
    ]


def test_a_damaged_line_is_named(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "split": "train"}\n{"st\n{"step": 2}\n')
    with pytest.raises(TrainingError, match=r"metrics\.jsonl, line 2: not a row"):
        Jsonl().open(tmp_path, RUN, resume_step=1)


def test_a_full_disk_is_one_line_and_leaves_whole_rows(tmp_path):
    writer = Jsonl().open(tmp_path, RUN, resume_step=0)
    writer.write(1, "train", TRAIN)
    before = (tmp_path / "metrics.jsonl").read_bytes()
    with disk_with_room_for(len(before) + 10), pytest.raises(TrainingError) as caught:
        writer.write(2, "train", TRAIN)
    assert str(tmp_path / "metrics.jsonl") in str(caught.value)
    assert "\n" not in str(caught.value)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before
    writer.close()


def test_a_full_disk_on_resuming_leaves_the_old_file(tmp_path):
    before = write_run(tmp_path, 1, 9, resume_step=0)
    with disk_with_room_for(20), pytest.raises(TrainingError, match=r"metrics\.jsonl: cannot be w"):
        Jsonl().open(tmp_path, RUN, resume_step=6)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full on this system")
def test_no_space_left_on_device_is_said(tmp_path):
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    file = AppendOnly(tmp_path / "metrics.jsonl")
    with pytest.raises(TrainingError, match=r"metrics\.jsonl: .*No space left on device"):
        file.append(b"row\n")


# ------------------------------------------------------------------- TensorBoard


def tensorboard_events(folder):
    """Reads TFRecords (length, crc, event, crc) of all event files in the order of their names."""
    from tensorboardX.proto import event_pb2

    for path in sorted(folder.iterdir()):
        content = path.read_bytes()
        while content:
            (length,) = struct.unpack("<Q", content[:8])
            event = event_pb2.Event()
            event.ParseFromString(content[12 : 12 + length])
            yield event
            content = content[16 + length :]


def tensorboard_scalars(folder):
    """What TensorBoard shows: a start of session hides what came before, from its step on."""
    shown = []
    for event in tensorboard_events(folder):
        if event.session_log.status == event.session_log.START:
            shown = [scalar for scalar in shown if scalar[0] < event.step]
        shown += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
    return shown


def test_tensorboard_scalars_and_resume(tmp_path):
    for resume_step in (0, 2):
        writer = TensorBoard().open(tmp_path, RUN, resume_step)
        for step in range(resume_step + 1, 5):
            writer.write(step, "train", {"loss": 0.5 * step + resume_step, "accuracy": 0.25})
        if resume_step:
            writer.close()
    scalars = tensorboard_scalars(tmp_path / "tensorboard")
    assert [(s, v) for s, tag, v in scalars if tag == "train/loss"] == [
        (1, 0.5),
        (2, 1.0),
        (3, 3.5),
        (4, 4.0),
    ]
    assert {tag for _, tag, _ in scalars} == {"train/loss", "train/accuracy"}
    assert "tensorflow" not in sys.modules


def test_tensorboard_started_afresh_hides_all_that_was_there(tmp_path):
    for value in (1.0, 2.0):
        writer = TensorBoard().open(tmp_path, RUN, resume_step=0)
        writer.write(0, "validation", {"loss": value})
        writer.close()
    assert tensorboard_scalars(tmp_path / "tensorboard") == [(0, "validation/loss", 2.0)]


def test_tensorboard_checksums_are_those_of_tfrecord(tmp_path):
    """CRC-32C, masked: https://www.tensorflow.org/tutorials/load_data/tfrecord"""

    def masked_crc32c(data):
        crc = 0xFFFFFFFF
        for byte in data:
            crc ^= byte
            for _ in range(8):
                crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
        crc ^= 0xFFFFFFFF
        return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF

    TensorBoard().open(tmp_path, RUN, resume_step=0).close()
    (path,) = (tmp_path / "tensorboard").iterdir()
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    sums = content[8:12] + content[12 + length : 16 + length]
    parts = (content[:8], content[12 : 12 + length])
    assert struct.unpack("<II", sums) == tuple(masked_crc32c(part) for part in parts)


def test_tensorboard_on_a_full_disk_is_one_line(tmp_path):
    writer = TensorBoard().open(tmp_path, RUN, resume_step=0)
    with disk_with_room_for(120), pytest.raises(TrainingError, match=r"events\.out\.tfevents"):
        for step in range(20):
            writer.write(step, "train", TRAIN)
    assert sum(1 for _ in tensorboard_events(tmp_path / "tensorboard")) >= 2, "all records whole"
