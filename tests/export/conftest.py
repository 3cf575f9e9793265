"""An environment with jax2onnx, made as the documentation says, and a run to convert."""

import json
import pathlib
import re
import shlex
import subprocess
import sys

import pytest

import lsm
from lsm.config import flags

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="session")
def onnx_python(tmp_path_factory):
    """Its interpreter; skips where the packages cannot be had."""
    home = tmp_path_factory.mktemp("onnx")
    told = re.search(
        r"^    (onnx/bin/pip install jax2onnx.*)$", (ROOT / "docs/onnx.md").read_text(), re.M
    )
    subprocess.run([sys.executable, "-m", "venv", home], check=True)
    words = [str(home / "bin/pip"), *shlex.split(told[1])[1:], "--quiet"]
    if subprocess.run(words).returncode:
        pytest.skip("needs jax2onnx, which cannot be installed here")
    # As `pip install --no-deps .` would, without a copy.
    (site,) = home.glob("lib/python*/site-packages")
    (site / "lsm.pth").write_text(f"{ROOT}\n")
    return home / "bin/python"


@pytest.fixture(scope="session")
def digits(tmp_path_factory):
    """The workdir of a run on digits that knows them."""
    workdir = tmp_path_factory.mktemp("digits")
    made = flags.load(str(ROOT / "experiments/configs/digits/cnn.py"), {"train.epochs": "6"})
    lsm.fit(made, workdir)
    return workdir


@pytest.fixture(scope="session")
def convert(onnx_python):
    """Runs a module of the room there; returns what it printed."""

    def run(module, *words, fails=False):
        command = [onnx_python, "-m", module, *map(str, words)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert bool(done.returncode) == fails, done.stderr
        return done.stderr if fails else done.stdout

    return run


@pytest.fixture(scope="session")
def answers(onnx_python):
    """Asks an ONNX file by onnxruntime there: columns to what it says, as lists."""
    script = """
import json, sys
import numpy as np, onnxruntime
options = onnxruntime.SessionOptions()
options.log_severity_level = 3
session = onnxruntime.InferenceSession(sys.argv[1], options)
kinds = {x.name: x.type for x in session.get_inputs()}
dtypes = {"tensor(uint8)": np.uint8, "tensor(int32)": np.int32, "tensor(float)": np.float32}
given = {n: np.array(x, dtypes[kinds[n]]) for n, x in json.load(sys.stdin).items()}
names = [x.name for x in session.get_outputs()]
print(json.dumps({n: x.tolist() for n, x in zip(names, session.run(names, given))}))
"""

    def ask(file, batch):
        given = json.dumps({name: x.tolist() for name, x in batch.items()})
        words = [onnx_python, "-c", script, str(file)]
        done = subprocess.run(words, input=given, capture_output=True, text=True, check=True)
        return json.loads(done.stdout)

    return ask
