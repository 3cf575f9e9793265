"""What the launchers share: flags, the command after `--`, sweeps, slices, doing and printing."""

import dataclasses
import pathlib
import re
import shlex
import subprocess

import golden
import pytest

from launch import kubernetes, skypilot, slices, slurm, sweep, tpu_vm
from launch.actions import RunProgram, WriteFile, main, perform
from launch.command import (
    LaunchError,
    check_config,
    experiment,
    name_of,
    parse,
    split,
    trains,
    under,
    without_workdir,
    workdir,
)
from lsm.errors import ConfigError, LsmError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    """Flags.

    Attributes:
      image: what to run.
      nodes: how many.
      time: limit.
      spot: cheap.
      sweep: values.
    """

    image: str
    nodes: int = 1
    time: str | None = None
    spot: bool = False
    sweep: tuple[str, ...] = ()


def test_flags_are_read_in_both_forms():
    words = [
        "--image",
        "a b",
        "--nodes=3",
        "--spot",
        "--sweep=x=1,2",
        "--sweep",
        "y=1",
        "--time=90",
    ]
    assert parse(Flags, words) == Flags(
        image="a b", nodes=3, spot=True, sweep=("x=1,2", "y=1"), time="90"
    )
    assert parse(Flags, ["--image=i", "--spot=false"]) == Flags(image="i")
    assert parse(Flags, ["--image=i", "--spot", "--nospot"]) == Flags(image="i")
    assert parse(Flags, ["-image=i", "--nodes=2", "--nodes=3"]) == Flags(image="i", nodes=3)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--node=2"], "--node: there is no such flag; there are --image, --nodes, --time, --spot, --sweep; the command that is launched goes after `--`. Did you mean '--nodes'?"),
        (["--nodes=two"], "--nodes: 'two' given; an integer is needed."),
        (["--nodes="], "--nodes: '' given; an integer is needed."),
        (["--nodes"], "--nodes: a value is needed, as in --nodes=VALUE."),
        (["--nodes", "--spot"], "--nodes: a value is needed, as in --nodes=VALUE."),
        (["--image", "--spot"], "--image: a value is needed, as in --image=VALUE."),
        (["--image="], "--image: a value is needed, as in --image=VALUE."),
        (["--image", ""], "--image: a value is needed, as in --image=VALUE."),
        (["--image=i", "--spot=2"], "--spot: '2' given; 'true' | 'false' is needed."),
        ([], "--image is needed: what to run."),
        (["python"], "--image is needed: what to run."),
        (["--image=i", "python"], "'python' given; only flags are taken; the command that is launched goes after `--`."),
        (["python", "-m", "x"], "-m: there is no such flag; there are --image, --nodes, --time, --spot, --sweep; the command that is launched goes after `--`."),
    ],
)  # fmt: skip
def test_a_slip_in_a_flag_is_one_line(words, message):
    with pytest.raises(LsmError) as caught:
        parse(Flags, words)
    assert str(caught.value) == message


@pytest.mark.parametrize("asked", ["--help", "-h"])
def test_help_lists_every_flag(asked, capsys):
    with pytest.raises(SystemExit) as caught:
        parse(Flags, ["--nodes=x", asked], doc="What it does.")
    assert caught.value.code == 0
    assert (
        capsys.readouterr().out
        == """\
What it does.

--image: string (needed)
    what to run.
--nodes: int = 1
    how many.
--time: string
    limit.
--spot: bool = False
    cheap.
--sweep: string, may be repeated
    values.
"""
    )


def test_the_command_after_the_dashes():
    own, words = split(["--nodes=2", "--", "python", "-m", "experiments.digits", "--workdir", "a"])
    assert own == ["--nodes=2"]
    assert words == ("python", "-m", "experiments.digits", "--workdir", "a")
    assert split(["--", "a", "--", "b"]) == ([], ("a", "--", "b"))
    assert split(["--nodes=2"]) == (["--nodes=2"], ())
    assert experiment(words) == "digits"
    assert workdir(words) == "a"
    assert workdir(("--workdir=a", "--workdir=b=c")) == "b=c"  # the last one counts
    assert without_workdir(("x", "--workdir", "a", "--workdir=b", "y")) == ("x", "y")
    kept = ("python", "-m", "x", "--a=b c", "--config.d", "e", "--f", "'\"$", "-g", "--", "h")
    assert without_workdir((*kept[:4], "--workdir=w", *kept[4:])) == kept
    assert under("/runs", "--bucket", ("--workdir=/runs/a",)) == "/runs/a"


@pytest.mark.parametrize(
    "words", [(), ("python",), ("bash", "-c", "true"), ("python", "-m", "--x")]
)
def test_a_command_that_is_no_module_is_refused(words):
    with pytest.raises(LaunchError, match=r"after `--` goes what is to run, as in `-- python -m"):
        experiment(words)


def test_a_workdir_that_a_restart_would_not_find_is_refused():
    with pytest.raises(LaunchError, match="--workdir: not given after `--`"):
        workdir(("python", "-m", "experiments.digits"))
    for place in ("runs/a", "/runs", "/runsX/a"):
        with pytest.raises(LaunchError, match=f"'{place}' is not inside '/runs', where --claim is"):
            under("/runs", "--claim", (f"--workdir={place}",))


def test_only_training_leaves_a_result():
    assert trains(("python", "-m", "experiments.digits", "--mode=train"))
    assert trains(("python", "-m", "lsm", "--config=mine.py"))
    assert not trains(("python", "-m", "experiments.digits", "--mode=eval"))
    for mode in (("--mode", "eval"), ("--mode=predict",), ("--mode=train", "--mode=table")):
        assert not trains(("python", "-m", "experiments.digits", *mode))
    assert not trains(("python", "-m", "experiments.digits", "--config_help"))
    assert not trains(("python", "-m", "lsm.data.tokenize"))


def test_a_slip_in_the_config_is_told_before_anything_is_launched(tmp_path):
    digits = ("python", "-m", "experiments.digits", "--config=experiments/configs/digits/cnn.py")
    check_config((*digits, "--config.train.seed=3"))
    with pytest.raises(ConfigError, match=r"no field 'sed'.*Did you mean 'seed'"):
        check_config((*digits, "--config.train.sed=3"))
    with pytest.raises(ConfigError, match="int is needed"):
        check_config(digits, ["--config.train.seed=x"])
    with pytest.raises(ConfigError, match="no field 'sed'"):
        two = ("--config", "experiments/configs/digits/cnn.py", "--config.train.sed", "3")
        check_config((*digits[:3], *two))
    check_config((*digits[:3], "--config=only_in_the_image.py", "--config.train.sed=3"))


def test_names_of_clusters_and_clouds():
    assert name_of("name", "a-1") == "a-1"
    with pytest.raises(
        LaunchError, match=r"--name: 'My_Run.2' given; .* Did you mean 'my-run-2'\?"
    ):
        name_of("name", "My_Run.2")
    with pytest.raises(LaunchError, match=r"Did you mean 'a{5}'"):
        name_of("name", "a" * 6, most=5)


def test_a_sweep_is_a_product():
    points = sweep.points(
        ("config.optimizer.learning_rate=1e-3,3e-3", "config.task.widths=(8,16),'a,b'")
    )
    assert [point.overrides for point in points] == [
        (f"--config.optimizer.learning_rate={rate}", f"--config.task.widths={widths}")
        for rate in ("1e-3", "3e-3")
        for widths in ("(8,16)", "'a,b'")
    ]
    assert points[0].name == "learning_rate=1e-3,widths=8-16"
    names = [p.name for p in sweep.points(("config.a.rate=1", "config.b.rate=2"))]
    assert names == ["a.rate=1,b.rate=2"]


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        (("optimizer.rate=1,2",), "--sweep: 'optimizer.rate=1,2' given; config.FIELD=VALUE,VALUE is needed. Did you mean 'config.optimizer.rate'?"),
        (("config.a",), "--sweep: 'config.a': a value is missing, as in --sweep=config.a=1,2."),
        (("config.a=1,,2",), "--sweep: 'config.a=1,,2': a value is missing, as in --sweep=config.a=1,2."),
        (("config.a=1", "config.a=2"), "--sweep: config.a is given twice; list all its values in one."),
        (("config.a=x y,x/y",), "--sweep: two points would share the folder 'a=x-y'."),
    ],
)  # fmt: skip
def test_a_slip_in_a_sweep_is_one_line(axes, message):
    with pytest.raises(LaunchError) as caught:
        sweep.points(axes)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    # Google Cloud: "TPU v5e", "TPU v6e", "TPU v5p", "TPU v4" and "TPU7x", tables of slices.
    ("text", "chips", "hosts", "kind"),
    [
        ("v5e:1x1", 1, 1, "v5litepod-1"),
        ("v5e:2x4", 8, 1, "v5litepod-8"),
        ("v5e:4x4", 16, 4, "v5litepod-16"),
        ("v6e:16x16", 256, 64, "v6e-256"),
        ("v5p:2x2x1", 4, 1, "v5p-8"),
        ("v5p:4x4x4", 64, 16, "v5p-128"),
        ("v5p:8x8x8", 512, 128, "v5p-1024"),
        ("v4:2x2x4", 16, 4, "v4-32"),
    ],
)
def test_slices(text, chips, hosts, kind):
    piece = slices.parse(text)
    assert (piece.chips, piece.hosts, piece.accelerator_type) == (chips, hosts, kind)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("v5:4x4", r"Did you mean 'v5e'|Did you mean 'v5p'"),
        ("v5e:4x5", r"v5e has 1x1, .*16x16"),
        ("v5p:4x4", r"v5p is 2x2x1, or AxBxC"),
        ("v5p:4x4x6", r"a multiple of 4"),
        ("v5p:8x4x4", r"A <= B <= C"),
        ("v5p:1x2x2", r"v5p is 2x2x1, or"),
        ("v4:16x32x32", r"at most 4096 chips"),
    ],
)
def test_slices_that_do_not_exist(text, message):
    with pytest.raises(LaunchError, match=message):
        slices.parse(text)


def test_tpu7x_is_only_in_gke():
    piece = slices.parse("tpu7x:2x2x2")
    assert (piece.hosts, piece.generation.label) == (2, "tpu7x")
    with pytest.raises(LaunchError, match=r"only to be had in GKE"):
        piece.accelerator_type


PAGE = pathlib.Path(__file__).parents[2] / "docs/launch.md"
BLOCKS = re.findall(r"^```bash\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)
SHOWN = [line for block in BLOCKS for line in block.replace("\\\n", " ").splitlines()]


@pytest.mark.parametrize("line", SHOWN)
def test_the_commands_of_the_page_are_right(line, capsys):
    _, dash_m, module, *words = shlex.split(line)
    assert dash_m == "-m"
    if module == "launch.tpu_vm":
        assert tpu_vm.main([words[0], "--dry_run", *words[1:]]) == 0
    else:
        cls, plan = {
            "launch.slurm": (slurm.Slurm, slurm.plan),
            "launch.kubernetes": (kubernetes.Kubernetes, kubernetes.plan),
            "launch.skypilot": (skypilot.SkyPilot, skypilot.plan),
        }[module]
        assert main(cls, plan, ["--dry_run", *words]) == 0
    golden.check_shell(capsys.readouterr().out)


def test_a_dry_run_is_a_script_that_does_the_same(tmp_path, capsys):
    path = tmp_path / "it's a folder" / "file"
    text = "$HOME `x` \\ 'END'\nEND\nlast\n"
    words = ("cp", "/dev/stdin", str(tmp_path / 'copy of "it"'))
    actions = [WriteFile(str(path), text), RunProgram(words, stdin=text)]
    perform(actions, dry_run=True)
    printed = capsys.readouterr().out
    assert not path.exists()
    golden.check_shell(printed)
    subprocess.run(["bash", "-c", printed], check=True)
    assert path.read_text() == text
    assert (tmp_path / 'copy of "it"').read_text() == text
    path.unlink()
    perform(actions, dry_run=False)
    assert path.read_text() == text


def test_a_program_that_fails_or_is_missing_is_one_line(tmp_path):
    with pytest.raises(
        LaunchError, match=r"^no_such_program: there is no such program here; --dry_run"
    ):
        perform([RunProgram(("no_such_program",))], dry_run=False)
    with pytest.raises(LaunchError, match=r"^`bash -c 'exit 3' ...` ended with status 3\.$"):
        perform([RunProgram(("bash", "-c", "exit 3"))], dry_run=False)
    (tmp_path / "file").write_text("")
    with pytest.raises(LaunchError, match=r"file/x: cannot be written: "):
        perform([WriteFile(str(tmp_path / "file/x"), "")], dry_run=False)
