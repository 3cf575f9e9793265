"""Multi30k, German to English: a Transformer on joint subwords with one table for all.

Aims at BLEU 36.5 on the test split (Flickr 2016), by sacreBLEU on raw text; published is 36.52, by
3 + 3 layers of width 256 with 9.0 M parameters on words in lower case (bentrevett's tutorial). Here
sizes are those found best for so few sentences: 4 + 4 layers of width 128, much dropout, a high
learning rate (arXiv:2105.14462). It needs `pip install -e '.[translation]'`.

    python -m experiments.multi30k --workdir=runs/multi30k

Measured (multi30k): test/bleu 39.44, 1 seed, 2 h 11 min a run, 1 h 39 min of CPU time, on AMD
  EPYC, 2 cores, at 40e930aa76.
"""

from lsm import Data, Evaluation, Experiment, Train
from lsm.data import ByLength, Subwords, Texts, Tfds
from lsm.evaluate import Bleu
from lsm.generate import Beam
from lsm.models import EncoderDecoder, Transformer
from lsm.optim import Adam, InverseSqrt, WarmUp
from lsm.tasks import SequenceToSequence

VOCABULARY = 8000


def get_config(arg=None):
    blocks = Transformer(
        layers=4, heads=4, width=128, hidden=256, mlp="relu", bias=True, dropout=0.3, unroll=4
    )
    model = EncoderDecoder(vocabulary=VOCABULARY, encoder=blocks, decoder=blocks, context=64)
    texts = Texts(
        source=Tfds("multi30k"),
        vocabulary=Subwords(kind="unigram", size=VOCABULARY),
        columns={"source": "de", "target": "en"},
        length=64,
        buckets=(16, 24, 32),
        begin_end=("target",),
        keep=("en",),
    )
    return Experiment(
        name="multi30k",
        task=SequenceToSequence(
            model=model, label_smoothing=0.1, search=Beam(size=5, length_penalty=0.6, longest=60)
        ),
        data=Data(source=texts, validation="validation", test="test", sampling=ByLength(pool=50)),
        optimizer=Adam(
            learning_rate=5e-3,
            b2=0.98,
            clip_norm=1.0,
            schedule=WarmUp(2000, then=InverseSqrt(2000)),
            ema=0.999,
        ),
        train=Train(epochs=35, batch_size=128),
        evaluation=Evaluation(final=(Bleu(reference="en_bytes"),)),
    )
