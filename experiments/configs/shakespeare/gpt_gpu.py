"""Tiny Shakespeare by characters, at nanoGPT's 6-layer setting (published validation loss: 1.4697).

As published: batches of 64 times 256 characters, dropout of a fifth, 5000 steps, of which the
evaluation with the lowest loss counts; on two cores that is most of a day. With the argument
`small` the same network learns by Muon from batches of 16, in 1000 steps: a twentieth of the work,
four passes over the text, with half the dropout.

    python -m experiments.shakespeare --config=experiments/configs/shakespeare/gpt_gpu.py
    python -m experiments.shakespeare --config=experiments/configs/shakespeare/gpt_gpu.py:small

Measured (shakespeare_six): not run yet.
Measured (shakespeare_small): validation/loss 1.465, 1 seed, 1 h 23 min a run, 2 h 07 min of CPU
  time, on AMD EPYC, 2 cores, at 815d9f6952.
"""

from lsm import Data, Evaluation, Experiment, Train
from lsm.data import CharText, Tfds
from lsm.errors import ConfigError
from lsm.models import GPT, Transformer
from lsm.optim import AdamW, Cosine, Linear, Muon, WarmUp
from lsm.tasks import LanguageModelling

KEPT = {"weight_decay": 0.1, "decay": r"(kernel|embedding|positions)$", "clip_norm": 1.0}


def get_config(arg="nanogpt"):
    dropout = 0.2
    if arg == "nanogpt":
        schedule = WarmUp(100, then=Cosine(final=0.1))
        optimizer = AdamW(learning_rate=1e-3, b2=0.99, schedule=schedule, **KEPT)
        train, every = Train(steps=5000, batch_size=64), 250
    elif arg == "small":
        schedule = WarmUp("3%", then=Linear())
        optimizer = Muon(learning_rate=6e-3, schedule=schedule, ema=0.99, **KEPT)
        train, every, dropout = Train(steps=1000, batch_size=16), 100, 0.1
    else:
        raise ConfigError(f"--config: {arg!r} given; allowed: nanogpt, small.")
    blocks = Transformer(layers=6, heads=6, width=384, dropout=dropout)
    return Experiment(
        name=f"shakespeare_{arg}",
        task=LanguageModelling(model=GPT(vocabulary=65, context=256, transformer=blocks)),
        data=Data(
            source=CharText(source=Tfds("tiny_shakespeare"), length=256),
            train="train",
            validation="validation",
            test="test",
        ),
        optimizer=optimizer,
        train=train,
        evaluation=Evaluation(every=every, batch_size=64, monitor="loss"),
    )
