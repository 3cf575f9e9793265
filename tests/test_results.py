import ast
import json
import re
from pathlib import Path

import pytest

from lsm.errors import DataError
from lsm.run.result import Result

ROOT = Path(__file__).resolve().parents[1]
CPU = {"platform": "cpu", "device_kind": "cpu", "device_count": 1, "cpu": "Xeon", "cores": 8}


@pytest.fixture
def results(monkeypatch, tmp_path):
    """The module, which is not part of the installed package, with its records in a new folder."""
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks import results

    monkeypatch.setattr(results, "RECORDS", tmp_path / "records")
    return results


@pytest.fixture
def runs(tmp_path):
    """Three finished runs, seeds 2, 1, 0."""
    folders = [tmp_path / f"run-{seed}" for seed in (2, 1, 0)]
    for folder, seed, accuracy in zip(folders, (2, 1, 0), (0.72, 0.70, 0.71), strict=True):
        save(folder, seed, {"test": {"accuracy": accuracy, "loss": 1.8123 + seed / 1000}})
    return folders


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
    folder.mkdir(exist_ok=True)
    Result(**fields | changes).save(folder)


def add(results, runs, name="cifar_a1", metric="test/accuracy", command="python -m x"):
    about = [f"--name={name}", "--title=A1 | CNN", "--claimed=91.80 %", f"--metric={metric}"]
    results.main(["add", *map(str, runs), *about, f"--command={command}"])


def test_a_record_keeps_what_each_seed_gave(results, runs, tmp_path):
    add(results, runs)
    kept = json.loads((tmp_path / "records" / "cifar_a1.json").read_text())
    assert [(run["seed"], run["value"]) for run in kept["runs"]] == [(0, 0.71), (1, 0.7), (2, 0.72)]
    assert (kept["claimed"], kept["metric"]) == ("91.80 %", "test/accuracy")
    assert str(tmp_path) not in json.dumps(kept), "no path of this machine"


def test_write_fills_the_tables_and_check_is_content_then(results, runs, tmp_path, capsys):
    add(results, runs)
    add(results, runs[:1], name="loss", metric="test/loss", command="")
    readme = tmp_path / "README.md"
    readme.write_text("# x\n<!-- results:cifar_a1, loss -->\nold\n<!-- /results -->\nend\n")
    assert results.main(["check", str(readme)]) == 1
    assert capsys.readouterr().err.startswith(f"error: stale tables in {readme}; ")
    results.main(["write", str(readme)])
    # Accuracies 70, 71, 72 %: mean 71, standard deviation sqrt((1 + 0 + 1) / 2) = 1.
    assert readme.read_text() == (
        "# x\n<!-- results:cifar_a1, loss -->\n"
        "| system | claimed | measured | seeds | time per run | hardware | revision |\n"
        "| --- | --- | --- | --- | --- | --- | --- |\n"
        "| A1 \\| CNN<br>`python -m x` | 91.80 % | test/accuracy 71.00 % ± 1.00 (70.00 to 72.00) "
        "| 3 | 1 min 01 s | Xeon, 8 cores | 0123456789+dirty |\n"
        "| A1 \\| CNN | 91.80 % | test/loss 1.814 | 1 | 1 min 02 s | Xeon, 8 cores "
        "| 0123456789+dirty |\n"
        "<!-- /results -->\nend\n"
    )
    assert results.main(["check", str(readme)]) == 0


def test_write_fills_the_header_of_a_config(results, runs, tmp_path):
    add(results, runs)
    config = tmp_path / "cnn.py"
    config.write_text('"""A net.\n\nMeasured (cifar_a1): old\n  older\n"""\n')
    results.main(["write", str(config)])
    written = (
        '"""A net.\n\n'
        "Measured (cifar_a1): test/accuracy 71.00 % ± 1.00 (70.00 to 72.00), 3 seeds,\n"
        "  1 min 01 s a run on Xeon, 8 cores, at 0123456789+dirty.\n"
        '"""\n'
    )
    assert config.read_text() == written
    results.main(["write", str(config)])
    assert config.read_text() == written


CONFIGS = sorted((ROOT / "experiments/configs").rglob("*.py"))
NOT_RUN_YET = {"modern"}
"""To its end: minutes an epoch on two cores."""


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_the_header_of_a_shipped_config_is_its_record(config, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks import plans, results

    header = ast.get_docstring(ast.parse(config.read_text()))
    assert re.search(r"^ *python -m experiments\.\w+ ", header, re.M)
    told = re.search(r"^(Measured|Planned) \(\w+\): ", header, re.M)
    assert (told is None) == (config.stem in NOT_RUN_YET)
    assert config.read_text() == results.filled(config) == plans.filled(config)


def test_check_notices_a_figure_changed_by_hand(results, runs, tmp_path, capsys):
    add(results, runs)
    readme = tmp_path / "README.md"
    readme.write_text("<!-- results:cifar_a1 -->\n<!-- /results -->\n")
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
        ("<!-- results:cifar_a2 -->\n<!-- /results -->\n", "there is cifar_a1. Did you mean"),
        ("<!-- results:cifar_a1 -->\nno end\n", "is not closed"),
        ("<!-- results:cifar_a1 -->\n" * 2 + "<!-- /results -->\n", "is not closed"),
    ],
)
def test_a_wrong_marker_is_one_line_and_the_document_untouched(
    results, runs, tmp_path, capsys, text, message
):
    add(results, runs)
    readme = tmp_path / "README.md"
    readme.write_text(text)
    assert results.main(["write", str(readme)]) == 1
    assert message in capsys.readouterr().err
    assert readme.read_text() == text


def test_the_same_seed_twice_is_refused(results, runs):
    with pytest.raises(DataError, match="seed 1 is there already"):
        results.record("t", "c", "test/accuracy", "", [*runs, runs[1]])


def test_an_interrupted_run_is_refused(results, runs):
    save(runs[0], 2, {"test": {"accuracy": 0.9}}, stopped="interrupted")
    with pytest.raises(DataError, match="interrupted at step 100"):
        results.record("t", "c", "test/accuracy", "", runs)


def test_an_unknown_metric_names_those_that_are_there(results, runs):
    with pytest.raises(DataError, match=r"it has test/accuracy, test/loss\. Did you mean"):
        results.record("t", "c", "test/acuracy", "", runs)


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
    hardware = CPU | {"platform": "tpu", "device_kind": "TPU v5 lite", "device_count": 4}
    save(tmp_path / "run", 0, {"test": {"loss": 1.0}}, hardware=hardware, git_revision=None)
    kept = results.record("t", "c", "test/loss", "", [tmp_path / "run"])
    assert "| 4 x TPU v5 lite | unknown |" in results.table([kept])


DOCUMENTS = [path for path in (ROOT / "README.md", *ROOT.glob("docs/**/*.md")) if path.exists()]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_tables_of_this_repository_are_those_of_its_records(document, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks import results

    assert document.read_text() == results.filled(document)
