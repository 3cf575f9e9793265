"""Published models as workdirs, and workdirs as published models; the folders are written here."""

import json
import logging
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import lsm
from lsm import Checkpoint, Data, Experiment, Start, Train
from lsm.data import Arrays, images
from lsm.errors import CheckpointError, ConfigError
from lsm.interop import __main__ as command
from lsm.interop import open_model, save_model
from lsm.interop.export import exported
from lsm.models import Classifier, families
from lsm.optim import SGD
from lsm.params import flat
from lsm.tasks import LanguageModelling
from lsm.train.imported import export_run, import_model

tokenizers = pytest.importorskip("tokenizers", reason="tokenizers encodes the texts")

ROOT = pathlib.Path(__file__).parents[2]
TEXT = "it is a text of some words, some of them twice"


def tokenizer():
    from tokenizers import decoders, models, pre_tokenizers

    letters = pre_tokenizers.ByteLevel.alphabet()
    vocabulary = {letter: number for number, letter in enumerate(["<s>", *sorted(letters)])}
    made = tokenizers.Tokenizer(models.BPE(vocabulary, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(["<s>"])
    return made


HEADS = {"heads": 4, "kv_heads": 2, "head_width": 4}
MODEL = families.llama(
    vocabulary=257, layers=2, **HEADS, width=16, hidden=24, context=64, tied=True
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of a Llama whose kernels are bfloat16, and norms float32."""
    path = tmp_path_factory.mktemp("published") / "llama"
    shapes = flat(jax.eval_shape(MODEL.init, jax.random.key(0), np.zeros((1, 2), np.int32)))
    random = np.random.default_rng(0)
    arrays = {at: random.normal(size=x.shape).astype("f4") * 0.3 for at, x in shapes.items()}
    exported(MODEL, shapes, arrays.get, path / "wide")
    tensors = load_file(path / "wide/model.safetensors")
    for name, x in tensors.items():
        tensors[name] = x if "norm" in name else x.astype(jax.numpy.bfloat16)
    save_file(tensors, path / "model.safetensors", {"format": "pt"})
    config = json.loads((path / "wide/config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"dtype": "bfloat16"}))
    (path / "tokenizer.json").write_text(tokenizer().to_str())
    (path / "tokenizer_config.json").write_text('{"chat_template": "{{ messages }}"}')
    (path / "generation_config.json").write_text('{"eos_token_id": [0]}')
    return path


@pytest.fixture(scope="module")
def workdir(folder, tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "imported"
    import_model(folder, path)
    return path


def test_an_import_and_an_export_give_the_folder_back_to_the_bit(folder, workdir, tmp_path):
    assert export_run(workdir, tmp_path / "back") == ("LlamaForCausalLM", 0)
    old, new = (load_file(path / "model.safetensors") for path in (folder, tmp_path / "back"))
    assert {str(x.dtype) for x in new.values()} == {"float32", "bfloat16"}
    assert old.keys() == new.keys()
    for name, x in old.items():
        assert (x.dtype, x.tobytes()) == (new[name].dtype, new[name].tobytes()), name
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (folder / name).read_bytes() == (tmp_path / "back" / name).read_bytes()
    first, second = (
        json.loads((path / "config.json").read_text()) for path in (folder, tmp_path / "back")
    )
    assert first == second


def test_what_is_imported_is_loaded_and_says_of_texts_what_the_folder_does(folder, workdir):
    run = lsm.load(workdir)
    assert run.experiment.task.model == MODEL and run.step == 0
    said = run.predict(TEXT)
    ids = np.array([tokenizer().encode(TEXT).ids], np.int32)
    assert len(said["log_probability"][0]) == ids.shape[1] - 1
    logits = MODEL.apply({"params": run.params}, ids[:, :-1])
    expected = np.take_along_axis(np.asarray(jax.nn.log_softmax(logits)), ids[:, 1:, None], 2)
    np.testing.assert_allclose(said["log_probability"][0], expected[0, :, 0], atol=1e-4)
    tensors = load_file(folder / "model.safetensors")
    table = run.params["tokens"]["embedding"]
    np.testing.assert_array_equal(table, tensors["model.embed_tokens.weight"].astype("f4"))


@pytest.mark.slow
def test_the_command_lines_read_it_as_a_run(workdir, tmp_path):
    (tmp_path / "texts.txt").write_text(f"{TEXT}\n" * 20)

    def told(*words):
        done = subprocess.run(
            [sys.executable, "-m", "lsm", f"--workdir={workdir}", *words],
            cwd=ROOT,
            capture_output=True,
            text=True,
            env={
                "PATH": "",
                "HOME": str(tmp_path),
                "JAX_PLATFORMS": "cpu",
                "PYTHONPATH": str(ROOT),
            },
        )
        assert not done.returncode, done.stderr
        return done.stdout

    source = f"--config.data.source.source.path={tmp_path / 'texts.txt'}"
    evaluated = told("--mode=eval", source, "--config.train.batch_size=1")
    assert "step 0, test accuracy" in evaluated and "test perplexity" in evaluated
    assert "blocks/qkv/kernel" in told("--mode=table")


def begun(**start):
    tokens = np.random.default_rng(0).integers(0, 257, (8, 9)).astype(np.int32)
    return Experiment(
        name="tuned",
        task=LanguageModelling(model=MODEL),
        data=Data(source=Arrays(train={"tokens": tokens}), test=None),
        optimizer=SGD(learning_rate=0.1),
        train=Train(steps=1, batch_size=8),
        checkpoint=Checkpoint(every=1),
        start=Start(**start),
        writers=(),
    )


@pytest.mark.slow
def test_a_run_starts_from_the_folder_or_the_workdir_and_is_exported(folder, workdir, tmp_path):
    published = open_model(folder)
    assert published.model == MODEL
    starts = {
        "folder": {"path": str(folder), "names": published.names},
        "workdir": {"path": str(workdir)},
    }
    for name, start in starts.items():
        lsm.fit(begun(**start), tmp_path / name)
        assert export_run(tmp_path / name, tmp_path / f"{name}-out") == ("LlamaForCausalLM", 1)
    one, other = (load_file(tmp_path / f"{name}-out/model.safetensors") for name in starts)
    before = load_file(folder / "model.safetensors")
    moved = 0.0
    for name, x in one.items():
        assert x.dtype == np.float32 and x.tobytes() == other[name].tobytes()
        change = np.abs(x - before[name].astype("f4")).max()
        assert change < 0.2
        moved = max(moved, change)
    assert moved > 1e-4
    assert open_model(tmp_path / "folder-out").model == MODEL


def changed(folder, out, **tensors):
    """Copies a folder with other tensors; None takes one away."""
    out.mkdir()
    for path in folder.glob("*.json"):
        (out / path.name).write_bytes(path.read_bytes())
    left = load_file(folder / "model.safetensors") | tensors
    save_file({k: v for k, v in left.items() if v is not None}, out / "model.safetensors")
    return out


def test_missing_surplus_and_misshapen_tensors_are_one_line(folder, tmp_path):
    odd = {
        "model.layers.1.self_attn.q_proj.weight": None,
        "model.layers.1.self_attn.sinks": np.zeros(4, "f4"),
        "model.norm.weight": np.zeros(15, "f4"),
    }
    out = changed(folder, tmp_path / "odd", **odd)
    with pytest.raises(CheckpointError) as error:
        import_model(out, tmp_path / "run")
    line = str(error.value)
    assert "\n" not in line and not (tmp_path / "run").exists()
    for told in (
        r"missing there: 'params/blocks/qkv/kernel' (there 'model.layers.{}.self_attn.q_proj",
        "left over there: ",
        "'model.layers.1.self_attn.sinks'",
        "'model.norm.weight') is (15,) float32 there and (16,) float32 here",
    ):
        assert told in line


def test_without_a_tokenizer_there_is_a_note_and_numbers_are_read(folder, tmp_path, caplog):
    out = changed(folder, tmp_path / "numbers")
    (out / "tokenizer.json").unlink()
    with caplog.at_level(logging.WARNING, "lsm"):
        import_model(out, tmp_path / "run")
    assert "there is no tokenizer; tokens are to be given by their numbers" in caplog.text
    tokens = np.arange(12, dtype=np.int32)[None]
    assert lsm.load(tmp_path / "run").predict({"tokens": tokens})["token"].shape == (1, 11)


def test_a_workdir_that_is_taken_is_refused(folder, workdir):
    with pytest.raises(ConfigError, match="holds a run already; give another folder"):
        import_model(folder, workdir)


def test_an_import_that_was_broken_off_is_no_run(folder, tmp_path, monkeypatch):
    def broken(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("lsm.train.imported._state", broken)
    with pytest.raises(KeyboardInterrupt):
        import_model(folder, tmp_path)
    assert not (tmp_path / "config.json").exists() and not any(tmp_path.glob("checkpoints/*"))


def test_a_tokenizer_may_be_gpt_2_s_pair(folder, tmp_path):
    out = changed(folder, tmp_path / "pair")
    tree = json.loads((out / "tokenizer.json").read_text())
    (out / "tokenizer.json").unlink()
    (out / "vocab.json").write_text(json.dumps(tree["model"]["vocab"]))
    (out / "merges.txt").write_text("#version: 0.2\n")
    import_model(out, tmp_path / "run")
    ids = lsm.load(tmp_path / "run").inputs.encoder.encode("tokens", ["a text"])["tokens"][0]
    np.testing.assert_array_equal(ids, tokenizer().encode("a text").ids)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["exprt"], "'exprt' given; import or export is needed first. Did you mean 'export'?"),
        (["import", "x"], "--workdir: is needed"),
        (["import", "--workdir=x"], "import: one folder or GGUF file is needed; none given."),
        (["export", "--workdir=x"], "--out: is needed, a folder that is new or empty."),
        (["import", "no", "--workdir=x"], "no has no config.json."),
    ],
)
def test_a_slip_on_the_command_line_is_one_line(words, told, capsys):
    assert command.main(words) == 1
    assert capsys.readouterr().err == f"error: {told}\n" or told.endswith("needed")


def test_classes_of_one_s_own_have_their_names_in_an_export(tmp_path):
    model = Classifier(
        families.bert_base(vocabulary=257, layers=1, heads=2, width=8, hidden=8, context=16),
        outputs=2,
    )
    texts = lsm.models.Sequences(np.zeros((1, 2), np.int32), np.ones(1, np.int32))
    shapes = flat(jax.eval_shape(model.init, jax.random.key(0), texts))
    zeros = {at: np.zeros(x.shape, "f4") for at, x in shapes.items()}
    for classes, expected in ((("bad", "good"), ["bad", "good"]), (None, ["LABEL_0", "LABEL_1"])):
        exported(model, shapes, zeros.get, tmp_path / str(classes), classes=classes)
        config = json.loads((tmp_path / str(classes) / "config.json").read_text())
        assert config["id2label"] == dict(zip("01", expected, strict=True))
        assert config["label2id"] == {name: n for n, name in enumerate(expected)}


@pytest.mark.slow
def test_classes_of_texts_keep_their_names(tmp_path):
    model = Classifier(
        families.bert_base(vocabulary=257, layers=1, heads=2, width=8, hidden=8, context=16),
        outputs=2,
    )
    texts = lsm.models.Sequences(np.zeros((1, 2), np.int32), np.ones(1, np.int32))
    shapes = flat(jax.eval_shape(model.init, jax.random.key(0), texts))
    random = np.random.default_rng(0)
    arrays = {at: random.normal(size=x.shape).astype("f4") for at, x in shapes.items()}
    exported(model, shapes, arrays.get, tmp_path / "bert")
    config = json.loads((tmp_path / "bert/config.json").read_text())
    config |= {"id2label": {"0": "bad", "1": "good"}, "label2id": {"bad": 0, "good": 1}}
    (tmp_path / "bert/config.json").write_text(json.dumps(config))
    (tmp_path / "bert/tokenizer.json").write_text(tokenizer().to_str())
    import_model(tmp_path / "bert", tmp_path / "run")
    assert json.loads((tmp_path / "run/inputs.json").read_text())["classes"] == ["bad", "good"]
    export_run(tmp_path / "run", tmp_path / "back")
    assert json.loads((tmp_path / "back/config.json").read_text()) == config


def test_a_number_is_no_class(tmp_path):
    sizes = {"vocabulary": 257, "layers": 1, "heads": 2, "width": 8, "context": 16}
    model = Classifier(families.bert_base(**sizes), outputs=1)
    texts = lsm.models.Sequences(np.zeros((1, 2), np.int32), np.ones(1, np.int32))
    shapes = flat(jax.eval_shape(model.init, jax.random.key(0), texts))
    zeros = {at: np.zeros(x.shape, "f4") for at, x in shapes.items()}
    exported(model, shapes, zeros.get, tmp_path / "bert")
    with pytest.raises(ConfigError, match="num_labels: 1 given; allowed: 2 or more"):
        import_model(tmp_path / "bert", tmp_path / "run")


_MEMORY = """
import re, sys, threading, time
def status(key):
    return int(re.search(key + r":\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024
import jax, orbax.checkpoint, lsm.train.imported as imported
jax.block_until_ready(jax.jit(lambda x: x + 1)(1.0))
before = status("VmRSS")
open("/proc/self/clear_refs", "w").write("5")  # VmHWM begins anew
imported.import_model(sys.argv[1], sys.argv[2])
print(status("VmHWM") - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_an_import_takes_little_more_memory_than_the_parameters(tmp_path):
    model = families.llama(
        vocabulary=2000, layers=8, heads=8, kv_heads=4, width=1024, hidden=4096, context=64
    )
    shapes = flat(jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, 2), np.int32)))
    size = sum(x.size * 4 for x in shapes.values())
    assert 450e6 < size < 600e6
    random = np.random.default_rng(0)

    def drawn(path):
        return random.standard_normal(shapes[path].shape, np.float32)

    exported(model, shapes, drawn, tmp_path / "there", shard=200_000_000)
    done = subprocess.run(
        [sys.executable, "-c", _MEMORY, str(tmp_path / "there"), str(tmp_path / "run")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={"HOME": str(tmp_path), "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)},
    )
    assert not done.returncode, done.stderr
    assert int(done.stdout) < 1.3 * size


@pytest.mark.slow
def test_pictures_are_scaled_as_the_folder_says(tmp_path):
    model = families.vit_ti(outputs=2, layers=1, heads=2, width=8, hidden=8, stem=4)
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3)).astype(np.uint8)
    shapes = jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, 8, 8, 3), np.float32))
    random = np.random.default_rng(0)
    variables = jax.tree.map(lambda x: random.normal(size=x.shape).astype("f4"), shapes)
    mean, std = [0.5, 0.4, 0.3], [0.5, 0.25, 0.2]
    scale = json.dumps({"image_mean": mean, "image_std": std, "rescale_factor": 1 / 255})
    files = {"preprocessor_config.json": scale.encode()}
    save_model(model, variables, tmp_path / "vit", files=files)
    assert json.loads((tmp_path / "vit/config.json").read_text())["image_size"] == 8
    import_model(tmp_path / "vit", tmp_path / "run")
    (tmp_path / "a.png").write_bytes(images.encode_png(pixels))
    run = lsm.load(tmp_path / "run")
    said = run.predict(str(tmp_path / "a.png"))
    logits = model.apply(variables, ((pixels / 255 - mean) / std).astype("f4")[None])
    assert said["label"][0] == logits[0].argmax() and said["class"][0].startswith("LABEL_")
    np.testing.assert_allclose(said["probability"], jax.nn.softmax(logits), atol=1e-5)
