"""What is installed: extras that bring the right JAX; a wheel and an sdist that lack nothing."""

import importlib.metadata
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile

import pytest

from launch import command

ROOT = pathlib.Path(__file__).parents[1]
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
PACKAGES = ("lsm", "experiments", "launch")
ALONGSIDE = ("tests", "docs", "benchmarks")
FILES = ("README.md", "LICENSE", "CONTRIBUTING.md", "MANIFEST.in", "pyproject.toml")


@pytest.mark.parametrize("name", ["cpu", "cuda", "tpu"])
def test_each_platform_has_an_extra_that_jax_knows(name):
    """Of one that JAX does not know, pip only warns, and installs JAX for the CPU."""
    (extra,) = [re.fullmatch(r"jax\[(\w+)\]", needed)[1] for needed in EXTRAS[name]]
    assert extra in importlib.metadata.metadata("jax").get_all("Provides-Extra")
    assert f"'.[{name}]'" in command.install(name)[-1]


def run(*words, **options):
    done = subprocess.run(words, capture_output=True, text=True, timeout=600, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The wheel, which is made from the sdist, and the sdist."""
    needed = ("build", "setuptools", "twine", "pip")
    missing = [name for name in needed if not any(importlib.metadata.distributions(name=name))]
    if missing:
        pytest.skip(f"needs pip install {' '.join(missing)}")
    folder = tmp_path_factory.mktemp("built")
    clean = shutil.ignore_patterns("__pycache__")
    for name in (*PACKAGES, *ALONGSIDE):  # setuptools writes beside what it reads
        shutil.copytree(ROOT / name, folder / name, ignore=clean)
    for name in FILES:
        shutil.copy(ROOT / name, folder)
    run(sys.executable, "-m", "build", "--no-isolation", cwd=folder)
    (wheel,), (sdist,) = (folder / "dist").glob("*.whl"), (folder / "dist").glob("*.tar.gz")
    return wheel, sdist


def files_of(*folders):
    found = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file()]
    return {str(path.relative_to(ROOT)) for path in found if "__pycache__" not in path.parts}


@pytest.mark.slow
def test_wheel_and_sdist_hold_every_file(built):
    wheel, sdist = built
    run(sys.executable, "-m", "twine", "check", "--strict", *map(str, built))
    packed = [name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name]
    assert {*packed} == files_of(*PACKAGES)
    with tarfile.open(sdist) as archive:
        names = {one.name.partition("/")[2] for one in archive if one.isfile()}
    assert files_of(*PACKAGES, *ALONGSIDE) | {*FILES} <= names


@pytest.mark.slow
def test_an_installed_experiment_runs_outside_a_clone(built, tmp_path):
    """In an environment that lies, as most do, in somebody else's repository."""
    (tmp_path / "notes").touch()
    author = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
    for words in (("init",), ("add", "notes"), (*author, "commit", "--message=first")):
        run("git", *words, cwd=tmp_path)
    venv.create(tmp_path / "venv", symlinks=True)
    python = tmp_path / "venv/bin/python"
    (libraries,) = tmp_path.glob("venv/lib/python*/site-packages")
    # What lsm needs is not installed again; of an editable lsm there, its *.pth file is not read.
    needed = [path for path in sys.path if path.endswith("-packages")]
    (libraries / "needed.pth").write_text("\n".join(needed))
    install = ("pip", "--python", python, "install", "--no-deps", "--no-index", built[0])
    run(sys.executable, "-m", *install)

    def installed(*words):
        environment = {"PATH": os.environ["PATH"], "JAX_PLATFORMS": "cpu"}
        return run(python, *words, cwd=tmp_path, env=environment)

    assert str(libraries) in installed("-c", "import lsm; print(lsm.__file__)")
    assert "--config.train.steps: int" in installed("-m", "experiments.digits", "--config_help")
    installed("-m", "experiments.digits", "--workdir=run", "--config.train.steps=2")
    assert "done already" in installed("-m", "lsm", "--workdir=run")
    result = json.loads((tmp_path / "run/result.json").read_text())
    assert (result["step"], result["git_revision"]) == (2, None)
