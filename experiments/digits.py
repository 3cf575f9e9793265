"""The digits bundled with scikit-learn, 8x8 pixels: needs no download.

python -m experiments.digits --workdir=runs/digits
"""

import pathlib

from lsm import cli

if __name__ == "__main__":
    cli.main(default=pathlib.Path(__file__).parent / "configs/digits/cnn.py")
