"""Linear regression by gradient descent, by hand in the source: a second each.

python -m experiments.linear --workdir=runs/linear
"""

import pathlib

from lsm import cli

if __name__ == "__main__":
    cli.main(default=pathlib.Path(__file__).parent / "configs/linear/descent.py")
