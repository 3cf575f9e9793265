"""Any folder of pictures, one folder a class, by a network that has learnt from CIFAR-10.

It begins as the best of `cifar/modern.py` does, in runs/modern unless --config.start.path says
another, with a new last layer. Its features are means over the picture, so it can take pictures of
64 x 64 where that one had 32 x 32. PATH is as for simple_cnn.py; without it, hymenoptera.

    python -m experiments.cifar --config=experiments/configs/cifar/modern.py --workdir=runs/modern
    python -m experiments.folder --config=experiments/configs/folder/transfer.py --data_dir=DIR

Measured (folder_transfer): validation/accuracy 79.74 % ± 1.73 (78.43 to 81.70), 3 seeds, 31 s a
  run, 50 s of CPU time, on AMD EPYC, 2 cores, at 24066d8364.
"""

from experiments.folder import pictures
from lsm import Evaluation, Experiment, Start, Train
from lsm.data import RandomCrop, RandomFlip
from lsm.evaluate import F1, Confusion, Mistakes
from lsm.models import CNN
from lsm.optim import Cosine, Group, Momentum, WarmUp
from lsm.tasks import Classification


def get_config(path=None):
    augment = (RandomFlip(), RandomCrop(padding=8))
    data, outputs = pictures(path, size=64, augment=augment)
    return Experiment(
        name="folder_transfer",
        task=Classification(
            model=CNN(widths=(32, 64, 128, 256), convs=1, dropout=0.2, outputs=outputs),
            mean=(0.4914, 0.4822, 0.4465),
            std=(0.2470, 0.2435, 0.2616),
            label_smoothing=0.1,
        ),
        data=data,
        optimizer=Momentum(
            learning_rate=0.03,
            nesterov=True,
            weight_decay=5e-4,
            # What is there already is to change little.
            groups=(Group("Conv|BatchNorm", 0.3),),
            schedule=WarmUp("5%", then=Cosine()),
        ),
        train=Train(epochs=40, batch_size=32),
        evaluation=Evaluation(
            monitor="accuracy", metrics=(F1(by_class=True), Confusion(), Mistakes())
        ),
        start=Start(path="runs/modern", fresh="^params/Dense_0/"),
    )
