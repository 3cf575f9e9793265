"""A small model that knows what it writes: each token calls for the next, and nothing else counts."""

import jax
import numpy as np

from lsm import Data, Experiment, Mesh, Train
from lsm.data import Arrays
from lsm.data.inputs import Inputs
from lsm.data.texts.encoder import Encoder
from lsm.data.texts.template import ChatTemplate
from lsm.mesh import make_mesh
from lsm.models import GPT, Transformer
from lsm.optim import SGD
from lsm.tasks import LanguageModelling
from lsm.train.trained import Trained
from tests.data.texts.chat_templates import folder

CONTEXT = 128
ANSWER = "é你😀 hi!"
"""What comes after "o", and after what asks for an answer: bytes of which none comes twice."""


def _bytes_of(text):
    """The names of bytes in byte-level BPE: of ASCII itself, of the others as `tokens` says."""
    from launch.serve.openai.tokens import _OF_NAMES

    names = {byte: name for name, byte in _OF_NAMES.items()}
    return [names[byte] for byte in text.encode()]


def run(path, sharp=0.2):
    """Returns the model: "o" calls for ANSWER and the end; "x" for "y" and that for "x" again.

    The larger `sharp`, the less does it write anything else.
    """
    tokenizer = (folder(path) / "tokenizer.json").read_text()
    template = ChatTemplate.of(path).to_json()
    encoder = Encoder(
        tokenizer, {"tokens": ("text",)}, CONTEXT, "end", (CONTEXT,), (), False, chat=template
    )
    known = {name: number for number, name in enumerate(encoder.names)}
    answer = [known[name] for name in _bytes_of(ANSWER)]
    follows = dict(zip(answer, [*answer[1:], known["<|im_end|>"]], strict=True))
    follows |= {known["o"]: answer[0], known["Ċ"]: answer[0]}
    follows |= {known["x"]: known["y"], known["y"]: known["x"]}

    blocks = Transformer(layers=1, heads=2, width=64, theta=1e4, norm="rms")
    model = GPT(vocabulary=len(known), context=CONTEXT, tied=False, transformer=blocks)
    task = LanguageModelling(model=model)
    batch = {"tokens": np.zeros((1, 8), np.int32)}
    params, state = jax.jit(task.init)(jax.random.key(0), batch)
    embedding = np.random.default_rng(0).normal(size=(len(known), 64)).astype(np.float32)
    head = np.zeros((64, len(known)), np.float32)
    for token, following in follows.items():
        head[:, following] += sharp * embedding[token]
    params = jax.tree.map(np.array, params)
    params["tokens"]["embedding"], params["head"]["kernel"] = embedding, head
    for block in ("down", "out"):  # blocks add nothing
        params["blocks"][block]["kernel"][:] = 0
    experiment = Experiment(
        name="chain",
        task=task,
        data=Data(
            source=Arrays({"tokens": np.zeros((8, 8), np.int32)}), validation=None, test=None
        ),
        optimizer=SGD(learning_rate=0.1),
        train=Train(steps=1, batch_size=8),
        writers=(),
    )
    inputs = Inputs({"tokens": jax.ShapeDtypeStruct((8,), np.int32)}, encoder=encoder)
    mesh = make_mesh(Mesh(), jax.devices()[:1])
    placed = jax.device_put((params, state), jax.NamedSharding(mesh, jax.P()))
    return Trained(experiment, 3, *placed, mesh, inputs)
