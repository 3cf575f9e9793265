"""Pictures of one's own, one folder a class.

python -m experiments.folder --config=experiments/configs/folder/simple_cnn.py:PATH
"""

import pathlib

from lsm import cli

if __name__ == "__main__":
    cli.main(default=pathlib.Path(__file__).parent / "configs/folder/simple_cnn.py")
