"""ResNet-50 on ImageNet, 90 epochs at batch 1024 (Goyal et al. 2017), a cosine, smoothed labels.

Published (arXiv:1706.02677, where the rate falls in three steps): test/accuracy 76.3 %.

    python -m launch.plan --config=experiments/configs/imagenet/resnet50.py --topology=v5e:4x4
    python -m experiments.imagenet --config=experiments/configs/imagenet/resnet50.py --data_dir=DATA

Planned (imagenet_resnet50): on 16 v5e chips 3.1 GiB of 15.8 GiB each, a step of 0.0171 to 0.0515 s,
  44 to 15 % MFU, 59,711 to 19,867 examples/s, by libtpu 0.0.52; not run on them here.
"""

from lsm import Data, Evaluation, Experiment, Train
from lsm.data import CenterCrop, RandomFlip, RandomResizedCrop, Tfds
from lsm.models.resnet import resnet50
from lsm.optim import Cosine, Momentum, WarmUp
from lsm.tasks import Classification


def get_config(arg=None):
    return Experiment(
        name="imagenet_resnet50",
        task=Classification(
            model=resnet50(zero_init=True, dtype="bfloat16"),
            mean=(0.485, 0.456, 0.406),
            std=(0.229, 0.224, 0.225),
            label_smoothing=0.1,
        ),
        data=Data(
            source=Tfds("imagenet2012"),
            test="validation",  # the labels of its test split are secret
            augment=(RandomResizedCrop(224), RandomFlip()),
            evaluate=(CenterCrop(224, resize=256),),
            workers=16,
        ),
        optimizer=Momentum(
            learning_rate=0.4,  # 0.1 for each 256 examples
            nesterov=True,
            weight_decay=1e-4,
            schedule=WarmUp(6256, then=Cosine()),  # 5 epochs
        ),
        # 90 epochs, as a count that is known without the data, for the plan.
        train=Train(examples=90 * 1_281_167, batch_size=1024),
        evaluation=Evaluation(monitor="accuracy"),
    )
