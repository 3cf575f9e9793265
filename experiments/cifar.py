"""CIFAR-10: small pictures of ten kinds of things.

python -m experiments.cifar --workdir=runs/cifar
"""

import pathlib

from lsm import cli

if __name__ == "__main__":
    cli.main(default=pathlib.Path(__file__).parent / "configs/cifar/cnn.py")
