# ruff: noqa: E402
"""Embeddings by OpenAI's client: those of the run."""

import base64
import sys

import jax
import numpy as np
import pytest

openai = pytest.importorskip("openai", reason="the client that is tested")
pytest.importorskip("tokenizers", reason="the model's tokenizer")

from serving import SECRETS, Policy, serving

from launch.command import LaunchError
from launch.serve import models
from lsm import Data, Experiment, Mesh, Train
from lsm.data import Arrays
from lsm.data.inputs import Inputs
from lsm.data.texts.encoder import Encoder
from lsm.export.write import write
from lsm.mesh import make_mesh
from lsm.models import BERT, Embedder, Transformer
from lsm.optim import SGD
from lsm.tasks import Function
from lsm.train.trained import Trained
from tests.data.texts.chat_templates import folder

LENGTH = 16


def loss(outputs, batch):
    return outputs["embedding"].sum(-1)


def embedder(path):
    """A small encoder with a tokenizer, parameters as they are drawn."""
    tokenizer = (folder(path) / "tokenizer.json").read_text()
    names = {"tokens": ("text",)}
    encoder = Encoder(tokenizer, names, LENGTH, "end", (LENGTH,), ("tokens",), False)
    blocks = Transformer(layers=1, heads=2, width=8, bias=True, norm_position="post")
    bert = BERT(vocabulary=len(encoder.names), context=LENGTH, transformer=blocks)
    task = Function(model=Embedder(bert), loss_fn=loss, input="tokens")
    rows = {"tokens": np.ones((8, LENGTH), np.int32), "tokens_length": np.full(8, 3, np.int32)}
    params, state = jax.jit(task.init)(jax.random.key(0), rows)
    experiment = Experiment(
        name="embedder",
        task=task,
        data=Data(source=Arrays(rows), validation=None, test=None),
        optimizer=SGD(learning_rate=0.1),
        train=Train(steps=1, batch_size=8),
        writers=(),
    )
    spec = {"tokens": ((LENGTH,), np.int32), "tokens_length": ((), np.int32)}
    inputs = {name: jax.ShapeDtypeStruct(*of) for name, of in spec.items()}
    mesh = make_mesh(Mesh(), jax.devices()[:1])
    placed = jax.device_put((params, state), jax.NamedSharding(mesh, jax.P()))
    return Trained(experiment, 3, *placed, mesh, Inputs(inputs, encoder=encoder))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return embedder(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def served(tmp_path_factory, run):
    path = tmp_path_factory.mktemp("embeddings")
    (path / "small").mkdir()
    write(run, path / "small" / "1", platforms=("cpu",))
    with serving(path, {"small": models.load}, Policy(largest=2, wait=0.0)) as server:
        yield server


@pytest.fixture(scope="module")
def client(served):
    url = f"http://127.0.0.1:{served.port}/v1"
    with openai.OpenAI(api_key=SECRETS["infer"][0], base_url=url, max_retries=0) as made:
        yield made


def test_embeddings_are_those_of_the_run(client, run):
    texts = ["What is two and two?", "你说中文。", "Four."]
    expected = run.predict(texts)["embedding"]
    by_base64 = client.embeddings.create(model="small", input=texts)  # what the client asks for
    as_numbers = client.embeddings.create(model="small", input=texts, encoding_format="float")
    for made in (by_base64, as_numbers):
        assert [one.index for one in made.data] == [0, 1, 2]
        found = np.array([one.embedding for one in made.data])
        np.testing.assert_allclose(found, expected, atol=1e-6)
    tokens = sum(len(run.inputs.encoder.tokens.encode(text).ids) + 2 for text in texts)
    assert (made.usage.prompt_tokens, made.usage.total_tokens) == (tokens, tokens)
    (alone,) = client.embeddings.create(model="small", input=texts[2], dimensions=8).data
    np.testing.assert_allclose(alone.embedding, expected[2], atol=1e-6)
    assert [one.id for one in client.models.list().data] == ["small"]


def test_ids_of_tokens_give_what_their_text_gives(client, run):
    texts = ["What is two and two?", "Four."]
    encoder = run.inputs.encoder
    ids = [encoder.encode("tokens", [text])["tokens"][0].tolist() for text in texts]
    expected = client.embeddings.create(model="small", input=texts)
    made = client.embeddings.create(model="small", input=ids)
    (alone,) = client.embeddings.create(model="small", input=ids[1]).data
    assert made.usage.prompt_tokens == sum(map(len, ids)) == expected.usage.prompt_tokens
    for ours, theirs in zip([*made.data, alone], [*expected.data, expected.data[1]], strict=True):
        np.testing.assert_allclose(ours.embedding, theirs.embedding, atol=1e-6)


def test_base64_is_of_little_endian_float32(served, run):
    body = {"model": "small", "input": "Four.", "encoding_format": "base64"}
    status, answer = served.json("POST", "/v1/embeddings", body)
    found = np.frombuffer(base64.b64decode(answer["data"][0]["embedding"]), "<f4")
    assert status == 200
    np.testing.assert_allclose(found, run.predict(["Four."])["embedding"][0], atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "param", "line"),
    [
        ({"input": [1, 70_000]}, "input", "text 1: 70000 given; ids are 0 to"),
        ({"input": [[1], [2, -1]]}, "input", "text 2: -1 given"),
        ({"input": [[1], [2] * 17]}, "input", "text 2 has 17 tokens; at most 16 are read"),
        ({"input": [[1], "a"]}, "input", "a text, ids of its tokens, or a list of either"),
        ({"input": [[1], []]}, "input", "a text, ids of its tokens, or a list of either"),
        ({"input": [True]}, "input", "a text, ids of its tokens, or a list of either"),
        ({"input": "\ud800"}, None, "no low surrogate in string"),
        ({"input": []}, "input", "a list of either is needed"),
        ({"input": ["a", ""]}, "input", "an empty text"),
        ({"input": ["a", "z" * 15]}, "input", "text 2 has 17 tokens; at most 16 are read"),
        ({"input": "a" + " " * 2048 + "b"}, "input", "text 1 has 2050 characters; 2048 are looked"),
        ({"dimensions": 4}, "dimensions", "4 given"),
        ({"encoding_format": "hex"}, "encoding_format", "float or base64"),
        ({"inputs": "a"}, None, "Unrecognized request argument supplied: inputs"),
    ],
)
def test_what_is_wrong_is_told_by_its_field(served, changes, param, line):
    body = {"model": "small", "input": "a"} | changes
    status, answer = served.json("POST", "/v1/embeddings", body)
    assert (status, answer["error"]["param"]) == (400, param)
    assert line in answer["error"]["message"]


def test_a_library_that_is_missing_is_told_of_at_the_start(served, monkeypatch):
    folder = served.repository.models["small"].folder / "1"
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(LaunchError, match=r"small/1: tokenizers is not installed.*lsm\[text\]"):
        models.load(folder)


def test_a_model_that_only_embeds_writes_no_texts(client):
    with pytest.raises(openai.BadRequestError, match="small writes no texts"):
        client.chat.completions.create(model="small", messages=[{"role": "user", "content": "a"}])
    with pytest.raises(openai.NotFoundError, match="Did you mean 'small'"):
        client.embeddings.create(model="smal", input="a")
