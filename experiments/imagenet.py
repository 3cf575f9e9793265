"""ImageNet: 1.28 million photographs of a thousand kinds of things.

python -m experiments.imagenet --config=experiments/configs/imagenet/resnet50.py --data_dir=DATA
"""

import pathlib

from lsm import cli

if __name__ == "__main__":
    cli.main(default=pathlib.Path(__file__).parent / "configs/imagenet/resnet50.py")
