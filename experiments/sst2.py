"""SST-2 of GLUE: is a sentence of a review of a film good or bad?

python -m experiments.sst2 --workdir=runs/sst2
"""

import pathlib

from lsm import cli

if __name__ == "__main__":
    cli.main(default=pathlib.Path(__file__).parent / "configs/sst2/lstm.py")
