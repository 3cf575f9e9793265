"""A mixture of experts with the shape of Mixtral 8x7B, 4 M tokens a step.

    python -m launch.plan --config=experiments/configs/gpt/mixtral_8x7b.py --topology=v5p:4x4x8
    python -m experiments.gpt --config=experiments/configs/gpt/mixtral_8x7b.py --data_dir=DATA

Planned (mixtral_8x7b): on 128 v5p chips 29.5 GiB of 95.7 GiB each, a step of 9.5 to 17.5 s,
  62 to 34 % MFU, 441,317 to 239,630 tokens/s, by libtpu 0.0.52; not run on them here.
"""

from lsm import Data, Evaluation, Experiment, Mesh, Train
from lsm.data import Tokens
from lsm.models.experts import Experts
from lsm.models.families import mixtral
from lsm.optim import AdamW, Cosine, WarmUp
from lsm.tasks import LanguageModelling


def get_config(arg=None):
    model = mixtral(
        # Experts are split: without a capacity each had room for all tokens, at 4 times the work.
        experts=Experts(count=8, top_k=2, capacity=1.25),
        dtype="bfloat16",
        remat="full",
    )
    return Experiment(
        name="mixtral_8x7b",
        task=LanguageModelling(model=model, chunks=8),
        data=Data(source=Tokens("llama2", length=4096), validation="validation", test=None),
        optimizer=AdamW(
            learning_rate=3e-4,
            b2=0.95,
            weight_decay=0.1,
            clip_norm=1.0,
            schedule=WarmUp(2000, then=Cosine(final=0.1)),
        ),
        train=Train(steps=500_000, batch_size=1024),
        evaluation=Evaluation(every=1000),
        mesh=Mesh(data=1, fsdp=-1, expert=8),
    )
