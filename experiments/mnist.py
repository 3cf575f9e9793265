"""MNIST: handwritten digits of 28x28 pixels.

python -m experiments.mnist --workdir=runs/mnist
"""

import pathlib

from lsm import cli

if __name__ == "__main__":
    cli.main(default=pathlib.Path(__file__).parent / "configs/mnist/mlp.py")
