import gzip
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
import tracemalloc

import numpy as np
import pytest

from lsm.data import documents, tokenize
from lsm.data.documents import Position
from lsm.data.texts.tokenizer import Tokenizer
from lsm.data.tokenize import Packing
from lsm.data.tokens import read_index
from lsm.errors import ConfigError, DataError
from lsm.files import exclusive

tokenizers = pytest.importorskip("tokenizers", reason="needs pip install 'lsm[text]'")

ROOT = pathlib.Path(__file__).parents[2]
TEXT = (
    "The quick brown fox jumps over the lazy dog's 1,234 bones.\n\n  Straße, naïve café; "
    "我们 去看 电影。\n日本語のテキスト。\tTabs\tand  two  spaces \r\n🙂👍🏽 emoji\u00a0nbsp e\u0301 "
)
EOS = "<|endoftext|>"


def texts(count: int) -> list[str]:
    """Documents of different lengths, made of the words of TEXT."""
    rng = np.random.default_rng(0)
    words = TEXT.split(" ")
    return [" ".join(rng.choice(words, rng.integers(1, 200))) for _ in range(count)]


@pytest.fixture(scope="session")
def bpe(tmp_path_factory) -> pathlib.Path:
    """A folder with the vocab.json and merges.txt of a little byte-level BPE."""
    folder = tmp_path_factory.mktemp("tiny")
    made = tokenizers.ByteLevelBPETokenizer()
    made.train_from_iterator([TEXT] * 3, 388, min_frequency=2, special_tokens=[EOS])
    made.save_model(str(folder))
    return folder


@pytest.fixture(scope="session")
def gpt2() -> pathlib.Path:
    folder = pathlib.Path(os.environ.get("LSM_TEST_TOKENIZERS", ROOT.parent / "shared/tokenizers"))
    if not (folder / "gpt2/vocab.json").is_file():
        pytest.skip(f"needs GPT-2's tokenizer: no {folder}/gpt2; set LSM_TEST_TOKENIZERS")
    return folder / "gpt2"


def library(folder: pathlib.Path):
    """The same tokenizer, put together by the library's own class."""
    return tokenizers.ByteLevelBPETokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))


def packed(folder: pathlib.Path, documents) -> list[int]:
    reference = library(folder)
    eos = reference.token_to_id(EOS)
    return [i for text in documents for i in [*reference.encode(text).ids, eos]]


def stored(split: pathlib.Path) -> list[int]:
    index = read_index(split)
    shards = [np.fromfile(split / shard.file, index.dtype) for shard in index.shards]
    assert [len(shard) for shard in shards] == [shard.tokens for shard in index.shards]
    return np.concatenate(shards).tolist()


def content(folder: pathlib.Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def json_lines(path: pathlib.Path, documents, column: str = "text") -> pathlib.Path:
    lines = "".join(json.dumps({"id": i, column: text}) + "\n" for i, text in enumerate(documents))
    path.write_bytes(gzip.compress(lines.encode()) if path.suffix == ".gz" else lines.encode())
    return path


def corpus(folder: pathlib.Path) -> list[str]:
    """Two files of JSON lines, one of them gzipped and with an empty document, and a text."""
    json_lines(folder / "a.jsonl", texts(30))
    json_lines(folder / "b.jsonl.gz", [*texts(3), "", TEXT * 20])
    (folder / "c.txt").write_bytes((TEXT * 30).encode())
    return [str(folder / "*.jsonl*"), str(folder / "c.txt")]


CORPUS = [*texts(30), *texts(3), TEXT * 20, TEXT * 30]


@pytest.mark.parametrize("name", ["bpe", "gpt2"])
def test_ids_are_the_librarys_and_decode_to_the_text(name, request, tmp_path):
    folder = request.getfixturevalue(name)
    index = tokenize.tokenize(corpus(tmp_path), tmp_path / "out", Packing(folder))
    expected = packed(folder, CORPUS)
    assert stored(tmp_path / "out/train") == expected
    assert (index.tokens, index.documents) == (len(expected), len(CORPUS))
    made = Tokenizer(folder)
    assert made.decode(expected[:-1]) == EOS.join(CORPUS)
    assert index.vocabulary == {"bpe": 388, "gpt2": 50257}[name]
    assert index.eos == made.eos() == expected[-1]


@pytest.mark.parametrize("name", ["bpe", "gpt2"])
def test_long_documents_in_pieces_have_the_ids_of_the_whole(name, request, tmp_path, monkeypatch):
    folder = request.getfixturevalue(name)
    monkeypatch.setattr(documents, "PIECE", 300)
    inputs = documents.find(corpus(tmp_path), "train")
    assert max(len(piece.text) for piece in documents.read(inputs, Position(), True)) <= 301
    tokenize.tokenize(corpus(tmp_path), tmp_path / "out", Packing(folder))
    assert stored(tmp_path / "out/train") == packed(folder, CORPUS)


def test_without_a_seam_a_document_is_cut_anywhere_but_in_a_character(tmp_path, monkeypatch):
    monkeypatch.setattr(documents, "PIECE", 100)
    text = "日本語のテキスト。" * 50
    (tmp_path / "a.txt").write_bytes(text.encode())
    json_lines(tmp_path / "b.jsonl", [text])
    for inputs in (["a.txt"], ["b.jsonl"]):
        found = documents.find([str(tmp_path / inputs[0])], "train")
        pieces = list(documents.read(found, Position(), True))
        assert "".join(piece.text for piece in pieces) == text
        assert sum(piece.ends for piece in pieces if piece.text) == 1


def test_reading_goes_on_from_any_piece(tmp_path, monkeypatch):
    monkeypatch.setattr(documents, "PIECE", 300)
    inputs = documents.find(corpus(tmp_path), "train")
    pieces = list(documents.read(inputs, Position(), True))
    assert len(pieces) > 80
    for number, piece in enumerate(pieces):
        assert list(documents.read(inputs, piece.after, True)) == pieces[number + 1 :]


def test_workers_alter_nothing(bpe, tmp_path, monkeypatch):
    monkeypatch.setattr(documents, "PIECE", 300)
    inputs = corpus(tmp_path)
    for workers in (1, 3):
        packing = Packing(bpe, shard_tokens=700, workers=workers)
        index = tokenize.tokenize(inputs, tmp_path / str(workers), packing)
    assert len(index.shards) > 10
    assert content(tmp_path / "1") == content(tmp_path / "3")


def command(*arguments) -> list[str]:
    return [sys.executable, "-m", "lsm.data.tokenize", *map(str, arguments)]


@pytest.mark.slow
def test_killed_and_run_again_gives_the_same_bytes(bpe, tmp_path):
    """SIGKILL while shards are being written, once in each input."""
    (tmp_path / "a.txt").write_bytes((TEXT * 8000).encode())  # 5 pieces, each a shard
    json_lines(tmp_path / "b.jsonl.gz", [*texts(800), TEXT * 2000])
    words = (
        tmp_path / "a.txt",
        tmp_path / "b.jsonl.gz",
        f"--tokenizer={bpe}",
        "--shard_tokens=20000",
        "--split=all",
        "--workers=2",
    )
    killed = tmp_path / "killed"
    for reading in (0, 1):
        process = subprocess.Popen(command(*words, f"--out={killed}"), cwd=ROOT)
        while process.poll() is None:
            index = read_index(killed / "all")
            if index and index.position and index.position[0] == reading:
                break
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        assert process.wait(30) == -signal.SIGKILL
        index = read_index(killed / "all")
        assert index.shards and index.position[0] == reading
    done = subprocess.run(
        command(*words, f"--out={killed}"), cwd=ROOT, capture_output=True, text=True, check=True
    )
    packing = Packing(bpe, split="all", shard_tokens=20_000)
    index = tokenize.tokenize([str(word) for word in words[:2]], tmp_path / "once", packing)
    assert content(killed) == content(tmp_path / "once")
    assert done.stdout.startswith(
        f"all: {index.tokens:,} tokens of {index.documents:,} documents by {bpe.name} in {killed}"
    )


@pytest.mark.slow
def test_memory_does_not_grow_with_the_input(bpe, tmp_path, monkeypatch):
    """Python's and NumPy's memory; the library's is that of the pieces in work."""
    monkeypatch.setattr(documents, "PIECE", 1 << 12)
    inputs = tmp_path / "a.txt", json_lines(tmp_path / "b.jsonl.gz", texts(4000))
    inputs[0].write_bytes((TEXT * 5000).encode())
    tracemalloc.start()
    try:
        index = tokenize.tokenize(list(map(str, inputs)), tmp_path / "out", Packing(bpe))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert index.tokens > 900_000
    assert peak < 1_000_000


def word_level(folder: pathlib.Path, words: int) -> pathlib.Path:
    vocabulary = {EOS: 0} | {f"w{number}": number for number in range(1, words)}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token=EOS))
    made.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    made.enable_truncation(2)  # as BERT's tokenizer.json has it; here nothing may be cut off
    made.save(str(folder / "tokenizer.json"))
    return folder


@pytest.mark.parametrize(("words", "dtype"), [(65_536, "uint16"), (65_537, "uint32")])
def test_ids_take_two_bytes_where_these_suffice(words, dtype, tmp_path):
    (tmp_path / "a.txt").write_text(f"w1 w{words - 1} w2")
    packing = Packing(word_level(tmp_path, words))
    index = tokenize.tokenize([str(tmp_path / "a.txt")], tmp_path / "out", packing)
    assert (index.dtype, index.vocabulary) == (dtype, words)
    assert stored(tmp_path / "out/train") == [1, words - 1, 2, 0]


def test_a_document_cannot_end_itself(bpe, tmp_path):
    made = tokenizers.Tokenizer.from_str(library(bpe).to_str())
    made.add_special_tokens([EOS])
    made.save(str(tmp_path / "tokenizer.json"))
    for folder in (bpe, tmp_path):
        tokenizer = Tokenizer(folder)
        ids = tokenizer.encode([f"one{EOS}two"])[0]
        assert tokenizer.eos() not in ids
        assert tokenizer.decode(ids) == f"one{EOS}two"


def test_a_token_of_nothing_is_no_special_one(tmp_path):
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({"": 0, "a": 1, "<s>": 2}, "a"))
    made.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(DataError, match=r"has no token '<\|endoftext\|>' .* special .*<s>"):
        Tokenizer(tmp_path).eos()


def test_no_eos(bpe, tmp_path):
    (tmp_path / "a.txt").write_text("The dog")
    index = tokenize.tokenize([str(tmp_path / "a.txt")], tmp_path / "out", Packing(bpe, eos=None))
    assert stored(tmp_path / "out/train") == library(bpe).encode("The dog").ids
    assert index.eos is None


def test_tokenizers_that_mark_the_beginning_get_whole_documents(tmp_path, monkeypatch):
    """Llama 2's kind: a space before every text would come before every piece."""
    made = tokenizers.SentencePieceBPETokenizer()
    made.train_from_iterator([TEXT] * 3, 400, special_tokens=["<unk>", EOS])
    made.save(str(tmp_path / "tokenizer.json"))
    monkeypatch.setattr(documents, "PIECE", 300)
    (tmp_path / "a.txt").write_bytes((TEXT * 10).encode())
    inputs = [str(tmp_path / "a.txt")]
    tokenize.tokenize(inputs, tmp_path / "out", Packing(tmp_path))
    assert not Tokenizer(tmp_path).joins
    assert stored(tmp_path / "out/train")[:-1] == made.encode(TEXT * 10).ids
    monkeypatch.setattr(documents, "WHOLE", 1000)
    with pytest.raises(DataError, match="encodes only whole documents; divide it"):
        tokenize.tokenize(inputs, tmp_path / "other", Packing(tmp_path))


def test_tiny_shakespeare(gpt2, tfds_dir, tmp_path):
    packing = Packing(gpt2)
    index = tokenize.tokenize(["tfds:tiny_shakespeare"], tmp_path, packing, tfds_dir)
    assert index.tokens == 301_966 + 1  # nanoGPT, data/shakespeare/readme.md; and the end
    assert documents.tfds_splits("tfds:tiny_shakespeare", tfds_dir) == [
        "train",
        "validation",
        "test",
    ]
    rest = Packing(gpt2, split="heldout", slice="validation+test")
    index = tokenize.tokenize(["tfds:tiny_shakespeare"], tmp_path, rest, tfds_dir)
    assert index.documents == 2
    text = Tokenizer(gpt2).decode(stored(tmp_path / "heldout"))
    assert text.startswith("?\n\nGREMIO:") and text.count(EOS) == 2
    for wrong in (Packing(gpt2, column="txet"), Packing(gpt2, split="trian")):
        with pytest.raises(DataError, match=r"^(--column: .*'txet'|split 'trian': .*'train'\?)"):
            tokenize.tokenize(["tfds:tiny_shakespeare"], tmp_path / "new", wrong, tfds_dir)


def test_lone_surrogates_become_question_marks(bpe, tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a\\ud83d b"}\n')
    tokenize.tokenize([str(tmp_path / "a.jsonl")], tmp_path / "out", Packing(bpe, eos=None))
    assert stored(tmp_path / "out/train") == library(bpe).encode("a? b").ids


@pytest.mark.parametrize(
    ("name", "held", "said"),
    [
        ("a.txt", b"x" * 9 + b"\xff", r"a.txt is not UTF-8 text: invalid start byte at byte 9\.$"),
        ("a.txt", "é".encode()[:1], r"a.txt is not UTF-8 text: unexpected end of data at byte 0"),
        ("a.txt", b"", "a.txt hold no text"),
        ("a.txt.gz", gzip.compress(b"x" * 99, mtime=0)[:-9], "a.txt.gz cannot be read: "),
        ("a.txt.gz", b"plain", "a.txt.gz cannot be read: Not a gzipped file"),
        ("a.jsonl", b'{"text": "a"}\n\n{"text": \n', "a.jsonl line 3 is not JSON: "),
        ("a.jsonl", b'["a"]', "a.jsonl line 1 is not a JSON object"),
        ("a.jsonl", b'{"text": 3}', "^--column: .*a.jsonl line 1 holds int; text is needed"),
        ("a.jsonl", b'{"test": "b"}', "line 1 has no 'text'; it has test. Did you mean 'test'?"),
        ("b.txt", b"text", r"a.txt': no such file, and no file matches. Did you mean 'b.txt'\?"),
    ],
)
def test_bad_inputs_are_told_in_a_line(name, held, said, bpe, tmp_path):
    (tmp_path / name).write_bytes(held)
    given = str(tmp_path / name.replace("b.txt", "a.txt"))
    with pytest.raises(DataError, match=said) as error:
        tokenize.tokenize([given], tmp_path / "out", Packing(bpe))
    assert "\n" not in str(error.value)


def test_bad_tokenizers_are_told_in_a_line(bpe, tmp_path):
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "vocab.txt").write_text("[PAD]")
    (tmp_path / "tokenizer.json").write_text("{}")
    for given, said in (
        (tmp_path / "gtp2", "gtp2 is not there; give a tokenizer.json, or a folder"),
        (tmp_path / "vocab.txt", "vocab.txt cannot be read"),
        (tmp_path, "tokenizer.json cannot be read"),
    ):
        with pytest.raises(DataError, match=said) as error:
            Tokenizer(given)
        assert "\n" not in str(error.value)
    packing = Packing(bpe, eos="<|endoftxt|>")
    with pytest.raises(DataError, match=r"no token '<\|endoftxt\|>'.* Did you mean '<\|endoftext"):
        tokenize.tokenize([str(tmp_path / "a.txt")], tmp_path / "out", packing)
    assert not (tmp_path / "out").exists()


def test_a_finished_split_is_checked_and_not_written_again(bpe, tmp_path):
    inputs, split = corpus(tmp_path), tmp_path / "out/train"
    index = tokenize.tokenize(inputs, tmp_path / "out", Packing(bpe, shard_tokens=5000))
    before = {path: path.stat().st_mtime_ns for path in split.iterdir()}
    assert tokenize.tokenize(inputs, tmp_path / "out", Packing(bpe, shard_tokens=5000)) == index
    assert {path: path.stat().st_mtime_ns for path in split.iterdir()} == before
    changed = bytearray((split / "00001.bin").read_bytes())
    changed[7] ^= 1
    (split / "00001.bin").write_bytes(changed)
    with pytest.raises(DataError, match="00001.bin is damaged: its checksum is not that of"):
        tokenize.tokenize(inputs, tmp_path / "out", Packing(bpe, shard_tokens=5000))


def test_other_work_is_not_overwritten(bpe, tmp_path):
    inputs = corpus(tmp_path)
    tokenize.tokenize(inputs, tmp_path / "out", Packing(bpe))
    before = content(tmp_path / "out")
    (tmp_path / "words").mkdir()
    words = word_level(tmp_path / "words", 10)
    for given, packing, said in (
        (
            inputs,
            Packing(bpe, shard_tokens=9),
            "train was begun with shard_tokens 268435456, not 9",
        ),
        (inputs[1:], Packing(bpe), "train was begun with inputs .*c.txt"),
        (inputs, Packing(words), "was made by another tokenizer, .* of 388 ids, not words of 10"),
        (inputs, Packing(words, split="test"), "out/train was made by another tokenizer"),
    ):
        with pytest.raises(DataError, match=said):
            tokenize.tokenize(given, tmp_path / "out", packing)
    assert content(tmp_path / "out") == before


def test_only_one_process_writes_a_split(bpe, tmp_path):
    (tmp_path / "out/train").mkdir(parents=True)
    with (
        exclusive(tmp_path / "out/train/.lock", DataError("taken")),
        pytest.raises(DataError, match="another process is writing .*train"),
    ):
        tokenize.tokenize(corpus(tmp_path), tmp_path / "out", Packing(bpe))


def test_packing_checks_its_fields(bpe):
    for wrong, said in (
        ({"workers": 0}, "--workers: 0 given; allowed: 1 to 1,024"),
        ({"workers": 100_000}, "--workers: 100000 given; allowed: 1 to 1,024"),
        ({"shard_tokens": -1}, "--shard_tokens: -1 given; allowed: 1 to "),
        ({"split": "a/b"}, "--split: 'a/b' is no name of a folder"),
    ):
        with pytest.raises(ConfigError, match=said):
            Packing(bpe, **wrong)


@pytest.mark.slow
def test_the_command_writes_every_split_of_a_dataset(bpe, tfds_dir, tmp_path):
    words = [f"--tokenizer={bpe}", f"--out={tmp_path}", f"--data_dir={tfds_dir}", "--workers=1"]
    done = subprocess.run(
        command("tfds:tiny_shakespeare", *words), cwd=ROOT, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    for line, split in zip(lines, ("train", "validation", "test"), strict=True):
        tokens = read_index(tmp_path / split).tokens
        assert line.startswith(f"{split}: {tokens:,} tokens of 1 documents by {bpe.name} in ")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["none.txt"], "error: input 'none.txt': no such file, and no file matches."),
        (["tfds:a", "b.txt"], "error: --split: is needed where a dataset of TFDS is not the only"),
    ],
)
def test_the_command_tells_errors_in_a_line(words, said, bpe, tmp_path):
    done = subprocess.run(
        command(*words, f"--tokenizer={bpe}", f"--out={tmp_path}"),
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr.startswith(said) and done.stderr.count("\n") == 1
