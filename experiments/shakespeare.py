"""Tiny Shakespeare: a character-level language model.

python -m experiments.shakespeare --workdir=runs/shakespeare
"""

import pathlib

from lsm import cli

if __name__ == "__main__":
    cli.main(default=pathlib.Path(__file__).parent / "configs/shakespeare/gpt.py")
