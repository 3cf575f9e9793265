"""A decoder with the shape of Llama 3.2 1B, 2 M tokens a step.

    python -m launch.plan --config=experiments/configs/gpt/llama_1b.py --topology=v5e:4x4
    python -m experiments.gpt --config=experiments/configs/gpt/llama_1b.py --data_dir=DATA

Planned (llama_1b): on 16 v5e chips 8.5 GiB of 15.8 GiB each, a step of 7.65 to 23.7 s,
  79 to 25 % MFU, 274,168 to 88,537 tokens/s, by libtpu 0.0.52; not run on them here.
"""

from lsm import Data, Evaluation, Experiment, Mesh, Train
from lsm.data import Tokens
from lsm.models.families import llama
from lsm.optim import AdamW, Cosine, WarmUp
from lsm.tasks import LanguageModelling


def get_config(arg=None):
    model = llama(
        layers=16,
        width=2048,
        hidden=8192,
        tied=True,
        dtype="bfloat16",
        remat="full",
    )
    return Experiment(
        name="llama_1b",
        task=LanguageModelling(model=model, chunks=8),
        data=Data(source=Tokens("llama3", length=4096), validation="validation", test=None),
        optimizer=AdamW(
            learning_rate=3e-4,
            b2=0.95,
            weight_decay=0.1,
            clip_norm=1.0,
            schedule=WarmUp(2000, then=Cosine(final=0.1)),
        ),
        train=Train(steps=100_000, batch_size=512, accumulation=4),
        evaluation=Evaluation(every=1000),
        mesh=Mesh(data=1, fsdp=-1),
    )
