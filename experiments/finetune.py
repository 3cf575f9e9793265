"""Fine-tuning: a model that is there learns from conversations, or which of two answers is better.

python -m experiments.finetune --workdir=runs/mine --config.data.source.path=my_chats.jsonl
"""

import pathlib

from lsm import cli

if __name__ == "__main__":
    cli.main(default=pathlib.Path(__file__).parent / "configs/finetune/smollm2.py")
