"""SST-2 by half of MiniLM's blocks, begun with every other one and taught by the whole.

The source is a run of sst2/minilm_imdb.py. Of its six blocks the second, fourth and sixth stay, and
of the hidden units of their MLPs five eighths; what they give is to become what the same blocks
gave in the teacher, beside the teacher's logits (DistilBERT, arXiv:1910.01108; TinyBERT,
arXiv:1909.10351).

    python -m experiments.sst2 --config=experiments/configs/sst2/minilm_imdb.py \\
        --workdir=runs/sst2
    python -m lsm.compress --workdir=runs/sst2 --out=runs/sst2_small \\
        --recipe=experiments/configs/sst2/compress.py
"""

from lsm import Train
from lsm.compress import Distil, Quantise, Recipe, Shorten, Shrink
from lsm.optim import AdamW, Linear, WarmUp
from lsm.tasks import Match


def get_recipe(arg=None):
    return Recipe(
        links=(
            Shorten(layers=(1, 3, 5)),
            Shrink(hidden=0.625),
            Distil(
                temperature=2.0,
                share=0.9,
                features=(
                    Match("block_0", "block_1"),
                    Match("block_1", "block_3"),
                    Match("block_2", "block_5"),
                ),
                optimizer=AdamW(
                    learning_rate=1e-4,
                    weight_decay=0.01,
                    clip_norm=1.0,
                    schedule=WarmUp("6%", then=Linear()),
                ),
                train=Train(epochs=4, batch_size=64),
                loses_at_most=1.5,  # 0.5 are aimed at
                latency_at_most=0.5,
            ),
            Quantise(loses_at_most=1.6, size_at_most=0.25, latency_at_most=0.5),
        ),
        export=True,
    )
