"""The record of what train steps take to compile, and the warnings that `check` prints."""

import copy

import jax
import numpy as np
import pytest

from benchmarks import cases, sources
from benchmarks import compile as compiling


def test_every_shipped_config_is_measured():
    files = {name.partition(":")[0] for name in compiling.configs()}
    folder = sources.ROOT / cases.CONFIGS
    assert files == {path.relative_to(folder).as_posix() for path in cases.shipped()}
    assert "finetune/smollm2.py" not in files  # whose data is the reader's own
    assert "mnist/mlp_softmax.py:faulty" in compiling.configs()


@pytest.mark.parametrize("config", compiling.configs())
def test_shapes_are_known_without_data(config):
    path = sources.ROOT / cases.CONFIGS / config
    experiment = compiling.config_flags.load(str(path))
    batch, horizon = compiling.shapes(experiment)
    assert {x.shape[0] for x in batch.values()} == {experiment.train.batch_size}
    assert horizon.steps >= 1
    experiment.task.check({name: np.zeros((1, *x.shape[1:]), x.dtype) for name, x in batch.items()})


def test_equations_of_inner_jaxprs_count():
    def one(x):
        return x * 2 + 1

    def many(x):
        return jax.lax.scan(lambda x, _: (jax.jit(one)(x), None), x, length=3)[0]

    # A scan, in it a call, in it a product and a sum.
    assert compiling.equations(jax.make_jaxpr(many)(1.0)) == 4


def test_what_is_recorded_is_warned_of_where_it_grows_by_half():
    config = "linear/descent.py:slope"
    new = {
        "yardstick": dict.fromkeys(compiling.STAGES, 1.0),
        "configs": {config: compiling.measure(config)},
    }
    figures = new["configs"][config]
    assert all(figures[name] > 0 for name in (*compiling.STAGES, *compiling.STAGES.values()))
    assert list(compiling.warnings(new, new)) == []
    old = copy.deepcopy(new)
    old["configs"][config]["instructions"] = figures["instructions"] // 2
    told = f"{config}: compile: {figures['instructions']:,} instructions; {figures['instructions'] // 2:,} were recorded."
    assert list(compiling.warnings(old, new)) == [told]


def test_seconds_are_corrected_for_the_speed_of_the_machine():
    sizes = dict.fromkeys(compiling.STAGES.values(), 10)

    def record(yardstick, seconds):
        stages = dict.fromkeys(compiling.STAGES, seconds)
        return {
            "yardstick": dict.fromkeys(compiling.STAGES, yardstick),
            "configs": {"a.py": stages | sizes},
        }

    old = record(1.0, 4.0)
    assert list(compiling.warnings(old, record(2.0, 8.0))) == []  # a machine half as fast
    told = [f"a.py: {stage}: 8.0 CPU seconds; 4.0 by the record." for stage in compiling.STAGES]
    assert list(compiling.warnings(old, record(1.0, 8.0))) == told
    assert list(compiling.warnings(record(1.0, 0.1), record(1.0, 0.4))) == []  # noise


def test_the_table_is_that_of_the_record_and_leaves_out_what_was_not_compiled(
    tmp_path, monkeypatch
):
    record = tmp_path / "compile.json"
    monkeypatch.setattr(compiling, "RECORD", record)
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- compile -->\nold\n<!-- /compile -->\nb\n")
    record.write_text(
        '{"jax": "0.12", "cpu": "Xeon", "configs": {"gpt/a.py":'
        ' {"trace": 1.26, "equations": 1200, "lower": 0.3, "operations": 7}}}'
    )
    assert compiling.main(["write", str(page)]) == 0
    assert page.read_text() == (
        "a\n<!-- compile -->\n"
        "| config | equations | operations | instructions | trace, CPU s | lower, CPU s | compile, CPU s |\n"
        "|---|---|---|---|---|---|---|\n"
        "| `gpt/a.py` | 1,200 | 7 | - | 1.26 | 0.30 | - |\n"
        "\nOn Xeon, jax 0.12.\n<!-- /compile -->\nb\n"
    )


def test_a_check_without_a_record_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(compiling, "RECORD", tmp_path / "compile.json")
    assert compiling.main(["check"]) == 1
    assert capsys.readouterr().err.endswith("compile.json is not there; `run` makes it.\n")
    assert compiling.main(["chek"]) == 1
    assert "run, write, check" in capsys.readouterr().err
