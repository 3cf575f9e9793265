"""SST-2 by MiniLM-L6 whose blocks learn by LoRA; minilm_lora.py:FOLDER says where its files are.

As minilm.py, but for what is trained: all layers of the blocks get adapters of rank 12, and the
head is new: 443,138 of 23,008,514 parameters, 1.9 %. The learning rate is eight times as high, and
there are five epochs instead of three: adapters learn more slowly.

    python -m experiments.sst2 --config=experiments/configs/sst2/minilm_lora.py --data_dir=DATA

Measured (sst2_minilm_lora): validation/accuracy 89.68 %, 1 seed, 32 min 44 s a run, 48 min 11 s of
  CPU time, on AMD EPYC, 2 cores, at 7f06e4cec5.
"""

import dataclasses

from experiments.configs.sst2 import minilm
from lsm.models import Lora
from lsm.optim import AdamW, Linear, WarmUp


def get_config(folder="runs/minilm"):
    whole = minilm.get_config(folder)
    model = Lora(whole.task.model, targets="blocks/.*kernel", rank=12, trained="^head/")
    return dataclasses.replace(
        whole,
        name="sst2_minilm_lora",
        task=dataclasses.replace(whole.task, model=model),
        optimizer=AdamW(
            learning_rate=1.2e-3,
            weight_decay=0.01,
            clip_norm=1.0,
            schedule=WarmUp("6%", then=Linear()),
            ema=0.999,
        ),
        train=dataclasses.replace(whole.train, epochs=5),
        start=dataclasses.replace(
            whole.start, rename=(("^constants/base/", "params/"),), fresh="^params/"
        ),
    )
