"""Claims of a file: between processes, within one, and after a death."""

import subprocess
import sys

import pytest

from lsm.errors import TrainingError
from lsm.files import exclusive

TAKEN = TrainingError("taken")
OTHER = """
import fcntl, sys
file = open(sys.argv[1], "a")
try:
    fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
except OSError:
    sys.exit("refused")
print("held", flush=True)
sys.stdin.read()
"""


def other(path):
    """Another process that wants the file; returns it, and whether it holds the file."""
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        [sys.executable, "-c", OTHER, str(path)], stdin=pipe, stdout=pipe, stderr=pipe
    )
    return process, process.stdout.readline() == b"held\n"


def refused(path):
    process, held = other(path)
    process.communicate()
    return not held


def test_another_process_is_refused_until_the_claim_ends(tmp_path):
    path = tmp_path / ".lock"
    with exclusive(path, TAKEN):
        assert refused(path)
    assert path.exists() and not refused(path)


def test_what_another_process_holds_is_refused_until_it_dies(tmp_path):
    path = tmp_path / ".lock"
    process, held = other(path)
    assert held
    with pytest.raises(TrainingError, match="taken"), exclusive(path, TAKEN):
        pass
    process.kill()
    process.communicate()
    with exclusive(path, TAKEN):
        assert refused(path)


def test_a_second_claim_of_one_process_is_refused_and_does_not_end_the_first(tmp_path):
    path = tmp_path / ".lock"
    (tmp_path / "link").symlink_to(tmp_path)
    with exclusive(path, TAKEN):
        for again in (path, tmp_path / "link/.lock"):
            with pytest.raises(TrainingError, match="taken"), exclusive(again, TAKEN):
                pass
        assert refused(path)
    with exclusive(path, TAKEN), exclusive(tmp_path / "another", TAKEN):
        pass


def test_a_claim_ends_with_an_error_inside(tmp_path):
    with pytest.raises(KeyError), exclusive(tmp_path / ".lock", TAKEN):
        raise KeyError
    assert not refused(tmp_path / ".lock")


def test_a_file_that_cannot_be_made_is_one_line(tmp_path):
    with (
        pytest.raises(TrainingError, match="none/.lock: cannot be written: No such file"),
        exclusive(tmp_path / "none/.lock", TAKEN),
    ):
        pass
