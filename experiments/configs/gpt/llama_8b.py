"""A decoder with the shape of Llama 3 8B, 4 M tokens a step, 2 T tokens.

    python -m launch.plan --config=experiments/configs/gpt/llama_8b.py --topology=v6e:16x16
    python -m experiments.gpt --config=experiments/configs/gpt/llama_8b.py --data_dir=DATA

Planned (llama_8b): on 256 v6e chips 7.9 GiB of 31.2 GiB each, a step of 1.31 to 3.19 s,
  79 to 32 % MFU, 3,199,171 to 1,316,843 tokens/s, by libtpu 0.0.52; not run on them here.
"""

from lsm import Data, Evaluation, Experiment, Mesh, Train
from lsm.data import Tokens
from lsm.models.families import llama
from lsm.optim import AdamW, Cosine, WarmUp
from lsm.tasks import LanguageModelling


def get_config(arg=None):
    model = llama(
        dtype="bfloat16",
        remat="full",
    )
    return Experiment(
        name="llama_8b",
        task=LanguageModelling(model=model, chunks=8),
        data=Data(source=Tokens("llama3", length=8192), validation="validation", test=None),
        optimizer=AdamW(
            learning_rate=3e-4,
            b2=0.95,
            weight_decay=0.1,
            clip_norm=1.0,
            schedule=WarmUp(2000, then=Cosine(final=0.1)),
        ),
        train=Train(steps=480_000, batch_size=512),
        evaluation=Evaluation(every=1000),
        mesh=Mesh(data=1, fsdp=-1),
    )
