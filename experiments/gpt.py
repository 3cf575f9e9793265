"""Decoder-only language models on packed tokens: GPT-2 to 70B, dense or of experts.

python -m experiments.gpt --config=experiments/configs/gpt/gpt2_124m.py --data_dir=DATA
"""

import pathlib

from lsm import cli

if __name__ == "__main__":
    cli.main(default=pathlib.Path(__file__).parent / "configs/gpt/gpt2_124m.py")
