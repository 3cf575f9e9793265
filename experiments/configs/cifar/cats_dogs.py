"""Cats and dogs: 1000 pictures of CIFAR-10, one output and the logistic loss (claimed: nothing).

`scratch` begins with random parameters. `tuned` begins with those of `eight`, which has learnt
CIFAR-10's other eight classes (the best of runs/cifar_eight, unless --config.start.path says
another), and draws only the last layer. The test pictures are all 2000 of cats and dogs.

    python -m experiments.cifar --config=experiments/configs/cifar/cats_dogs.py:scratch
    python -m experiments.cifar --config=experiments/configs/cifar/cats_dogs.py:eight
    python -m experiments.cifar --config=experiments/configs/cifar/cats_dogs.py:tuned

Measured (cats_dogs): test/accuracy 72.65 % ± 0.93 (71.75 to 73.60), 3 seeds, 56 s a run on AMD
  EPYC, 2 cores, at 436c28439a.
Measured (cats_dogs_eight): test/accuracy 88.79 %, 1 seed, 6 min 56 s a run on AMD EPYC, 2 cores,
  at 436c28439a.
Measured (cats_dogs_tuned): test/accuracy 77.67 % ± 0.38 (77.30 to 78.05), 3 seeds, 1 min 05 s a
  run on AMD EPYC, 2 cores, at 436c28439a.
"""

from lsm import Data, Evaluation, Experiment, Start, Train
from lsm.data import RandomCrop, RandomFlip, Select, Tfds
from lsm.errors import ConfigError
from lsm.evaluate import F1, CalibrationError, Confusion, Mistakes, RocAuc
from lsm.models import CNN
from lsm.optim import Cosine, Group, Momentum, WarmUp
from lsm.tasks import Classification

TWO = Select(Tfds("cifar10"), ("cat", "dog"), per_class={"train": 500})
EIGHT = Select(
    Tfds("cifar10"),
    ("airplane", "automobile", "bird", "deer", "frog", "horse", "ship", "truck"),
)
FORMS = {
    "scratch": (TWO, 1, 0.05, 40, 50, None),
    "eight": (EIGHT, 8, 0.1, 10, 128, None),
    "tuned": (TWO, 1, 0.02, 40, 50, Start(path="runs/cifar_eight", fresh="^params/Dense_0/")),
}
"""Data, outputs, learning rate, epochs, batch size, where to begin."""


def get_config(arg="scratch"):
    if arg not in FORMS:
        raise ConfigError(f"--config: argument {arg!r} given; allowed: {', '.join(FORMS)}.")
    source, outputs, learning_rate, epochs, batch_size, start = FORMS[arg]
    return Experiment(
        name=f"cifar_{arg}",
        task=Classification(
            model=CNN(widths=(32, 64, 128, 256), convs=1, outputs=outputs),
            mean=(0.4914, 0.4822, 0.4465),
            std=(0.2470, 0.2435, 0.2616),
        ),
        data=Data(source=source, augment=(RandomFlip(), RandomCrop(padding=4))),
        optimizer=Momentum(
            learning_rate=learning_rate,
            nesterov=True,
            weight_decay=5e-4,
            # What is there already is to change little.
            groups=(Group("Conv|BatchNorm", 0.3),) if start else (),
            schedule=WarmUp("5%", then=Cosine()),
        ),
        train=Train(epochs=epochs, batch_size=batch_size),
        evaluation=Evaluation(
            every="5 epochs",
            metrics=(RocAuc(), F1(by_class=True), CalibrationError(), Confusion(), Mistakes()),
        ),
        start=start,
    )
