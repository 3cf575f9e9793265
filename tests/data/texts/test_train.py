import pathlib
import tracemalloc

import pytest

from lsm.data import documents, tokenize
from lsm.data.texts import train
from lsm.data.texts.tokenizer import Tokenizer
from lsm.data.texts.vocabulary import Subwords
from lsm.data.tokens import read_index

tokenizers = pytest.importorskip("tokenizers", reason="needs pip install 'lsm[text]'")

TEXT = "".join(f"number {i} of many runners runs. 我喜欢猫 {i % 7}\n" for i in range(300))


def command(*words):
    return tokenize.main(["train", *map(str, words)])


@pytest.mark.parametrize("kind", ["bpe", "wordpiece", "unigram"])
def test_the_command_learns_the_same_from_files_and_what_it_writes_is_read(kind, tmp_path, capsys):
    if kind == "unigram":
        pytest.importorskip("sentencepiece", reason="needs pip install 'lsm[text]'")
    (tmp_path / "a.txt").write_text(TEXT)
    flags = (f"--kind={kind}", "--size=320")
    for out in ("one", "two", "two"):
        assert command(tmp_path / "a.txt", *flags, f"--out={tmp_path / out}") == 0
    assert f"{kind} of" in capsys.readouterr().out
    one, two = (tmp_path / name / "tokenizer.json" for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()
    peer = tokenizers.Tokenizer.from_file(str(one))
    peer.encode_special_tokens = True
    expected = peer.encode("runners [EOS] 猫", add_special_tokens=False).ids
    assert Tokenizer(one).encode(["runners [EOS] 猫"])[0].tolist() == expected
    eos = "[SEP]" if kind == "wordpiece" else "[EOS]"
    words = [str(tmp_path / "a.txt"), f"--tokenizer={one}", f"--out={tmp_path / 'packed'}"]
    assert tokenize.main([*words, f"--eos={eos}"]) == 0
    assert read_index(tmp_path / "packed/train").eos == peer.token_to_id(eos)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ((), "no input given"),
        (("nowhere.txt",), "no such file"),
        (("empty.txt",), "hold no text"),
        (("a.txt", "--size=10"), "Subwords.size"),
        (("a.txt", "--kind=words"), "kind"),
        (("a.txt", "--out=other"), "another tokenizer"),
    ],
)
def test_errors_are_told_in_a_line(words, told, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    pathlib.Path("a.txt").write_text(TEXT)
    pathlib.Path("empty.txt").touch()
    pathlib.Path("other").mkdir()
    pathlib.Path("other/tokenizer.json").write_text("{}")
    words = words if any("--out" in word for word in words) else (*words, "--out=out")
    assert command(*words) == 1
    line = capsys.readouterr().err.strip()
    assert told in line and "\n" not in line


def test_memory_does_not_grow_with_the_texts(tmp_path, monkeypatch):
    monkeypatch.setattr(documents, "PIECE", 1 << 12)
    peaks = []
    for repeats in (4, 40):
        path = tmp_path / f"{repeats}.txt"
        path.write_text(TEXT * repeats)
        inputs = documents.find([str(path)], "train")
        tracemalloc.start()
        train.train(inputs, Subwords(kind="wordpiece", size=300), tmp_path / str(repeats))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0]
