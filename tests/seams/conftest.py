"""A finished run that others start from."""

import pytest
from user_tasks import experiment

import lsm


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    """The workdir of a finished run with averaged parameters."""
    workdir = tmp_path_factory.mktemp("base") / "run"
    lsm.fit(experiment(), workdir)
    return workdir
