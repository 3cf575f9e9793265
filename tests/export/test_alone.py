"""An exported model where nothing is installed but jax, and lsm without what it needs."""

import importlib.metadata
import json
import pathlib
import re
import subprocess
import sys
import venv

import numpy as np
import pytest

from lsm.export.write import write
from lsm.generate import GREEDY
from tests.export.exports import columns, trained

ROOT = pathlib.Path(__file__).parents[2]
CODE = """
import importlib.util, json, sys
import numpy as np
assert importlib.util.find_spec("flax") is importlib.util.find_spec("absl") is None
import lsm.export
folder, given = sys.argv[1:]
model = lsm.export.load(folder)
given = dict(np.load(given))
if "ids" in given:
    print(json.dumps([ids.tolist() for ids in model.generate(given["ids"], max_tokens=5)]))
else:
    print(json.dumps({name: x.tolist() for name, x in model(given).items()}))
print(json.dumps(sorted({name.split(".")[0] for name in sys.modules})))
"""


def needed(name, known):
    """The names of a distribution and of all that it needs."""
    if (name := re.sub(r"[-_.]+", "-", name.lower())) in known:
        return
    known.add(name)
    for line in importlib.metadata.requires(name) or ():
        if "extra ==" not in line:
            needed(re.match(r"[\w.-]+", line)[0], known)


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    """Python of an environment that has jax and what jax needs, and nothing else."""
    folder, known = tmp_path_factory.mktemp("alone"), set()
    venv.create(folder, symlinks=True)
    (site,) = folder.glob("lib/python*/site-packages")
    needed("jax", known)
    for name in known:
        for file in importlib.metadata.files(name):
            top, where = file.parts[0], file.locate()
            if top not in ("..", "bin") and not (site / top).exists():
                (site / top).symlink_to(
                    where.parents[len(file.parts) - 2] if len(file.parts) > 1 else where
                )
    (site / "lsm").symlink_to(ROOT / "lsm")
    return folder / "bin/python"


def run(python, folder, given, tmp_path):
    np.savez(tmp_path / "given.npz", **given)
    words = [python, "-c", CODE, folder, tmp_path / "given.npz"]
    done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found, modules = map(json.loads, done.stdout.splitlines())
    return found, {*modules} - sys.stdlib_module_names


@pytest.mark.slow
def test_it_answers_with_jax_alone(python, tmp_path):
    model = trained("cnn")
    write(model, tmp_path / "out")
    image = columns("cnn", 3)["image"]
    found, modules = run(python, tmp_path / "out", {"image": image}, tmp_path)
    expected = model.predict({"image": image})
    # Not to the bit: the tests compile without LLVM's optimisations.
    np.testing.assert_allclose(found["probability"], expected["probability"], atol=1e-6)
    assert found["label"] == expected["label"].tolist()
    others = {"flax", "optax", "absl", "safetensors", "flatbuffers", "orbax", "tokenizers", "PIL"}
    assert "lsm" in modules and not modules & others


@pytest.mark.slow
def test_it_writes_with_jax_alone(python, tmp_path):
    model = trained("gpt")
    write(model, tmp_path / "out")
    found, _ = run(python, tmp_path / "out", {"ids": np.array([[1, 2, 3]])}, tmp_path)
    (text,) = model.generate("bcd", max_tokens=5, sampling=GREEDY)
    assert found == [list(text.tokens)]
