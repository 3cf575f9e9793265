"""Tiny Shakespeare by characters, at nanoGPT's CPU setting (published validation loss: 1.88).

The learning rate is twice nanoGPT's, which suits this small model better; with the argument
`nanogpt` everything is as published.

    python -m experiments.shakespeare --workdir=runs/shakespeare
    python -m experiments.shakespeare --config=experiments/configs/shakespeare/gpt.py:nanogpt

Measured (shakespeare_nanogpt): validation/loss 1.899 ± 0.011 (1.886 to 1.907), 3 seeds, 2 min 20 s
  a run on AMD EPYC, 2 cores, at 3218d74de9 (begins alike at c530eb7c91).
Measured (shakespeare): validation/loss 1.790 ± 0.011 (1.779 to 1.801), 3 seeds, 2 min 52 s a run
  on AMD EPYC, 2 cores, at 3218d74de9 (begins alike at c530eb7c91).
"""

from lsm import Data, Evaluation, Experiment, Train
from lsm.data import CharText, Tfds
from lsm.errors import ConfigError
from lsm.models import GPT, Transformer
from lsm.optim import AdamW, Cosine, WarmUp
from lsm.tasks import LanguageModelling

LEARNING_RATES = {"tuned": 2e-3, "nanogpt": 1e-3}


def get_config(arg="tuned"):
    if arg not in LEARNING_RATES:
        raise ConfigError(f"--config: {arg!r} given; allowed: {', '.join(LEARNING_RATES)}.")
    blocks = Transformer(layers=4, heads=4, width=128, unroll=4)
    model = GPT(vocabulary=65, context=64, transformer=blocks)
    return Experiment(
        name=f"shakespeare_{arg}",
        task=LanguageModelling(model=model),
        data=Data(
            source=CharText(source=Tfds("tiny_shakespeare"), length=64),
            train="train",
            validation="validation",
            test="test",
        ),
        optimizer=AdamW(
            learning_rate=LEARNING_RATES[arg],
            b2=0.99,
            weight_decay=0.1,
            decay=r"(kernel|embedding|positions)$",
            clip_norm=1.0,
            schedule=WarmUp("5%", then=Cosine(final=0.1)),
        ),
        train=Train(steps=2000, batch_size=12),
        evaluation=Evaluation(every=250, batch_size=96),
    )
