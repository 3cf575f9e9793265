"""Small models as they are loaded, without a run: what the tests of this folder export."""

import jax
import numpy as np

from lsm import Data, Experiment, Mesh, Train
from lsm.data import Arrays
from lsm.data.inputs import Inputs
from lsm.generate import Beam
from lsm.mesh import make_mesh
from lsm.models import (
    BERT,
    CNN,
    GPT,
    MLP,
    Classifier,
    EncoderDecoder,
    MaskedLM,
    TextClassifier,
    Transformer,
    ViT,
)
from lsm.optim import SGD
from lsm.tasks import (
    Classification,
    LanguageModelling,
    MaskedLanguageModelling,
    Regression,
    SequenceToSequence,
    TextClassification,
)
from lsm.train.trained import Trained

SMALL = {"layers": 2, "heads": 2, "width": 8}
BLOCKS = Transformer(**SMALL, bias=True)
ENCODER = BERT(
    vocabulary=20, context=12, transformer=Transformer(**SMALL, bias=True, norm_position="post")
)
PICTURES = {"image": ((8, 8, 3), np.uint8), "label": ((), np.int32)}
TEXTS = {"tokens": ((12,), np.int32), "tokens_length": ((), np.int32), "label": ((), np.int32)}
PAIR = {
    f"{side}{kind}": (shape, np.int32)
    for side in ("source", "target")
    for kind, shape in (("", (9,)), ("_length", ()))
}
GPT_ = GPT(vocabulary=20, context=24, transformer=Transformer(**SMALL))
LLAMA = GPT(
    vocabulary=20,
    context=24,
    tied=False,
    transformer=Transformer(**SMALL, theta=1e4, norm="rms", window=5, global_every=2),
)

TASKS = {
    "mlp": (Classification(model=MLP(widths=(8,), outputs=3)), PICTURES),
    "cnn": (Classification(model=CNN(widths=(4, 8), batch_norm=True), mean=0.4, std=0.3), PICTURES),
    "vit": (Classification(model=ViT(stem=4, transformer=BLOCKS, outputs=3)), PICTURES),
    "regression": (
        Regression(model=MLP(widths=(8,), outputs=2), input="x", target="y"),
        {"x": ((5,), np.float32), "y": ((2,), np.float32)},
    ),
    "bert": (TextClassification(model=Classifier(ENCODER, outputs=3)), TEXTS),
    "lstm": (TextClassification(model=TextClassifier(vocabulary=20, units=(8,))), TEXTS),
    "masked": (MaskedLanguageModelling(model=MaskedLM(ENCODER), mask=3), TEXTS),
    "translation": (
        SequenceToSequence(
            model=EncoderDecoder(vocabulary=20, context=9, encoder=BLOCKS, decoder=BLOCKS),
            search=Beam(size=2, longest=6),
        ),
        PAIR,
    ),
    "gpt": (LanguageModelling(model=GPT_), {"tokens": ((17,), np.int32)}),
    "llama": (LanguageModelling(model=LLAMA), {"tokens": ((17,), np.int32)}),
}


def columns(name, rows, length=None, seed=0):
    """Examples of a task; texts of some length."""
    rng, made = np.random.default_rng(seed), {}
    for column, (shape, dtype) in TASKS[name][1].items():
        shape = (length or shape[0],) if len(shape) == 1 and dtype == np.int32 else shape
        if dtype == np.float32:
            made[column] = rng.normal(size=(rows, *shape)).astype(dtype)
        elif column.endswith("_length"):
            made[column] = rng.integers(1, (length or 9) + 1, rows).astype(dtype)
        else:
            made[column] = rng.integers(0, 3 if column == "label" else 20, (rows, *shape), dtype)
    return made


def trained(name, **known):
    """A model with parameters as they are drawn."""
    task, spec = TASKS[name]
    inputs = {n: jax.ShapeDtypeStruct(shape, dtype) for n, (shape, dtype) in spec.items()}
    if any(n.endswith("tokens") or n == "source" for n in spec):
        known = {"characters": "abcdefghijklmnopqrst"} | known
    experiment = Experiment(
        name=name,
        task=task,
        data=Data(source=Arrays(columns(name, 8)), validation=None, test=None),
        optimizer=SGD(learning_rate=0.1),
        train=Train(steps=1, batch_size=8),
        writers=(),
    )
    params, state = jax.jit(task.init)(jax.random.key(0), columns(name, 1))
    mesh = make_mesh(Mesh(), jax.devices()[:1])
    placed = jax.device_put((params, state), jax.NamedSharding(mesh, jax.P()))
    return Trained(experiment, 3, *placed, mesh, Inputs(inputs, **known))
