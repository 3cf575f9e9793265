"""What every command shares: absl flags, one line for a slip, --help, the exit status."""

import functools
import io
import logging
import pathlib
import re
import shlex
import signal
import subprocess
import sys
import time

import flax.linen as nn
import jax
import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver

from benchmarks import plans, results
from launch import local, tpu_vm
from launch.plan.__main__ import main as plan
from lsm import cli, command_line
from lsm.command_line import waiting
from lsm.data import prepare, tokenize
from lsm.errors import ConfigError, DataError
from lsm.tasks import Function

ROOT = pathlib.Path(__file__).parents[1]


def new():
    given = flags.FlagValues()
    flags.DEFINE_string("out", None, "folder", given, required=True)
    flags.DEFINE_integer("workers", 2, "threads", flag_values=given, lower_bound=1)
    flags.DEFINE_float("rate", None, "per second", flag_values=given)
    flags.DEFINE_enum("mode", "train", ("train", "eval"), "what is done", given)
    flags.DEFINE_bool("quick", True, "less", given)
    flags.DEFINE_multi_string("only", (), "some", given)
    return given


def test_flags_and_words():
    given = new()
    words = [
        "a",
        "--out",
        "o p",
        "--noquick",
        "b",
        "--rate=1e-3",
        "--only=x",
        "--only=",
        "--",
        "-h",
        "--out",
    ]
    assert command_line.parse(given, words, doc="", words=True) == [*"ab", "-h", "--out"]
    assert (given.out, given.workers, given.rate, given.mode) == ("o p", 2, 1e-3, "train")
    assert (given.quick, given.only) == (False, ["x", ""])


ALL = "--out, --workers, --rate, --mode, --quick, --only"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "--out is needed: folder"),
        (["--workers=3", "--ouT=x"], f"--ouT: there is no such flag; there are {ALL}; see y. Did you mean '--out'?"),
        (["--out"], "--out: a value is needed, as in --out=VALUE."),
        (["--out="], "--out: a value is needed, as in --out=VALUE."),
        (["--out", "--quick"], "--out: a value is needed, as in --out=VALUE."),
        (["--out=o", "--workers=0"], "--workers: '0' given; a positive integer is needed."),
        (["--out=o", "--workers=a: b"], "--workers: 'a: b' given; a positive integer is needed."),
        (["--out=o", "--workers", "1.5"], "--workers: '1.5' given; a positive integer is needed."),
        (["--out=o", "--rate=nan"], "--rate: nan given; a number is needed."),
        (["--out=o", "--mode=evil"], "--mode: 'evil' given; 'train' | 'eval' is needed. Did you mean 'eval'?"),
        (["--out=o", "--quick=1.0"], "--quick: '1.0' given; 'true' | 'false' is needed."),
        (["--out=o", "--noquick=1"], "--noquick=1 does not take an argument."),
        (["--out=o", "--quick", "false"], "'false' given; only flags are taken; see y."),
        (["--out=o", "--", "--quick"], "'--quick' given; only flags are taken; see y."),
    ],
)  # fmt: skip
def test_a_slip_is_one_line(argv, message):
    with pytest.raises(ConfigError) as caught:
        command_line.parse(new(), argv, doc="", advice="see y")
    assert str(caught.value) == message


def test_help_lists_the_flags_with_type_default_and_what_they_are():
    assert list(command_line.describe(new())) == [
        "--out: string (needed)",
        "    folder",
        "--workers: int = 2",
        "    threads",
        "--rate: float",
        "    per second",
        "--mode: train | eval = train",
        "    what is done",
        "--quick: bool = True",
        "    less",
        "--only: string, may be repeated",
        "    some",
    ]


@pytest.mark.parametrize(
    ("ends", "status", "line"),
    [
        (lambda: None, 0, ""),
        (lambda: 2, 2, ""),
        (DataError("It is bad."), 1, "error: It is bad.\n"),
        (KeyboardInterrupt(), 130, "error: interrupted; go on.\n"),
        (PermissionError(13, "Permission denied", "a/b"), 1, "error: a/b: Permission denied.\n"),
        (
            OSError(40, "Too many links", b"x" * 5000),
            1,
            f"error: {'x' * 97} ... {'x' * 97}: Too many links.\n",
        ),
    ],
)
def test_status(ends, status, line, capsys):
    def act():
        if isinstance(ends, BaseException):
            raise ends
        return ends()

    assert command_line.status(act, "; go on") == status
    assert capsys.readouterr().err == line


def debugging(value):
    given = flags.FlagValues()
    flags.DEFINE_bool("debug", value, command_line.DEBUG, given)
    return given


OWN = """
def deep(n):
    if n:
        return deep(n - 1)
    return {}["no\\nsuch key"]

def get():
    return deep(7)
"""


def test_a_bug_is_ten_lines_with_the_users_own_first(tmp_path, monkeypatch, capsys):
    """Of the code that fails under lsm's, none of lsm's and of libraries."""
    (tmp_path / "own.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(compile(OWN, str(tmp_path / "own.py"), "exec"), names)
    assert command_line.status(names["get"], "", debugging(False)) == 1
    told = capsys.readouterr().err
    assert told.splitlines() == [
        r"error: KeyError: 'no\nsuch key'",
        "  own.py:5, in deep",
        r"""    return {}["no\nsuch key"]""",
        *["  own.py:4, in deep", "    return deep(n - 1)"] * 3,
        "--debug shows everything.",
    ]


def test_a_bug_of_lsm_is_owned(capsys):
    act = functools.partial(command_line.listed, 3)
    assert command_line.status(act, "", debugging(False)) == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "error: TypeError: 'int' object is not iterable"
    assert lines[1].startswith(f"  {ROOT / 'lsm/errors.py'}:") or lines[1].startswith(
        "  lsm/errors.py:"
    )
    assert lines[-1] == (
        "No code of yours is in it: it looks like a bug of lsm. --debug shows everything."
    )


def test_a_bug_of_a_library_in_a_field_is_told_of_the_field(capsys):
    """A loss of Optax, a model of Flax: there is no line of the user's, and lsm is not wrong."""
    names, file = {}, "/lib/site-packages/theirs/losses.py"
    exec(compile("def loss(outputs, batch):\n    return outputs[9]", file, "exec"), names)
    task = Function(nn.MultiHeadDotProductAttention(num_heads=2), names["loss"])
    rows = {"x": np.ones((2, 3, 7), np.float32)}
    for act, first, field in (
        (functools.partial(task.metrics, {}, rows, True, 0), f"  {file}:2, in loss", "loss_fn"),
        (functools.partial(task.init, jax.random.key(0), rows), "flax/linen/attention.py", "model"),
    ):
        assert command_line.status(act, "", debugging(False)) == 1
        lines = capsys.readouterr().err.splitlines()
        assert first in lines[1] and "lsm/tasks" not in str(lines)
        assert lines[-1] == f"It is raised in task.{field} of the config. --debug shows everything."


def test_debug_raises_any_error_as_it_is(capsys):
    def act(given, words):
        raise DataError("It is bad.")

    assert command_line.run(act, new(), ["--out=o"], doc="") == 1
    assert capsys.readouterr().err == "error: It is bad.\n"
    with pytest.raises(DataError):
        command_line.status(lambda: act(None, None), "", debugging(True))


def test_who_hooks_uncaught_errors_sees_them(monkeypatch):
    with pytest.raises(ZeroDivisionError):
        command_line.status(lambda: 1 // 0)  # of a command without --debug
    monkeypatch.setattr(sys, "excepthook", lambda *_: None)
    with pytest.raises(ZeroDivisionError):
        command_line.status(lambda: 1 // 0, "", debugging(False))


BROKEN = """
import flax.linen as nn
from lsm import Callback, Data, Experiment, Train
from lsm.data import Digits
from lsm.optim import Adam
from lsm.tasks import Classification, Function

class Wrong(nn.Module):
    outputs: int = 10

    @nn.compact
    def __call__(self, x, train=False):
        x = x.reshape(len(x), -1)
        return x @ self.param("kernel", nn.initializers.zeros, (32, self.outputs))

def loss(outputs, batch):
    return outputs.no_such_method()

def get_config(arg):
    task, callbacks = Classification(model=Wrong()), ()
    if arg == "loss":
        task = Function(nn.Sequential([lambda x: x[..., 0], nn.Dense(1)]), loss, "image")
    if arg == "name":
        task = Clasification()
    if arg == "callback":
        task = Function(nn.Sequential([lambda x: x / 255, nn.Dense(1)]), lambda o, b: o[:, 0, 0], "image")
        callbacks = (Callback(after_row=lambda moment: moment.figures["accurcy"]),)
    return Experiment(
        name="broken", task=task, data=Data(source=Digits()), optimizer=Adam(learning_rate=1e-3),
        train=Train(steps=1), writers=(), callbacks=callbacks,
    )
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arg", "lines"),
    [
        ("model", [
            "error: TypeError: dot_general requires contracting dimensions to have the same shape, got (64,) and (32,).",
            "  broken.py:14, in __call__",
            '    return x @ self.param("kernel", nn.initializers.zeros, (32, self.outputs))',
            "--debug shows everything.",
        ]),
        ("loss", [
            "error: AttributeError: DynamicJaxprTracer has no attribute no_such_method",
            "  broken.py:17, in loss",
            "    return outputs.no_such_method()",
            "--debug shows everything.",
        ]),
        ("callback", [
            "error: KeyError: 'accurcy'",
            "  broken.py:27, in <lambda>",
            '    callbacks = (Callback(after_row=lambda moment: moment.figures["accurcy"]),)',
            "--debug shows everything.",
        ]),
        ("name", ["error: broken.py:24: name 'Clasification' is not defined. Did you mean 'Classification'?"]),
        ("model --debug", None),
    ],
)  # fmt: skip
def test_a_bug_in_ones_own_code_shows_that_code(arg, lines, tmp_path):
    (tmp_path / "broken.py").write_text(BROKEN)
    words = ["-m", "experiments.digits", *f"--config=broken.py:{arg}".split(), "--workdir=w"]
    environment = {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, *words], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    told = done.stderr.splitlines()
    assert done.returncode == 1
    if lines is None:  # whole: the frames of JAX and Flax, too
        assert len(told) > 60 and told[0] == "Traceback (most recent call last):"
        assert "jax/_src/pjit.py" in done.stderr and "flax/linen/module.py" in done.stderr
    else:
        assert told == lines


def test_a_reader_that_leaves_early_is_no_traceback():
    code = "import sys, lsm.command_line as c; sys.exit(c.status(lambda: print('x' * 9**7)))"
    words = shlex.join([sys.executable, "-c", code])
    script = f"{words} | head -c 1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", script], cwd=ROOT, capture_output=True)
    assert (done.returncode, done.stderr) == (1, b"error: stdout was closed.\n")


def test_an_interruption_that_python_drops_is_heard(capsys):
    """Ctrl-C in a destructor, of which there are many while JAX compiles."""

    class Dies:
        def __del__(self):
            signal.raise_signal(signal.SIGINT)
            time.sleep(0)  # here it is raised, and Python goes on

    def act():
        Dies()
        for _ in range(100):
            time.sleep(0.01)

    command_line._hear_interruptions.cache_clear()  # of a hook that another test has undone
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in the background
    start = time.monotonic()
    try:
        assert command_line.status(act) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    assert time.monotonic() - start < 0.9
    assert capsys.readouterr().err == "error: interrupted.\n"


@pytest.mark.slow
def test_an_interruption_while_importing_is_one_line():
    code = "import sys; print('up', flush=True); from lsm import cli; print('all is imported')"
    for seconds in (0.1, 0.5, 1.0):
        child = subprocess.Popen(
            [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        assert child.stdout.readline() == b"up\n"
        time.sleep(seconds)
        child.send_signal(signal.SIGINT)
        out, err = child.communicate(timeout=60)
        if out:
            break  # it was quicker
        assert (child.returncode, err) == (130, b"error: interrupted.\n")


@pytest.mark.skipif(not pathlib.Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("lines", [1, 100_000])
def test_a_full_disk_behind_stdout_is_one_line(lines):
    code = (
        "import sys; from lsm import command_line; "
        f"sys.exit(command_line.status(lambda: print('line\\n' * {lines})))"
    )
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-c", code], stdout=full, stderr=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (1, b"error: stdout: No space left on device.\n")


def staged():
    log = logging.getLogger("staged")
    with waiting.stages("staged") as say:
        log.info("lower %s", "init")
        say("  1. a row [b]")
        log.info("compile")
    log.info("nobody listens")


def test_stages_are_lines_on_stderr(capsys):
    staged()
    printed = capsys.readouterr()
    assert printed.out == ""
    assert re.sub(r"\d\.\d s", "T", printed.err).splitlines() == [
        "    T  lower init",
        "  1. a row [b]",
        "    T  compile",
    ]


def test_stages_are_one_rewritten_line_in_a_terminal(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setenv("TERM", "xterm")
    screen = sys.stderr
    staged()
    text = re.sub(r"\x1b\[\d*m", "", screen.getvalue())
    # Each draws over the line before, which a row alone ends; at last it is wiped.
    drawn = [part.strip() for part in re.split(r"\r\x1b\[2K|\n", text)]
    order = ["lower init 0:00:00", "1. a row [b]", "compile 0:00:00"]
    assert [part for part in dict.fromkeys(drawn) if part in order] == order
    assert text.endswith("\x1b[2K") and "nobody" not in text


@pytest.mark.parametrize(
    "main",
    [plan, local.main, prepare.main, tokenize.main, plans.main, results.main],
    ids=lambda main: main.__module__,
)
def test_every_command_keeps_the_promises(main, capsys):
    """Several in one process, each twice: they share no flag."""
    for _ in range(2):
        assert main(["--no_such_flag=1"]) == 1
        printed = capsys.readouterr()
        assert printed.out == "" and printed.err.count("\n") == 1
        assert printed.err.startswith("error: --no_such_flag: there is no such flag; there are ")
        with pytest.raises(SystemExit) as caught:
            main(["--help"])
        assert caught.value.code == 0
        assert "python -m " in capsys.readouterr().out


def test_the_verbs_have_their_own_help(capsys):
    assert tpu_vm.main(["--help"]) == 0
    assert "create: Asks for TPUs; they come when there are some." in capsys.readouterr().out
    with pytest.raises(SystemExit):
        tpu_vm.main(["logs", "--help"])
    assert "--worker: int = 0\n    host of the slice; 0 tells most.\n" in capsys.readouterr().out


def test_without_a_config_those_nearby_are_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"^--config is needed: .* such as .*digits/cnn\.py\.$"):
        cli._no_config(None)
    (tmp_path / "mine.py").write_text("def get_config(arg=None): ...")
    (tmp_path / "other.py").write_text("x = 1")
    with pytest.raises(ConfigError, match=r", as w holds no run: .* such as mine\.py\.$"):
        cli._no_config(pathlib.Path("w"))


@pytest.mark.parametrize("flag", ["temperature=0", "sample_seed=0", "temperature=0.5"])
def test_a_flag_of_another_mode_is_told_whatever_its_value(flag):
    """Also 0, which equals False."""
    with flagsaver.flagsaver():
        flags.FLAGS(["lsm", "--mode=predict", f"--{flag}"])
        with pytest.raises(ConfigError, match=f"^--{flag.split('=')[0]}: it is for --mode=sample"):
            cli._run(None, {})


EXPERIMENT = '''"""An experiment with a flag of its own."""
import sys
from absl import flags
import lsm.cli
_MINE = flags.DEFINE_integer("mine", 3, "a flag of this file")
lsm.cli.fit = lambda *args, **options: sys.exit(f"mine is {_MINE.value}")
lsm.cli.main("experiments/configs/digits/cnn.py")
'''


@pytest.mark.slow
def test_an_experiment_may_have_flags_of_its_own(tmp_path):
    (tmp_path / "mine.py").write_text(EXPERIMENT)

    def run(*words):
        command = [sys.executable, str(tmp_path / "mine.py"), *words]
        environment = {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        return done.returncode, done.stdout, done.stderr

    status, out, err = run("--help")
    assert (status, err) == (0, "")
    assert out.startswith("An experiment with a flag of its own.\n\n--config: string\n")
    assert "--mine: int = 3\n    a flag of this file\n" in out and "verbosity" not in out
    assert out.count("\n--") < 30
    assert run("--mine=4", "--verbosity=0", "--workdir=w") == (1, "", "mine is 4\n")
    status, out, err = run("--mnie=4")
    assert (status, out) == (1, "") and err.endswith(" Did you mean '--mine'?\n")
