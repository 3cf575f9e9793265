"""Tables of speed are arithmetic on their records, which say where they are from."""

from benchmarks import airbench
from benchmarks import input as inputs

ORIGIN = {
    "hardware": {"platform": "cpu", "cpu": "a CPU", "cores": 2},
    "versions": {"jax": "0.12.0", "PyTorch": "2.13"},
    "git_revision": "0123456789abcdef",
}
TOLD = "a CPU, 2 cores; jax 0.12.0, PyTorch 2.13; at 0123456789."


def rows(text):
    lines = [line for line in text.splitlines() if line.startswith("|")][2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_steps_of_airbench():
    seconds = {"lsm": [2.5, 2.0, 4.0], "PyTorch, eager": [4.5, 9.0, 4.0]}
    text = airbench.table(ORIGIN | {"batch_size": 7, "seconds": seconds})
    assert text.startswith(f"Batches of 7; {TOLD}")
    assert rows(text) == [
        ["lsm", "2.00", "2.50", "1.00"],
        ["PyTorch, eager", "4.00", "4.50", "0.50"],
    ]


def test_pictures_a_second():
    rates = {"32x32": {"lsm": 3000.4, "DataLoader": 2000.0}, "JPEG": {"lsm": 10.0}}
    text = inputs.table(ORIGIN | {"rates": rates})
    assert text.startswith(TOLD)
    assert rows(text) == [["32x32", "3,000", "2,000", "1.50"], ["JPEG", "10", "", ""]]
