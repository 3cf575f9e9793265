"""Multi30k: descriptions of pictures, translated from German to English.

python -m experiments.multi30k --workdir=runs/multi30k
"""

import pathlib

from lsm import cli

if __name__ == "__main__":
    cli.main(default=pathlib.Path(__file__).parent / "configs/multi30k/transformer.py")
