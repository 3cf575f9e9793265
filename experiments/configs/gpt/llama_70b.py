"""A decoder with the shape of Llama 2 70B, 8 M tokens a step, 2 T tokens.

    python -m launch.plan --config=experiments/configs/gpt/llama_70b.py --topology=v5p:8x8x8
    python -m experiments.gpt --config=experiments/configs/gpt/llama_70b.py --data_dir=DATA

Planned (llama_70b): on 512 v5p chips 30.6 GiB of 95.7 GiB each, a step of 19.8 to 28.7 s,
  80 to 55 % MFU, 423,381 to 291,926 tokens/s, by libtpu 0.0.52; not run on them here.
"""

from lsm import Data, Evaluation, Experiment, Mesh, Train
from lsm.data import Tokens
from lsm.models.families import llama
from lsm.optim import AdamW, Cosine, WarmUp
from lsm.tasks import LanguageModelling


def get_config(arg=None):
    model = llama(
        vocabulary=32000,
        layers=80,
        heads=64,
        width=8192,
        hidden=28672,
        context=4096,
        theta=10_000.0,
        dtype="bfloat16",
        remat="full",
    )
    return Experiment(
        name="llama_70b",
        task=LanguageModelling(model=model, chunks=8),
        data=Data(source=Tokens("llama2", length=4096), validation="validation", test=None),
        optimizer=AdamW(
            learning_rate=1.5e-4,
            b2=0.95,
            weight_decay=0.1,
            clip_norm=1.0,
            schedule=WarmUp(2000, then=Cosine(final=0.1)),
        ),
        train=Train(steps=240_000, batch_size=2048),
        evaluation=Evaluation(every=1000),
        mesh=Mesh(data=1, fsdp=-1),
    )
