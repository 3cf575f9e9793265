import ast
import contextlib
import dataclasses
import itertools
import json
import math
import pathlib
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest

from benchmarks import cases
from lsm.config import flags
from lsm.errors import DataError
from lsm.run.result import Result

ROOT = pathlib.Path(__file__).resolve().parents[1]
CPU = {"platform": "cpu", "device_kind": "cpu", "device_count": 1, "cpu": "Xeon", "cores": 8}


@pytest.fixture
def results(monkeypatch, tmp_path):
    """The module, which is not part of the installed package, with cases of two configs."""
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks import results

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(results, "RECORDS", tmp_path / "records")
    case = results.Case("A | CNN", "cifar/cnn.py", claimed="91.80 %", best="modern")
    modern = results.Case("modern", "cifar/modern.py", "test/loss", seeds=1)
    monkeypatch.setattr(results, "CASES", {"cifar_cnn": case, "modern": modern})
    return results


@pytest.fixture
def trained(results, monkeypatch):
    """Runs take no time; returns their commands. Seeds 0, 1, 2 reach 71, 70, 72 %."""
    commands = []

    def train(command):
        commands.append(command)
        given = dict(word.partition("=")[::2] for word in command[3:])
        seed, workdir = int(given["--config.train.seed"]), pathlib.Path(given["--workdir"])
        figures = {"accuracy": [0.71, 0.70, 0.72][seed], "loss": 1.8123 + seed / 1000}
        save(workdir, seed, {"test": figures})
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(results.subprocess, "run", train)
    taken = itertools.count(0, 45)  # asked before and after each run
    monkeypatch.setattr(results, "_cpu_seconds", lambda: next(taken))
    return commands


def save(folder, seed, metrics, **changes):
    fields = {
        "metrics": metrics,
        "step": 100,
        "wall_time": 60.0 + seed,
        "fingerprint": "f" * 64,
        "seed": seed,
        "stopped": "completed",
        "git_revision": "0123456789abcdef+dirty",
        "versions": {"jax": "0.12.0"},
        "hardware": CPU,
    }
    folder.mkdir(exist_ok=True, parents=True)
    Result(**fields | changes).save(folder)


def test_run_trains_every_seed_and_keeps_a_record(results, trained, tmp_path):
    assert results.main(["run", "cifar_cnn", "--data_dir=DATA"]) == 0
    assert [command[1:4] for command in trained] == 3 * [
        ["-m", "experiments.cifar", "--config=experiments/configs/cifar/cnn.py"]
    ]
    assert all(command[-1] == "--data_dir=DATA" for command in trained)
    kept = json.loads((tmp_path / "records" / "cifar_cnn.json").read_text())
    assert [(run["seed"], run["value"]) for run in kept["runs"]] == [(0, 0.71), (1, 0.7), (2, 0.72)]
    assert kept["metric"] == "test/accuracy"
    assert str(tmp_path) not in json.dumps(kept), "no path of this machine"


def test_run_does_what_is_not_done_and_goes_on_after_a_failure(
    results, trained, tmp_path, monkeypatch, capsys
):
    train = results.subprocess.run

    def fail_at_seed_1(command):
        if "--config.train.seed=1" in command:
            return subprocess.CompletedProcess(command, 1)
        return train(command)

    monkeypatch.setattr(results.subprocess, "run", fail_at_seed_1)
    assert results.main(["run"]) == 1
    assert "-1 did not end well" in capsys.readouterr().err
    assert [path.stem for path in (tmp_path / "records").glob("*")] == ["modern"]
    monkeypatch.setattr(results.subprocess, "run", train)
    taken = itertools.count(0, 45)  # asked before and after each run
    monkeypatch.setattr(results, "_cpu_seconds", lambda: next(taken))
    trained.clear()
    assert results.main(["run"]) == 0
    assert [command[-1] for command in trained] == [
        "--config.train.seed=1",
        "--config.train.seed=2",
    ]
    trained.clear()
    assert results.main(["run"]) == 0
    assert trained == [], "all is there and of this code"


def test_the_time_of_a_run_in_pieces_is_their_sum(results, trained, monkeypatch, tmp_path):
    """Once a piece is killed with all that counts, nobody knows it: the record says none."""
    whole = results.subprocess.run

    def interrupted(command):
        workdir = pathlib.Path(dict(word.partition("=")[::2] for word in command[3:])["--workdir"])
        workdir.mkdir(exist_ok=True, parents=True)
        return subprocess.CompletedProcess(command, 0)

    def killed(command):
        raise SystemExit

    def piece(run, status):
        monkeypatch.setattr(results.subprocess, "run", run)
        with pytest.raises(SystemExit) if run is killed else contextlib.nullcontext():
            assert results.main(["run", "modern"]) == status

    record = tmp_path / "records" / "modern.json"
    piece(interrupted, 1)
    piece(whole, 0)
    assert json.loads(record.read_text())["runs"][0]["cpu_time"] == 90
    shutil.rmtree("runs")
    record.unlink()
    piece(interrupted, 1)
    piece(killed, None)
    piece(whole, 0)
    assert json.loads(record.read_text())["runs"][0]["cpu_time"] is None


def test_an_interrupted_run_makes_no_record(results, monkeypatch, tmp_path):
    """It ends with status 0, and without a result."""
    done = subprocess.CompletedProcess([], 0)
    monkeypatch.setattr(results.subprocess, "run", lambda command: done)
    assert results.main(["run", "modern"]) == 1
    assert not (tmp_path / "records").exists()


def test_code_that_changes_during_a_run_makes_no_record(results, trained, tmp_path, monkeypatch):
    digests = iter(["a", "b", "c"])
    monkeypatch.setattr(results.Case, "digest", property(lambda case: next(digests)))
    with pytest.raises(DataError, match="modern: the code changed while it ran"):
        results.run("modern", None)
    assert not (tmp_path / "records").exists()


def test_an_older_record_is_confirmed_where_the_run_begins_alike(results, trained, monkeypatch):
    """One of a minute and more; the runs of the fixture take 61 s, and seed 0 alone is begun."""
    results.main(["run", "cifar_cnn"])
    record = results.RECORDS / "cifar_cnn.json"
    old = json.loads(record.read_text()) | {"opening": "alike"}
    record.write_text(json.dumps(old))
    begun = []

    def begins_alike(command, workdir, wanted):
        begun.append((command[-1], wanted))
        return alike

    monkeypatch.setattr(results, "begins_alike", begins_alike)
    monkeypatch.setattr(results, "git_revision", lambda: "abc")
    for alike in (True, False):
        monkeypatch.setattr(results.Case, "digest", f"of newer code: {alike}")
        trained.clear()
        assert results.main(["run", "cifar_cnn"]) == 0
        assert begun.pop() == ("--config.train.seed=0", "alike") and not begun
        kept = json.loads(record.read_text())
        assert kept["digest"] == f"of newer code: {alike}"
        if alike:
            assert kept["runs"] == old["runs"] and kept["confirmed"] == "abc" and not trained
            assert "at 0123456789+dirty (begins alike at abc)" in results.table(["cifar_cnn"])
        else:
            assert len(trained) == 3 and "confirmed" not in kept
    # Another number of seeds is another case.
    case = dataclasses.replace(results.CASES["cifar_cnn"], seeds=2)
    monkeypatch.setitem(results.CASES, "cifar_cnn", case)
    monkeypatch.setattr(results.Case, "digest", "newest")
    assert results.main(["run", "cifar_cnn"]) == 0 and not begun


RUN = """
import json, pathlib, sys, time
rows = pathlib.Path(sys.argv[1]) / "metrics.jsonl"
with rows.open("w") as file:
    for step, split in ((5, "train"), (10, "train"), (10, "validation"), (15, "train")):
        loss = 1 / step if split == "train" else float(sys.argv[2])
        row = {"step": step, "split": split, "loss": loss, "steps_per_sec": time.time()}
        print(json.dumps(row), file=file, flush=True)
time.sleep(600)
"""


def test_a_run_is_begun_up_to_its_first_evaluation(results, tmp_path):
    from benchmarks import confirm

    def begins_alike(loss, wanted):
        return confirm.begins_alike([sys.executable, "-c", RUN, tmp_path, loss], tmp_path, wanted)

    assert confirm.opening(tmp_path) is None
    assert not begins_alike("0.5", "")
    opening = confirm.opening(tmp_path)
    (tmp_path / "metrics.jsonl").unlink()
    assert begins_alike("0.5", opening), "though at another speed"
    (tmp_path / "metrics.jsonl").unlink()
    assert not begins_alike("0.5000001", opening)
    (tmp_path / "metrics.jsonl").unlink()
    assert not confirm.begins_alike([sys.executable, "-c", "1/0"], tmp_path, opening)


def test_check_names_what_is_older_than_its_code(results, trained, tmp_path, capsys, monkeypatch):
    readme = tmp_path / "README.md"
    readme.write_text("no table\n")
    results.main(["run", "cifar_cnn"])
    capsys.readouterr()
    assert results.main(["check", str(readme)]) == 0
    assert (
        capsys.readouterr().out
        == "older than their code, or not run yet: modern; `run` runs them.\n"
    )
    results.main(["run", "modern"])
    capsys.readouterr()
    assert results.main(["check", str(readme)]) == 0
    assert capsys.readouterr().out == ""
    monkeypatch.setattr(results.Case, "digest", "of newer code")
    assert results.main(["check", str(readme)]) == 0, "old records fail nothing"
    assert "yet: cifar_cnn, modern;" in capsys.readouterr().out
    record = tmp_path / "records/modern.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"digest": None}))
    assert results.older(["modern"]) == ["modern"]


def test_write_fills_the_tables_and_check_is_content_then(results, trained, tmp_path, capsys):
    readme = tmp_path / "README.md"
    readme.write_text("# x\n<!-- results:cifar_cnn, modern -->\nold\n<!-- /results -->\nend\n")
    results.main(["run", "cifar_cnn"])
    assert results.main(["check", str(readme)]) == 1
    assert capsys.readouterr().err.startswith(f"error: stale tables in {readme}; ")
    results.main(["write", str(readme)])
    # Accuracies 70, 71, 72 %: mean 71, standard deviation sqrt((1 + 0 + 1) / 2) = 1.
    cifar = "`python -m experiments.cifar --config=experiments/configs/cifar/"
    measured = "test/accuracy 71.00 % ± 1.00 (70.00 to 72.00), 3 seeds"
    where = "1 min 01 s a run, 45 s of CPU time, on Xeon, 8 cores, at 0123456789+dirty"

    def text(best):
        return (
            "# x\n<!-- results:cifar_cnn, modern -->\n"
            "| system | claimed | measured: its exact form | best |\n"
            "| --- | --- | --- | --- |\n"
            f"| A \\| CNN<br>{cifar}cnn.py` | 91.80 % | {measured}<br>{where} "
            f"| {best}<br>modern: {cifar}modern.py` |\n"
            f"| modern<br>{cifar}modern.py` | none | {best} | - |\n"
            "<!-- /results -->\nend\n"
        )

    assert readme.read_text() == text("not run yet")
    assert results.main(["check", str(readme)]) == 0
    results.main(["run", "modern"])
    results.main(["write", str(readme)])
    assert readme.read_text() == text(
        "test/loss 1.812, 1 seed<br>1 min 00 s a run, 45 s of CPU time, on Xeon, 8 cores, at 0123456789+dirty"
    )


def test_write_fills_the_header_of_a_config(results, trained, tmp_path):
    config = tmp_path / "cnn.py"
    config.write_text('"""A net.\n\nMeasured (cifar_cnn): old\n  older\n"""\n')
    results.main(["write", str(config)])
    assert config.read_text() == '"""A net.\n\nMeasured (cifar_cnn): not run yet.\n"""\n'
    results.main(["run", "cifar_cnn"])
    results.main(["write", str(config)])
    written = (
        '"""A net.\n\n'
        "Measured (cifar_cnn): test/accuracy 71.00 % ± 1.00 (70.00 to 72.00), 3 seeds, 1 min 01 s a run, 45\n"
        "  s of CPU time, on Xeon, 8 cores, at 0123456789+dirty.\n"
        '"""\n'
    )
    assert config.read_text() == written
    results.main(["write", str(config)])
    assert config.read_text() == written


@pytest.mark.parametrize("config", cases.shipped(), ids=lambda path: path.stem)
def test_the_header_of_a_shipped_config_is_its_record(config, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks import plans, results

    header = ast.get_docstring(ast.parse(config.read_text()))
    assert re.search(r"^ *python -m experiments\.\w+ ", header, re.M)
    assert re.search(r"^(Measured|Planned) \(\w+\): ", header, re.M)
    assert config.read_text() == results.filled(config) == plans.filled(config)


def test_every_case_is_a_config_that_names_it_and_its_best_is_a_case(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks import cases, results

    for name, case in results.CASES.items():
        experiment = flags.load(str(ROOT / cases.CONFIGS / case.config))
        assert getattr(experiment.data, case.metric.partition("/")[0])
        config = ROOT / cases.CONFIGS / case.config.partition(":")[0]
        assert f"Measured ({name}): " in config.read_text()
        assert case.best is None or case.best in results.CASES
        assert (ROOT / f"experiments/{case.config.partition('/')[0]}.py").exists()


@pytest.mark.parametrize("name", ["mnist_mlp", "mnist_mlp_long"])
def test_the_exact_form_of_the_mnist_mlp_has_pixels_in_0_to_1_as_totensor_gives_them(
    name, monkeypatch
):
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks import cases

    experiment = flags.load(str(ROOT / cases.CONFIGS / cases.CASES[name].config))
    pixels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    scaled = experiment.task.inputs({"image": pixels})
    np.testing.assert_allclose(scaled, pixels / 255, rtol=1e-6)
    assert experiment.train.epochs == {"mnist_mlp": 10, "mnist_mlp_long": 100}[name]


def test_published_runs_lie_in_the_range_that_is_planned(monkeypatch):
    """Of the stored plans; `python -m benchmarks.plans run` makes them again."""
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks import plans

    published = {name: case for name, case in plans.CASES.items() if case.tokens or case.mfu}
    assert len(published) == 6
    for name, case in published.items():
        plan = json.loads((plans.RECORDS / f"{name}.json").read_text())
        low, high = plan["projection"]["mfu"]
        if case.mfu:
            assert low < case.mfu < high, name
            assert math.sqrt(low * high) == pytest.approx(case.mfu, rel=0.2)
        if case.tokens:
            low, high = plan["projection"]["tokens_per_second"]
            chips = plan["topology"]["chips"]
            assert low < case.tokens * chips < high, name
        counted = plan["flops"]["compiled"] + plan["flops"]["custom_calls"]
        assert counted == pytest.approx(plan["flops"]["hardware"], rel=0.02)
        assert plan["unknown_loops"] == 0


def test_check_notices_a_figure_changed_by_hand(results, trained, tmp_path, capsys):
    results.main(["run", "cifar_cnn"])
    readme = tmp_path / "README.md"
    readme.write_text("<!-- results:cifar_cnn -->\n<!-- /results -->\n")
    results.main(["write", str(readme)])
    readme.write_text(readme.read_text().replace("71.00", "91.80"))
    assert results.main(["check", str(readme)]) == 1
    assert "stale" in capsys.readouterr().err


def test_markers_inside_a_line_are_text(results, tmp_path):
    readme = tmp_path / "README.md"
    text = "Write `<!-- results:NAME -->` and `<!-- /results -->`.\n    <!-- results:NAME -->\n"
    readme.write_text(text)
    results.main(["write", str(readme)])
    assert readme.read_text() == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "<!-- results:cifar_cn -->\n<!-- /results -->\n",
            "'cifar_cn'; there is cifar_cnn, modern.",
        ),
        ("Measured (cifar_cn): x\n", "Did you mean 'cifar_cnn'"),
        ("<!-- results:cifar_cnn -->\nno end\n", "is not closed"),
        ("<!-- results:cifar_cnn -->\n" * 2 + "<!-- /results -->\n", "is not closed"),
    ],
)
def test_a_wrong_marker_is_one_line_and_the_document_untouched(
    results, tmp_path, capsys, text, message
):
    readme = tmp_path / "README.md"
    readme.write_text(text)
    assert results.main(["write", str(readme)]) == 1
    assert message in capsys.readouterr().err
    assert readme.read_text() == text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run", "cifar_cn"], "Did you mean 'cifar_cnn'"),
        (["write"], "write: documents are needed after it."),
        (["check", "no/such.md"], "no/such.md: No such file"),
        (["add"], "run, write, check"),
    ],
)
def test_a_wrong_command_is_one_line(results, capsys, words, message):
    assert results.main(words) == 1
    assert message in capsys.readouterr().err


def test_an_unknown_metric_names_those_that_are_there(results, tmp_path):
    save(tmp_path / "run", 0, {"test": {"accuracy": 0.9, "loss": 1.0}})
    case = results.Case("t", "cifar/cnn.py", "test/acuracy")
    with pytest.raises(DataError, match=r"it has test/accuracy, test/loss\. Did you mean"):
        results.record(case, "", [tmp_path / "run"])


@pytest.mark.parametrize(
    ("values", "metric", "text"),
    [
        ([0.918], "test/accuracy", "91.80 %"),
        ([0.5, 0.25], "test/top5_accuracy", "37.50 % ± 17.68 (25.00 to 50.00)"),
        ([1.81234], "validation/loss", "1.812"),
        ([0.0651234], "test/loss", "0.06512"),
        ([104.12, 104.14], "test/loss", "104.1 ± 0.0 (104.1 to 104.1)"),
        ([0.0], "test/loss", "0.00"),
        ([36.52], "test/bleu", "36.52"),
        ([5.5619e28], "test/loss", "5.562e+28"),
        ([1.2341e-12], "test/loss", "1.234e-12"),
        ([999_999.4], "test/loss", "999999"),
        ([0.5, None], "test/loss", "not finite"),
    ],
)
def test_spread(results, values, metric, text):
    assert results.spread(values, metric) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(41.7, "42 s"), (725, "12 min 05 s"), (3599.6, "1 h 00 min"), (7320, "2 h 02 min")],
)
def test_duration(results, seconds, text):
    assert results.duration(seconds) == text


def test_an_accelerator_is_named_with_its_number(results, tmp_path):
    case = results.CASES["modern"]
    hardware = CPU | {"platform": "tpu", "device_kind": "TPU v5 lite", "device_count": 4}
    save(tmp_path / "run", 0, {"test": {"loss": 1.0}}, hardware=hardware, git_revision=None)
    results.RECORDS.mkdir()
    kept = results.record(case, "", [tmp_path / "run"])
    (results.RECORDS / "modern.json").write_text(json.dumps(kept))
    assert "a run on 4 x TPU v5 lite, at unknown |" in results.table(["modern"])


DOCUMENTS = [path for path in (ROOT / "README.md", *ROOT.glob("docs/**/*.md")) if path.exists()]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_tables_of_this_repository_are_those_of_its_records(document, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks import results

    assert document.read_text() == results.filled(document)


TREE = {
    "config.py": "from lsm.models import A\n\n\ndef get_config():\n    return A()\n",
    "lsm/__init__.py": "",
    "lsm/train/__init__.py": "from lsm.train.fit import fit\n",
    "lsm/train/fit.py": "from lsm.run.result import Result\nfrom lsm.models import rows\n",
    "lsm/run/__init__.py": "",
    "lsm/run/result.py": "RESULT = 1\n",
    "lsm/models/__init__.py": "from lsm.models.a import A\nfrom lsm.models.b import B\n",
    "lsm/models/a.py": "def A():\n    from lsm.models.parts import part\n\n    return part\n",
    "lsm/models/b.py": "B = 1\n",
    "lsm/models/parts.py": "import numpy as np\n\npart = np.pi\n",
    "lsm/models/rows.py": "ROWS = 1\n",
}


@pytest.mark.parametrize(
    ("file", "text", "matters"),
    [
        ("config.py", TREE["config.py"].replace("A()", "A"), True),
        ("lsm/models/a.py", TREE["lsm/models/a.py"] + "A = 2\n", True),
        ("lsm/models/parts.py", "part = 3.14\n", True),  # imported inside a function
        ("lsm/models/rows.py", "ROWS = 2\n", True),  # of what the trainer imports
        ("lsm/models/b.py", "B = 2\n", False),  # its room passes both on
        ("lsm/run/result.py", "RESULT = 2\n", False),  # it tells of a run
        ("config.py", '"""What\nit is."""\n\n# Why.\n' + TREE["config.py"], False),
        ("lsm/models/parts.py", 'import numpy as np\npart = np.pi\n"""It."""\n', False),
    ],
)
def test_the_digest_is_of_the_code_that_a_result_depends_on(
    tmp_path, monkeypatch, file, text, matters
):
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks import sources

    def digest():
        return sources.digest(tmp_path / "config.py", root=tmp_path)

    for name, code in TREE.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(code)
    before = digest()
    (tmp_path / file).write_text(text)
    assert (digest() != before) == matters


def test_the_digest_of_a_shipped_config_is_of_what_it_uses(results):
    from benchmarks import sources

    config = ROOT / "experiments/configs/digits/cnn.py"
    other = ROOT / "experiments/configs/cifar/cnn.py"
    assert sources.digest(config) == sources.digest(config) != sources.digest(other)
    names = {path.relative_to(ROOT).as_posix() for path in sources.closure(config)}
    linear = sources.closure(ROOT / "experiments/configs/linear/descent.py")
    assert ROOT / "experiments/linear.py" in linear
    assert {"lsm/models/cnn.py", "lsm/train/step.py", "lsm/data/digits.py"} <= names
    assert not names & {"lsm/models/gpt.py", "lsm/writers/console.py", "lsm/cost/flops.py"}
