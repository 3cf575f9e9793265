"""The benchmark of saves and restores, on a state of a few kB."""

import pytest

from benchmarks import checkpoint
from lsm.models import GPT, Transformer


@pytest.fixture(scope="module")
def small():
    made = checkpoint.program(
        GPT(16, context=8, transformer=Transformer(layers=1, width=8, heads=1))
    )
    return made, checkpoint.random_state(made)


def test_lsm_is_timed_and_its_files_are_gone(small, tmp_path):
    contenders = {"lsm": checkpoint.Lsm(*small)}
    times = checkpoint.measure(contenders, small[1], tmp_path, turns=2)
    assert all(len(times["lsm"][what]) == 2 for what in ("loop waits", "save", "restore", "again"))
    assert 0 < times["lsm"]["loop waits"][0] <= times["lsm"]["save"][0]
    assert len(times["copy"]["loop waits"]) == 2 and not times["copy"]["save"]
    assert not list(tmp_path.iterdir())


def test_states_are_random_throughout(small):
    """Zeros, as of moments at the start, would be saved faster than any real state."""
    for leaf in checkpoint.floats(small[1]):
        assert leaf.std() > 0.3


@pytest.mark.slow
def test_pytorch_has_the_same_bytes_and_answers(small, tmp_path):
    torch = pytest.importorskip("torch")
    assert checkpoint.torch_version(checkpoint.sys.executable) == torch.__version__
    with checkpoint.peers(checkpoint.sys.executable, small[1]) as peers:
        times = checkpoint.measure(peers, small[1], tmp_path, turns=1)
    for name in checkpoint.PEERS:
        assert all(times[name][what][0] > 0 for what in ("loop waits", "save", "restore", "again"))
    waits = times["torch.save"]
    assert waits["loop waits"] == waits["save"]  # it has no background


def test_tables_give_speeds_and_lsm_s_time_over_another_s():
    seconds = {"loop waits": [0.1, 0.3], "save": [2.0], "restore": [1.0], "again": [0.5]}
    slow = {what: [2 * x for x in times] for what, times in seconds.items()}
    copy = {"loop waits": [0.05], "save": [], "restore": [], "again": []}
    times = {"1 GB": {"lsm": seconds, "torch.save": slow, "copy": copy}}
    rows = checkpoint.speeds_table(times, {"1 GB": 10**9})
    assert rows[1] == ["1 GB", "lsm", "0.100", "0.50", "1.00", "2.00"]
    assert rows[3] == ["1 GB", "copy", "0.050", "-", "-", "-"]
    ratios = checkpoint.ratios_table(times)
    assert ratios[1] == ["1 GB", "torch.save"] + 4 * ["0.50 (0.50)"]
    assert ratios[2] == ["1 GB", "copy", "2.00 (4.00)", "-", "-", "-"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--only=3"], "--only: '3' is in no name; they are: 0.2 GB, 1 GB."),
        (["--folder=no/such"], "--folder: 'no/such' is no folder."),
    ],
)
def test_a_slip_is_one_line(argv, message, capsys):
    assert checkpoint.main(argv) == 1
    assert capsys.readouterr().err == f"error: {message}\n"
