"""Fixtures of all tests: eight simulated CPU devices, and the real datasets where they are."""

import os
import pathlib

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")
# Most of the time here goes into compiling: without LLVM's optimisations it takes half as long.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

import pytest
from hypothesis import settings

# The same examples every time; what is slow here is a compilation, not the code under test.
settings.register_profile("lsm", max_examples=40, derandomize=True, deadline=None)
settings.load_profile("lsm")

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture(scope="session")
def tfds_dir() -> pathlib.Path:
    """Folder of prepared TFDS datasets: $LSM_TEST_DATA, or ../shared/tfds beside the project."""
    path = pathlib.Path(os.environ.get("LSM_TEST_DATA", ROOT.parent / "shared/tfds"))
    if not path.is_dir():
        pytest.skip(f"needs prepared datasets: no folder {path}; set LSM_TEST_DATA")
    return path


@pytest.fixture(scope="session")
def torchvision():
    """The package, for its models and transforms; skips where it or PyTorch is absent."""
    pytest.importorskip("torch", reason="PyTorch runs the reference")
    return pytest.importorskip("benchmarks.peer", reason="torchvision is the reference").torchvision
