"""Any folder of pictures, one folder a class, by a CNN of 205 million parameters (claimed: 89.3 %).

The exact form as published: two convolutions, pooling after each, and a dense layer of 512 on all
of the 56 x 56 x 128 values that are left of pictures of 224 x 224. PATH holds train/CLASS/ and
val/CLASS/, or CLASS/, of which a fifth is kept to evaluate on. Without PATH it is hymenoptera (244
pictures of ants and bees), looked for in --data_dir.

    python -m experiments.folder --config=experiments/configs/folder/simple_cnn.py:PATH
    python -m experiments.folder --data_dir=DIR --workdir=runs/simple_cnn

Parameters and Adam's moments take 2.5 GB, gradients 0.8 GB more; --config.mesh.fsdp=8 gives each of
8 devices an eighth of them.

Measured (folder_simple_cnn): validation/accuracy 55.56 %, 1 seed, 6 min 46 s a run, 7 min 55 s of
  CPU time, on AMD EPYC, 2 cores, at ec24451224.
"""

from experiments.folder import pictures
from lsm import Checkpoint, Evaluation, Experiment, Train
from lsm.models import CNN
from lsm.models.initializers import TORCH
from lsm.optim import Adam
from lsm.tasks import Classification


def get_config(path=None):
    data, outputs = pictures(path, size=224, workers=2)
    model = CNN(
        widths=(64, 128),
        convs=1,
        pool_last=True,
        batch_norm=False,
        head="flatten",
        hidden=(512,),
        outputs=outputs,
        kernel_init=TORCH,
    )
    return Experiment(
        name="simple_cnn",
        task=Classification(model=model),
        data=data,
        optimizer=Adam(learning_rate=1e-3),
        train=Train(epochs=10, batch_size=64),
        evaluation=Evaluation(monitor="accuracy"),
        checkpoint=Checkpoint(every=0, keep=1),  # 2.5 GB each
    )
