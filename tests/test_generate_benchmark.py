"""The table of `benchmarks.generate`: arithmetic on its record, and in the docs as it is there."""

import pytest

from benchmarks import generate
from lsm.errors import ConfigError, DataError

RECORD = {
    "asked": {"model": "M", "prompt_tokens": 3, "tokens": 9},
    "hardware": {"platform": "cpu", "cpu": "a CPU", "cores": 2},
    "versions": {"jax": "0.12.0", "CTranslate2": "4.8"},
    "git_revision": "0123456789abcdef",
    "most": 40e9,
    "batches": {"4": {"lsm": [0.1, 0.02, 400e6], "CTranslate2": [0.2, 0.01, 400e6]}},
}


def test_the_table_is_arithmetic_on_the_record():
    text = generate.tables(RECORD)
    assert "M; prompts of 3 tokens, 9 written, float32; 40.0 GB/s are read at most." in text
    assert "a CPU, 2 cores; jax 0.12.0, CTranslate2 4.8; at 0123456789." in text
    ours, theirs = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in text.splitlines()
        if line.startswith("| 4")
    ]
    # 4 / 0.02 tokens a second; 400 MB in 0.02 s.
    assert ours == ["4", "lsm", "100", "200.0", "1.00", "20.0", "50 %"]
    assert theirs == ["4", "CTranslate2", "200", "400.0", "0.50", "40.0", "100 %"]


def test_sizes_are_numbers():
    assert generate._sizes(["1", "8"]) == [1, 8]
    with pytest.raises(ConfigError, match=r"--batch_sizes: 1,a given; numbers from 1"):
        generate._sizes(["1", "a"])


def test_another_model_is_not_compared():
    same = {"lsm": [[1, 2, 3, 4, 5]], "CTranslate2": [[1, 2, 3, 4, 6]]}  # a near tie, later on
    generate._check_same(same)
    with pytest.raises(DataError, match="transformers writes other tokens than lsm"):
        generate._check_same(same | {"transformers": [[1, 2, 0, 4, 5]]})
