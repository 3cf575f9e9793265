"""IMDB reviews: is a review of a film good or bad?

python -m experiments.imdb --workdir=runs/imdb
"""

import pathlib

from lsm import cli

if __name__ == "__main__":
    cli.main(default=pathlib.Path(__file__).parent / "configs/imdb/best.py")
