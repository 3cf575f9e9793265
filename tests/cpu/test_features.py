"""What is said of bfloat16, by processors as /proc/cpuinfo describes them."""

import logging

import pytest

import lsm
from lsm import cpu
from lsm.cpu import features
from lsm.data import Digits
from lsm.models import MLP
from lsm.optim import Adam
from lsm.tasks import Classification

ZEN_3 = "model name\t: AMD EPYC\nflags\t\t: fpu sse2 avx avx2 fma\n"
ZEN_4 = "model name\t: AMD EPYC\nflags\t\t: fpu sse2 avx2 avx512f avx512_bf16\n"
GRAVITON_2 = "processor\t: 0\nFeatures\t: fp asimd asimdhp\n"
GRAVITON_3 = "processor\t: 0\nFeatures\t: fp asimd asimdhp sve bf16 i8mm\n"


@pytest.fixture
def on(monkeypatch, tmp_path):
    """Returns a function that makes this a machine with such a /proc/cpuinfo; None: with none."""

    def become(cpuinfo):
        path = tmp_path / "cpuinfo"
        if cpuinfo is not None:
            path.write_text(cpuinfo)
        monkeypatch.setattr(features, "CPUINFO", path)

    return become


@pytest.mark.parametrize(
    ("cpuinfo", "emulated"),
    [
        (ZEN_3, True),
        (ZEN_4, False),
        (2 * ZEN_4, False),
        (GRAVITON_2, True),
        (GRAVITON_3, False),
        ("processor\t: 0\n", False),
        (None, False),
    ],
)
def test_who_emulates_bfloat16(on, cpuinfo, emulated):
    on(cpuinfo)
    assert cpu.emulates_bfloat16() is emulated


@pytest.mark.parametrize(
    ("cpuinfo", "alone"),
    [
        (ZEN_3, True),
        (ZEN_4, False),
        (GRAVITON_2, False),
        ("processor\t: 0\n", False),
        (None, False),
    ],
)
def test_which_library_computes_products(on, cpuinfo, alone):
    on(cpuinfo)
    cpu.compiler_options.cache_clear()
    one, some, many = (cpu.compiler_options(calls) for calls in ("one", "some", "many"))
    cpu.compiler_options.cache_clear()
    # Programs with oneDNN are those that XLA cannot keep.
    assert ("xla_cpu_use_onednn" in many) is not alone
    assert (many == some) is alone
    assert "xla_cpu_use_onednn" not in some
    assert one == some | {"xla_backend_optimization_level": 1}


@pytest.mark.parametrize(
    ("dtype", "cpuinfo", "warnings"),
    [("bfloat16", ZEN_3, 1), ("bfloat16", ZEN_4, 0), ("float32", ZEN_3, 0)],
)
def test_a_run_warns_once_of_emulation(on, dtype, cpuinfo, warnings, tmp_path, caplog):
    on(cpuinfo)
    experiment = lsm.Experiment(
        name="small",
        task=Classification(model=MLP(widths=(8,), dtype=dtype)),
        data=lsm.Data(source=Digits(), train="train"),
        optimizer=Adam(learning_rate=1e-3),
        train=lsm.Train(steps=2, batch_size=8),
        evaluation=lsm.Evaluation(every=2),
        checkpoint=lsm.Checkpoint(every=0),
        writers=(),
    )
    with caplog.at_level(logging.WARNING, "lsm"):
        lsm.fit(experiment, tmp_path / "run")
    assert [record.message.split(":")[0] for record in caplog.records] == ["bfloat16"] * warnings
