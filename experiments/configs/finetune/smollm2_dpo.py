"""SmolLM2-135M-Instruct by LoRA on pairs of answers, by DPO (arXiv:2305.18290).

smollm2_dpo.py:DIR says where it is, as in smollm2.py: DIR may also be what
`python -m lsm.adapt merge` made of a run of that. Pairs are JSON lines, by default in pairs.jsonl:

    {"prompt": "...", "chosen": "the better answer", "rejected": "the other"}

    python -m experiments.finetune --config=experiments/configs/finetune/smollm2_dpo.py

The loss begins at log 2 = 0.693.
"""

import dataclasses

from experiments.configs.finetune import smollm2
from lsm import Data, Evaluation
from lsm.data import Preferences
from lsm.optim import AdamW, Linear, WarmUp
from lsm.tasks import DirectPreference


def get_config(folder="runs/smollm2"):
    answers = smollm2.get_config(folder)
    return dataclasses.replace(
        answers,
        name="smollm2_dpo",
        task=DirectPreference(model=answers.task.model, beta=0.1, chunks=8),
        data=Data(
            source=Preferences("pairs.jsonl", tokenizer=folder, length=1025),
            train="train[:95%]",
            validation="train[95%:]",
            test=None,
        ),
        optimizer=AdamW(
            learning_rate=5e-5,
            weight_decay=0.0,
            clip_norm=1.0,
            schedule=WarmUp("10%", then=Linear()),
        ),
        evaluation=Evaluation(every="0.5 epoch", monitor="accuracy"),
    )
