"""BERT: pre-training as a masked language model.

python -m experiments.bert --data_dir=DATA --workdir=runs/bert
"""

import pathlib

from lsm import cli

if __name__ == "__main__":
    cli.main(default=pathlib.Path(__file__).parent / "configs/bert/pretrain.py")
