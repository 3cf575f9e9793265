"""GPT-2 124M at nanoGPT's setting: 0.5 M tokens a step, 300 G tokens.

Published (nanoGPT's README, OpenWebText): validation loss about 2.85 after 4 days on 8 A100.

    python -m lsm.data.tokenize --help
    python -m launch.plan --config=experiments/configs/gpt/gpt2_124m.py --topology=v5e:4x4
    python -m experiments.gpt --config=experiments/configs/gpt/gpt2_124m.py --data_dir=DATA

Planned (gpt2_124m): on 16 v5e chips 9.6 GiB of 15.8 GiB each, a step of 0.178 to 0.65 s,
  80 to 22 % MFU, 2,944,571 to 806,076 tokens/s, by libtpu 0.0.52; not run on them here.
"""

from lsm import Data, Evaluation, Experiment, Mesh, Train
from lsm.data import Tokens
from lsm.models.families import gpt2
from lsm.optim import AdamW, Cosine, WarmUp
from lsm.tasks import LanguageModelling


def get_config(arg=None):
    # 50,304 is the next multiple of 128 after GPT-2's 50,257 tokens: whole tiles, even shares.
    model = gpt2(vocabulary=50304, bias=False, dtype="bfloat16", remat="dots")
    return Experiment(
        name="gpt2_124m",
        task=LanguageModelling(model=model, chunks=8),
        data=Data(source=Tokens("openwebtext", length=1024), validation="validation", test=None),
        optimizer=AdamW(
            learning_rate=6e-4,
            b2=0.95,
            weight_decay=0.1,
            decay=r"(kernel|embedding|positions)$",
            clip_norm=1.0,
            schedule=WarmUp(2000, then=Cosine(final=0.1)),
        ),
        train=Train(steps=600_000, batch_size=512),
        evaluation=Evaluation(every=1000),
        mesh=Mesh(),
    )
