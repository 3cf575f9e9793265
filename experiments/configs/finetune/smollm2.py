"""SmolLM2-135M-Instruct by LoRA on conversations of one's own; smollm2.py:DIR says where it is.

DIR, by default runs/smollm2, is a workdir that the model was imported to, with its tokenizer.json
and chat template. Conversations are JSON lines with "messages", by default in chats.jsonl:

    {"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}

    python -m experiments.finetune --workdir=runs/mine --config.data.source.path=my_chats.jsonl

Trained are 4,331,520 parameters beside the model's 134,515,008; see docs/finetuning.md.
"""

from lsm import Data, Evaluation, Experiment, Start, Train
from lsm.data import Chats
from lsm.models import Lora
from lsm.models.families import llama
from lsm.optim import AdamW, Cosine, WarmUp
from lsm.tasks import LanguageModelling

SMOLLM2 = llama(
    vocabulary=49152,
    layers=30,
    heads=9,
    kv_heads=3,
    width=576,
    hidden=1536,
    context=8192,
    theta=100_000.0,
    tied=True,
)


def get_config(folder="runs/smollm2"):
    return Experiment(
        name="smollm2_lora",
        task=LanguageModelling(
            model=Lora(SMOLLM2, targets="^blocks/", rank=16, alpha=32.0, dropout=0.05),
            chunks=8,
        ),
        data=Data(
            source=Chats("chats.jsonl", tokenizer=folder, length=1025, pack=True),
            train="train[:95%]",
            validation="train[95%:]",
            test=None,
        ),
        optimizer=AdamW(
            learning_rate=2e-4,
            b2=0.95,
            clip_norm=1.0,
            schedule=WarmUp("3%", then=Cosine()),
        ),
        train=Train(epochs=3, batch_size=16),
        evaluation=Evaluation(every="0.5 epoch"),
        start=Start(
            path=folder,
            take="^params/",
            rename=(("^constants/base/", "params/"),),
            fresh="^params/",
        ),
    )
