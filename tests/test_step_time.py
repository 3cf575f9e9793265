"""The benchmark of steps: what it measures, what it keeps, and the tables made of that."""

import json
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from benchmarks import step_time, step_time_tables
from benchmarks.step_time_cases import BATCHES, CASES, Case, ResNet
from lsm.models import Sequences, TextClassifier
from lsm.run.result import hardware, versions

ROOT = pathlib.Path(__file__).parents[1]
TINY = Case("tiny", "mlp", batch_size=8, examples=64, log_every=2, turns=3)
SECONDS = {
    "bare": [0.010, 0.020],
    "defaults": [0.012, 0.030],
    "step": [0.011, 0.021],
    "loop": [0.016, 0.024],
    "torch eager contiguous_format": [0.042, 0.042],
    "torch eager channels_last": [0.032, 0.050],
    "torch compiled contiguous_format": [0.020, 0.040],
}


def made(seconds=SECONDS, platform="cpu", **changes):
    where = {"platform": platform, "cpu": "EPYC", "cores": 2, "device_kind": "NVIDIA H100"}
    return {
        "platform": platform,
        "hardware": hardware() | where | {"device_count": 1},
        "versions": versions() | {"jax": "0.12.0"},
        "git_revision": "0123456789abcdef+dirty",
        "torch": "2.13.0",
        "others": 0.01,
        "peak": None,
        "cases": {"CNN": {"flops": 4e12, "seconds": {"float32": seconds}}},
    } | changes


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_tables_are_arithmetic_on_the_record():
    text = step_time_tables.tables(made())
    assert "EPYC, 2 cores; jax 0.12.0, PyTorch 2.13.0; at 0123456789+dirty" in text
    assert "other work meanwhile: 1 % of the CPUs." in text
    ours, peers = [cells(line) for line in text.splitlines() if line.startswith("| CNN")]
    # 12 / 10 (30 / 20), 11 / 10 (21 / 20), 16 / 10 (24 / 20).
    assert ours[2:] == ["10.00 (20.00)", "1.200 (1.500)", "1.100 (1.050)", "1.600 (1.200)"]
    # Of eager's formats that with the shortest time; against the faster of eager and compiled.
    assert peers[2:] == ["16.00 (24.00)", "32.00 (50.00)", "20.00 (40.00)", "0.80 (0.60)"]


def test_a_gpu_s_table_has_its_utilisation_and_no_cpu_s_columns():
    by = {name: SECONDS[name] for name in ("bare", "step", "torch eager contiguous_format")}
    text = step_time_tables.tables(made(by, platform="gpu", peak=1e15))
    assert text.startswith("1 x NVIDIA H100; ") and "defaults" not in text and "loop" not in text
    peers = [cells(line) for line in text.splitlines() if line.startswith("| CNN")][1]
    # The step stands for the loop: 4e12 FLOPs in 11 ms of 1e15 FLOP/s are 36 %; 11 / 42 (21 / 42).
    assert peers[2:] == ["11.00 (21.00)", "42.00 (42.00)", "-", "0.26 (0.50)", "36 %"]


def test_without_pytorch_there_is_one_table():
    by = {name: times for name, times in SECONDS.items() if "torch" not in name}
    assert step_time_tables.tables(made(by, torch=None)).count("|---|\n") == 1


@pytest.fixture
def records(monkeypatch, tmp_path):
    for module in (step_time, step_time_tables):
        monkeypatch.setattr(module, "RECORDS", tmp_path / "records")
    return tmp_path / "records"


def test_write_fills_a_page_and_check_finds_it_stale(records, tmp_path, capsys):
    page = tmp_path / "page.md"
    page.write_text("# Speed\n\n<!-- step_time:cpu -->\n<!-- /step_time -->\n\nThe end.\n")
    assert step_time.main(["check", str(page)]) == 1
    assert "stale tables in" in capsys.readouterr().err
    assert step_time.main(["write", str(page)]) == 0
    assert "Not run yet: `python -m benchmarks.step_time --platform=cpu`" in page.read_text()
    records.mkdir()
    (records / "cpu.json").write_text(json.dumps(made()))
    assert step_time.main(["check", str(page)]) == 1
    assert step_time.main(["write", str(page)]) == 0 == step_time.main(["check", str(page)])
    text = page.read_text()
    assert "Not run yet" not in text and step_time_tables.tables(made()) in text
    assert text.startswith("# Speed\n\n<!--") and text.endswith("-->\n\nThe end.\n")


@pytest.mark.parametrize(
    ("words", "changes", "kept"),
    [
        ([], {}, True),
        ([], {"others": 0.06}, False),
        ([], {"others": None}, False),
        (["--quick"], {}, False),
        (["--only=MLP"], {}, False),
    ],
)
def test_only_a_whole_run_on_a_quiet_machine_is_kept(records, monkeypatch, words, changes, kept):
    monkeypatch.setattr(step_time, "torch_version", lambda python: "2.13.0")
    monkeypatch.setattr(step_time, "record", lambda *_: made(**changes))
    assert step_time.main(words) == 0
    assert (records / "cpu.json").exists() is kept
    assert not kept or json.loads((records / "cpu.json").read_text()) == made()


def test_the_share_of_other_work():
    # In 100 s, all CPUs together worked 60 s, 50 of them for us: 10 of 100 for each CPU.
    share = step_time._others((5.0, 1000.0, 7.0), (105.0, 1060.0, 57.0))
    assert share == pytest.approx(0.1 / step_time.os.cpu_count(), abs=1e-3)
    assert step_time._others(None, None) is None
    before = step_time._cpu_seconds()
    assert before is None or all(
        b >= a for a, b in zip(before, step_time._cpu_seconds(), strict=True)
    )


def test_all_take_turns_and_train_the_same_model():
    measured = step_time.record("cpu", [TINY], None)
    case = measured["cases"]["tiny"]
    # Layers 784-128-10 on 8 rows: a multiply-add is two, and three products but for the first's.
    assert case["flops"] == 2 * 8 * (2 * 784 * 128 + 3 * 128 * 10)
    assert set(case["seconds"]["float32"]) == {"bare", "defaults", "step", "loop"}
    for shortest, median in case["seconds"]["float32"].values():
        assert 0 < shortest <= median


@pytest.mark.slow
def test_runs_with_jax_flax_and_optax_alone(tmp_path):
    code = """
import sys
absent = "typeguard tensorflow_datasets array_record importlib_resources PIL sklearn"
absent += " tensorboardX matplotlib safetensors torch"
for name in absent.split():
    sys.modules[name] = None  # so that importing it fails, and finding it
from benchmarks import step_time, step_time_cases
tiny = step_time_cases.Case("tiny MLP", "mlp", 8, 64, 1, 2)
step_time_cases.CASES["cpu"] = (tiny,)
sys.exit(step_time.main(["--platform=cpu", "--quick"]))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said = done.stderr.splitlines()
    assert [line for line in said if "left out: " in line and "typeguard" in line]
    assert "| model | dtype | bare, ms | bare with XLA's defaults | lsm's step |" in done.stdout
    assert "Not kept" in done.stdout


def test_a_model_that_pytorch_cannot_compile_is_left_out(monkeypatch, capsys):
    class Peer:
        parameters = 101_770

        def __init__(self, python, script, model, size, dtype, device, mode, form):
            self.mode = mode

        def run(self, steps):
            if self.mode == "compiled":
                raise step_time.TorchEndedError("PyTorch's process ended with 1; see above.")
            return 1.0

        def close(self):
            pass

    monkeypatch.setattr(step_time, "Torch", Peer)
    times, _ = step_time.measure(TINY, "float32", "python", loop=False)
    assert times["torch eager contiguous_format"] == [1.0] * 3
    assert not any("compiled" in name for name in times)
    assert "tiny: compiled PyTorch is left out: PyTorch's process ended" in capsys.readouterr().err


def test_another_model_is_refused(monkeypatch):
    monkeypatch.setattr(step_time.Step, "run", lambda self, steps: 1.0)
    bare = type("Bare", (), {"parameters": 7, "run": lambda self, steps: 1.0})
    monkeypatch.setattr(step_time, "Bare", lambda *_: bare())
    with pytest.raises(step_time.DataError, match=r"not the same model: parameters .*'bare': 7"):
        step_time.measure(TINY, "float32", None, loop=False)


def test_no_model_by_that_name(capsys):
    assert step_time.main(["--only=BERT"]) == 1
    assert "--only: 'BERT' is in no name; the models are: MLP" in capsys.readouterr().err


@pytest.mark.parametrize("case", CASES["cpu"] + CASES["gpu"], ids=lambda case: case.name)
def test_cases_hold_together(case):
    assert case.batch_size <= case.examples and case.turns // 6 > 1
    if case.batch_size <= 256:
        batches = case.batches()
        assert len(batches) == BATCHES
        assert {len(column) for batch in batches for column in batch.values()} == {case.batch_size}


@pytest.fixture
def peer():
    """The worker's module, where PyTorch is."""
    pytest.importorskip("torch")
    from benchmarks import step_time_torch

    return step_time_torch


def set_from(module, **arrays):
    """Gives parameters of PyTorch by their names."""
    torch = pytest.importorskip("torch")
    given = dict(module.named_parameters())
    for name, array in arrays.items():
        given[name].data = torch.tensor(np.array(array)).contiguous()


def test_the_lstm_is_pytorch_s(peer):
    torch = pytest.importorskip("torch")
    tokens = np.random.default_rng(0).integers(0, 50, (3, 7), np.int32)
    texts = Sequences(tokens, np.full(3, 7))
    model = TextClassifier(vocabulary=50, outputs=1)
    params = model.init(jax.random.key(0), texts)["params"]
    layers = [params[f"Recurrent_{i}"]["forward"] for i in (0, 1)]
    layers[0]["bias"] = np.linspace(-1, 1, 512, dtype=np.float32)
    theirs = peer.TextClassifier()
    arrays = {"tokens.weight": params["tokens"]["embedding"]}
    for i, layer in enumerate(layers):
        arrays |= {
            f"lstm.weight_ih_l{i}": layer["kernel"].T,
            f"lstm.weight_hh_l{i}": layer["recurrent_kernel"].T,
            f"lstm.bias_ih_l{i}": layer["bias"],
        }
    dense = params["Dense_0"]
    set_from(theirs, **arrays, **{"head.weight": dense["kernel"].T, "head.bias": dense["bias"]})
    expected = theirs(torch.tensor(tokens)).detach().numpy()
    np.testing.assert_allclose(model.apply({"params": params}, texts), expected, atol=1e-5)


def test_the_resnet_is_pytorch_s(peer):
    torch = pytest.importorskip("torch")
    x = np.random.default_rng(0).random((4, 32, 32, 3), np.float32)
    model = ResNet(widths=(8, 16))
    variables = model.init(jax.random.key(0), x)
    params = variables["params"]
    theirs = peer.ResNet(widths=(8, 16))

    def kernel(name):
        return params[name]["kernel"].transpose(3, 2, 0, 1)

    arrays = {"first.weight": kernel("Conv_0"), "first.bias": params["Conv_0"]["bias"]}
    for i in (0, 1):
        arrays[f"stages.{i}.conv_1.weight"] = kernel(f"Conv_{2 * i + 1}")
        arrays[f"stages.{i}.conv_2.weight"] = kernel(f"Conv_{2 * i + 2}")
    set_from(theirs, **arrays, **{"head.weight": params["Dense_0"]["kernel"].T})
    logits, _ = model.apply(variables, x, train=True, mutable=["batch_stats"])
    expected = theirs(torch.tensor(x.transpose(0, 3, 1, 2))).detach().numpy()
    np.testing.assert_allclose(logits, expected, atol=1e-4)
