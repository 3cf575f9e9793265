"""SST-2 by half of MiniLM's blocks, taught by the whole on IMDB's sentences, then on its own.

The source is a run of sst2/minilm_imdb.py. Of its six blocks the first, third and last stay: of the
choices of three the one that is best before any training; and of their hidden units three quarters.
What they give is to become what the same blocks gave in the teacher, beside the teacher's logits
(DistilBERT, arXiv:1910.01108; TinyBERT, arXiv:1909.10351). SST-2's own texts are soon learnt by
heart: 512,000 sentences of reviews come first, of which the teacher alone says what they are, and
then one epoch, whose best evaluation counts, as the source's does.

    python -m experiments.sst2 --config=experiments/configs/sst2/minilm_imdb.py \\
        --workdir=runs/sst2
    python -m lsm.compress --workdir=runs/sst2 --out=runs/sst2_small \\
        --recipe=experiments/configs/sst2/compress.py
"""

from lsm import Data, Train
from lsm.compress import Distil, Quantise, Recipe, Shorten, Shrink
from lsm.data import ByLength, Sentences, Subwords, Texts, Tfds
from lsm.optim import AdamW, Linear, WarmUp
from lsm.tasks import Match

LAYERS = (0, 2, 5)


def _distil(rate, train, **others):
    return Distil(
        temperature=2.0,
        features=tuple(Match(f"block_{n}", f"block_{of}") for n, of in enumerate(LAYERS)),
        optimizer=AdamW(
            learning_rate=rate,
            weight_decay=0.01,
            clip_norm=1.0,
            schedule=WarmUp("6%", then=Linear()),
        ),
        train=train,
        **others,
    )


def get_recipe(folder="runs/minilm"):
    """Returns the chain; `folder` has MiniLM's tokenizer, as sst2/minilm.py says."""
    reviews = Data(
        source=Texts(
            source=Sentences(Tfds("imdb_reviews")),
            vocabulary=Subwords(path=folder),
            columns={"tokens": "text"},
            length=32,  # three quarters of the sentences are shorter
            buckets=(8, 16, 24),
        ),
        sampling=ByLength(),
        train="train+test",
        test=None,
    )
    return Recipe(
        links=(
            Shorten(layers=LAYERS),
            Shrink(hidden=0.75),
            _distil(1.5e-4, Train(steps=8000, batch_size=64), share=1.0, data=reviews),
            _distil(5e-5, Train(epochs=1, batch_size=64), share=0.9, loses_at_most=0.5),
            Quantise(loses_at_most=0.5, size_at_most=0.25, latency_at_most=0.5),
        ),
        export=True,
    )
