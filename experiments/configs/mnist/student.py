"""MNIST by an MLP of 203,530 parameters and 5,000 pictures: alone, and taught.

`alone` learns from the labels. `taught` is the same, with the same pictures in the same order, and
learns as well from what mnist/cnn.py says of them, which has seen 55,000 (the best of
runs/mnist_cnn, unless --config.task.teacher.path says another). So what is shown is that a teacher
stands for labels that the student has not: soft targets as regularisers (Hinton et al. 2015,
arXiv:1503.02531, section 6).

    python -m experiments.mnist --config=experiments/configs/mnist/cnn.py --workdir=runs/mnist_cnn
    python -m experiments.mnist --config=experiments/configs/mnist/student.py:alone
    python -m experiments.mnist --config=experiments/configs/mnist/student.py:taught

Measured (mnist_student_alone): test/accuracy 94.15 % ± 0.09 (94.07 to 94.25), 3 seeds, 5 s a run,
  7 s of CPU time, on AMD EPYC, 2 cores, at 24066d8364.
Measured (mnist_student_taught): test/accuracy 96.01 % ± 0.08 (95.95 to 96.10), 3 seeds, 23 s a
  run, 29 s of CPU time, on AMD EPYC, 2 cores, at 24066d8364.
"""

from lsm import Data, Evaluation, Experiment, Train
from lsm.data import Tfds
from lsm.errors import ConfigError
from lsm.models import CNN, MLP
from lsm.optim import Adam, Cosine, WarmUp
from lsm.tasks import Classification, Distillation, Teacher

ALONE = Classification(model=MLP(widths=(256,)))
TAUGHT = Distillation(
    student=ALONE,
    teacher=Teacher(
        task=Classification(model=CNN(widths=(32, 64, 128), convs=1)), path="runs/mnist_cnn"
    ),
    temperature=4.0,
    share=0.9,
)
FORMS = {"alone": ALONE, "taught": TAUGHT}


def get_config(arg="alone"):
    if arg not in FORMS:
        raise ConfigError(f"--config: argument {arg!r} given; allowed: {', '.join(FORMS)}.")
    return Experiment(
        name=f"mnist_student_{arg}",
        task=FORMS[arg],
        data=Data(
            source=Tfds("mnist"),
            train="train[:5000]",
            validation="train[55000:]",
            test="test",
        ),
        optimizer=Adam(learning_rate=3e-3, schedule=WarmUp("5%", then=Cosine())),
        train=Train(epochs=30, batch_size=128),
        evaluation=Evaluation(every="10 epochs"),
    )
