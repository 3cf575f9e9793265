"""The documentation: examples and commands run, errors are those raised, links and tables hold,
figures are those of the records, and what is called tested names its test.

A ```python block is run; a ```text block right after it is what it prints. One that begins with
"# name.py" is also a file of that name, for the commands of its page. ```bash blocks are run in order,
on two steps: see `ELSEWHERE` and `PARSED` for those that are not. A place for a table,

    <!-- fields:lsm.Train -->
    <!-- /fields -->

is filled by `python tests/test_docs.py` from the dataclass.
"""

import contextlib
import dataclasses
import inspect
import io
import json
import os
import pathlib
import pkgutil
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import tomllib

import numpy as np
import pytest
from absl import flags as absl_flags

from benchmarks import airbench, generate, memory, plans, results, serve, step_time_tables
from benchmarks import compile as compiling
from benchmarks import input as inputs
from launch.command import split
from lsm import cli, command_line, optim
from lsm.config import flags, schema
from lsm.data import images
from lsm.errors import ConfigError

ROOT = pathlib.Path(__file__).parents[1]
PAGES = [*sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md"]
GUIDES = [*PAGES, ROOT / "CONTRIBUTING.md"]
CODE = re.compile(r"^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```\n)?", re.DOTALL | re.MULTILINE)
BASH = re.compile(r"^```bash\n(.*?)^```\n(?:\n```text\n(.*?)^```\n)?", re.DOTALL | re.MULTILINE)
ELSEWHERE = {
    r"^python3 -m venv|^\. \.venv/bin/activate$": "tests/test_install.py makes such an environment",
    r"^python -m pip install -e ": "it too; here the extra is looked up",
    r"^python -m pytest |^ruff ": "what runs this",
    r"^(OTEL_\S+ )?python -m launch\.serve ": "it goes on for ever: tests/launch/serve/test_serve_faults.py",
    r"^python -m launch\.retrain ": "several trainings: tests/launch/retrain/test_retrain_kills.py",
}
"""Commands that are neither parsed nor run here, and why."""

PARSED = {
    r"^python -m experiments\.(cifar|mnist|multi30k) ": "data that would be downloaded",
    r"^python -m lsm\.data\.(prepare|tokenize) ": "archives, texts and tokenizers that are not here",
    r"^python -m (experiments\.finetune|lsm\.adapt) ": "a model and conversations of the reader's",
    r"^python -m lsm\.data\.show (iris\.csv$|'reviews|beans)": "files of the reader's",
    r" --coordinator=": "two machines",
    r"^python -m launch\.tpu_vm wait ": "asks a cloud, and has no --dry_run",
    r"^python -m launch\.plan ": "minutes of a compiler: tests/launch/test_plan.py",
    r"^python -m benchmarks\.": "minutes to hours of measuring",
}
"""Commands that are parsed, with their config, but not run, and why."""

ERROR = re.compile(r"^\$ (python -m (?:lsm|experiments\.).*)\nerror: (.*)$", re.MULTILINE)
TABLE = re.compile(r"(<!-- fields:([\w.]+) -->\n).*?(<!-- /fields -->)", re.DOTALL)
TESTED = re.compile(r"(?<!Not )\b(?:Tested|Tests)\b|(?<!not )(?<!are )\btested\b")
LINK = re.compile(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]+))?\)")


def holding(pattern, but=(), pages=PAGES):
    found = [page for page in pages if page.name not in but and pattern.search(page.read_text())]
    return pytest.mark.parametrize("page", found, ids=lambda page: page.stem)


@pytest.fixture
def desk(page, tmp_path, monkeypatch):
    """Works in a folder with the shipped configs and the files of the page."""
    (tmp_path / "experiments").symlink_to(ROOT / "experiments")
    for code, _ in CODE.findall(page.read_text()):
        name = re.match(r"# (\w+\.py)\n", code)
        if name:
            (tmp_path / name[1]).write_text(code)
    monkeypatch.chdir(tmp_path)


def load(command):
    """Does what `python -m experiments.NAME --...` or `python -m lsm --...` does, up to the experiment."""
    words = shlex.split(command, comments=True)
    words = words[words.index("--") + 1 :] if "--" in words else words  # of a launcher
    name, *words = words[words.index("-m") + 1 :]
    rest, overrides = flags.split_overrides(words)
    given = dict(word.removeprefix("--").partition("=")[::2] for word in rest)
    own = {flag.name for flag in absl_flags.FLAGS.flags_by_module_dict()[cli.__name__]}
    assert set(given) <= own, command
    if name == "lsm":  # without a config it is that of the run in the workdir
        return flags.load(given["config"], overrides) if "config" in given else None
    source = (ROOT / "experiments" / f"{name.removeprefix('experiments.')}.py").read_text()
    default = "experiments/" + re.search(r"configs/[\w/]+[.]py", source)[0]
    return flags.load(given.get("config", default), overrides)


def fields_table(name):
    cls = pkgutil.resolve_name(name)
    texts, types = schema.documentation(cls), schema.hints(cls)
    of_a_run = name.startswith("lsm.")  # a launcher's flags are no part of it
    yield f"| field | type | default |{' may change |' if of_a_run else ''} what |"
    yield "|---|---|---|---|---|" if of_a_run else "|---|---|---|---|"
    for name, field in schema.fields(cls).items():
        made = field.default_factory is not dataclasses.MISSING
        value = field.default_factory() if made else field.default
        default = "needed" if value is dataclasses.MISSING else f"`{schema.shown(value)}`"
        free = ("" if field.metadata.get("alters_run", True) else "yes",) if of_a_run else ()
        cells = (f"`{name}`", f"`{schema.spelled(types[name])}`", default, *free, texts[name])
        yield "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"


def with_tables(text):
    def fill(place):
        return place[1] + "\n".join(fields_table(place[2])) + "\n" + place[3]

    return TABLE.sub(fill, text)


@pytest.mark.slow
@pytest.mark.usefixtures("desk")
# tests/data/test_sources.py runs those of data.md; those of the other are run by its commands.
@holding(CODE, but=["data.md", "first_hour.md"])
def test_examples_run_and_print_what_is_shown(page):
    names = {"__name__": "__main__"}
    for code, output in CODE.findall(page.read_text()):
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(compile(code, page.name, "exec"), names)
        if output:
            assert printed.getvalue() == output


def lines(block):
    return [c.strip() for c in re.split(r"&&|\n", block.replace("\\\n", " ")) if c.strip()]


def listed_in(table, line):
    return any(re.search(pattern, line) for pattern in table)


class Parsed(BaseException):
    """Raised where a command's own work would begin."""


def is_experiment(module):
    return module == "lsm" or module.startswith("experiments.")


def parse(line, monkeypatch):
    """Does what a command does up to its flags and its config."""
    words = shlex.split(re.sub(r"^(\w+=\S* )+", "", line))
    if words[0] != "python":
        assert shutil.which(words[0]), line
    elif words[1] != "-m":
        assert pathlib.Path(words[1]).exists(), line
    elif is_experiment(words[2]):
        load(shlex.join(words))
    else:
        name, own = words[2], words[3:]
        monkeypatch.setattr(sys, "argv", [name, *own])
        with pytest.raises(Parsed):
            runpy.run_module(name, run_name="__main__", alter_sys=True)
        if launched := split(own)[1]:
            load(shlex.join(launched))
        if name == "launch.plan":
            rest, overrides = flags.split_overrides(own)
            flags.load(rest[0].removeprefix("--config="), overrides)


@pytest.mark.filterwarnings("ignore:.*found in sys.modules")
@pytest.mark.usefixtures("desk")
@holding(BASH, pages=GUIDES)
def test_commands_parse(page, monkeypatch):
    def parsed(*args, known=command_line.parse, **kwargs):
        known(*args, **kwargs)
        raise Parsed

    monkeypatch.setattr(command_line, "parse", parsed)
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for block, _ in BASH.findall(page.read_text()):
        for line in lines(block):
            if extra := re.search(r" pip install .*\[(.*)\]", line):
                assert extra[1] in extras["optional-dependencies"], line
            if not listed_in(ELSEWHERE, line):
                parse(line, monkeypatch)


def small(line, page):
    """The command for two steps; as far as the config, of the page on that; a launcher's plan."""
    if page.stem == "first_hour":
        return line
    if page.stem == "configs":
        return f"{line} --config_help"
    if re.match(r"python -m launch\.(?!local|serve)", line):
        own, dashes, command = line.replace(" --dry_run", "").partition(" -- ")
        return f"{own} --dry_run{dashes}{command}"
    if re.search(r"-m (lsm|experiments\.\w+)( |$)", line) and "--mode=" not in line:
        return re.sub(r" --config\.train\.epochs=\S+", "", line) + " --config.train.steps=2"
    return line


@pytest.mark.slow
@pytest.mark.usefixtures("desk")
@holding(BASH, pages=GUIDES)
def test_commands_run(page, tmp_path_factory):
    """In the order of the page, in one folder; those of the first hour as they stand."""
    environment = os.environ | {
        "PATH": os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]]),
        "PYTHONPATH": str(ROOT),
        "JAX_NUM_CPU_DEVICES": "1",
        "LSM_CACHE": str(tmp_path_factory.getbasetemp() / "commands"),
    }
    pathlib.Path("new").mkdir()
    pathlib.Path("new/1.png").write_bytes(images.encode_png(np.zeros((8, 8, 1), np.uint8)))
    for block, output in BASH.findall(page.read_text()):
        printed = ""
        for line in lines(block):
            if listed_in(ELSEWHERE, line) or listed_in(PARSED, line):
                continue
            command = ["bash", "-c", small(line, page)]
            done = subprocess.run(
                command, env=environment, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
            printed += done.stdout
        assert not output or printed == output


def test_each_reason_not_to_run_a_command_has_one():
    found = [
        line
        for page in GUIDES
        for block, _ in BASH.findall(page.read_text())
        for line in lines(block)
    ]
    for pattern in (*ELSEWHERE, *PARSED):
        assert any(re.search(pattern, line) for line in found), pattern


@pytest.mark.usefixtures("desk")
@holding(ERROR)
def test_errors_are_shown_as_they_are_raised(page):
    for command, message in ERROR.findall(page.read_text()):
        with pytest.raises(ConfigError) as caught:
            load(command)
        assert str(caught.value) == message


@holding(TABLE)
def test_tables_of_fields_are_up_to_date(page):
    text = page.read_text()
    assert text == with_tables(text), "run `python tests/test_docs.py`"


@holding(LINK)
def test_links_lead_somewhere(page):
    for path, place in LINK.findall(page.read_text()):
        target = page.parent / path if path else page
        assert target.exists(), path
        headings = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE) if place else []
        slugs = [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in headings]
        assert not place or place in slugs, f"{path}#{place}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_tables_of_figures_are_made_of_the_records(page):
    text = page.read_text()
    sources = (results, plans, step_time_tables, compiling, generate, serve, airbench, inputs)
    for source in sources:
        assert text == source.filled(page)


def test_tables_of_memory_are_made_of_the_record():
    assert memory.PAGE.read_text() == memory.filled(json.loads(memory.RECORD.read_text()))


def plan(name):
    return json.loads((plans.RECORDS / f"{name}.json").read_text())


def sent(name):
    return sum(one["bytes"] * one["times"] for one in plan(name)["collectives"])


def test_figures_between_the_tables_of_scale_are_those_of_the_plans():
    text = " ".join((ROOT / "docs/scale.md").read_text().split())
    big, small = (
        sent(name) / plan(name)["run"]["parameters"] for name in ("llama_70b", "llama_8b")
    )
    assert (
        f"by these plans {big:.1f} bytes a parameter and step for 70B and {small:.1f} for 8B"
        in text
    )
    more = [sent(f"{name}_tensor") / sent(name) for name in ("llama_8b", "llama_70b")]
    assert "sends {:.1f} times as much (8B) and {:.1f} times (70B)".format(*more) in text
    slow = {
        name: plan(f"llama_70b{name}")["projection"]["step_seconds"][1]
        for name in ("", "_data", "_tensor")
    }
    assert min(slow, key=slow.get) == "_data" and "`data` over some of the devices" in text
    there = [
        one["times"] for one in plan("mixtral_8x7b")["collectives"] if one["kind"] == "all-to-all"
    ]
    assert f"as here: {sum(there)} for 32 layers" in text
    kinds = {one["kind"] for one in plan("llama_70b")["collectives"]}
    assert kinds == {"all-reduce"}  # as docs/sharding.md says


@pytest.mark.parametrize("page", [p for p in PAGES if p.stem != "plan"], ids=lambda page: page.stem)
def test_what_is_called_tested_names_its_test(page):
    for paragraph in page.read_text().split("\n\n"):
        named = re.findall(r"`(tests/[\w/]+(?:\.py)?)`", paragraph)
        assert all((ROOT / path).exists() for path in named), named
        assert named or not TESTED.search(paragraph), paragraph


def test_every_optimizer_and_schedule_is_described():
    text = (ROOT / "docs/optimizers.md").read_text()
    for cls in vars(optim).values():
        if isinstance(cls, type) and issubclass(cls, optim.Optimizer | optim.Schedule):
            if inspect.isabstract(cls) or cls is optim.Schedule:
                continue
            row = re.search(rf"^\| `{cls.__name__}\b.*$", text, re.MULTILINE)
            assert row, cls.__name__
            if issubclass(cls, optim.Algorithm):
                assert f"| {'coupled' if cls.coupled else 'decoupled'} |" in row[0], cls.__name__


if __name__ == "__main__":
    for document in PAGES:
        if TABLE.search(old := document.read_text()):
            document.write_text(with_tables(old))
