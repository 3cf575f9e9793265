import hashlib
import os
import pathlib
import re

import jax
import numpy as np
import pytest
from PIL import Image

from lsm.data import (
    ArrayDataset,
    Arrays,
    CharText,
    Digits,
    EvalBatches,
    Folder,
    TrainBatches,
    cache,
    splits,
)
from lsm.errors import ConfigError, DataError

SHARDS = {"train": [600, 400], "test": [101]}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LSM_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize(
    ("split", "ranges"),
    [
        ("train", [("train", 0, 1000)]),
        ("train[:90%]", [("train", 0, 900)]),
        ("train[10%:20%]+test", [("train", 100, 200), ("test", 0, 101)]),
        ("train[995:]", [("train", 995, 1000)]),
        ("train[-5:]", [("train", 995, 1000)]),
        ("test[:50%]", [("test", 0, 50)]),  # 50.5 rounds to the even 50
        ("test + train[:0]", [("test", 0, 101)]),
        ("train[:1shard]", [("train", 0, 600)]),
        ("all", [("train", 0, 1000), ("test", 0, 101)]),
    ],
)
def test_slices(split, ranges):
    assert [tuple(r) for r in splits.resolve(split, SHARDS, "set")] == ranges


@pytest.mark.parametrize(
    ("split", "said"),
    [
        ("trian", "has no split 'trian'; it has train, test. Did you mean 'train'?"),
        ("train+tset[:5]", "has no split 'tset'; it has train, test. Did you mean 'test'?"),
        ("train[:2000]", "Requested slice .* incompatible with 1000 examples"),
        ("train[10%:20", "Unrecognized split format"),
        ("train[:200%]", "boundaries should be"),
        ("train[500:400]", "holds no example"),
        ("", "Unrecognized split format"),
    ],
)
def test_bad_splits_are_one_line(split, said):
    with pytest.raises(DataError, match=said) as error:
        splits.resolve(split, SHARDS, "set")
    assert "\n" not in str(error.value) and "set" in str(error.value)


def test_arrays_slice_join_and_narrow():
    source = Arrays(
        {"x": np.arange(10.0), "n": np.arange(10)}, test={"x": np.arange(5.0), "n": np.arange(5)}
    )
    dataset = source.open("train[8:]+test[:2]+train[:1]")
    batch = dataset.take(np.array([4, 0, 3, 2, 1, 0]))
    assert batch["n"].tolist() == [0, 8, 1, 0, 9, 8]
    assert batch["x"].tolist() == [0, 8, 1, 0, 9, 8]
    assert len(dataset) == 5
    assert dataset.spec["n"] == jax.ShapeDtypeStruct((), np.int32)
    assert dataset.spec["x"] == jax.ShapeDtypeStruct((), np.float32)


def test_arrays_errors():
    with pytest.raises(ConfigError, match=r"Arrays.train: columns have lengths .*'y': 2"):
        Arrays({"x": np.zeros(3), "y": np.zeros(2)})
    with pytest.raises(DataError, match="'n' holds integers beyond 32 bits"):
        Arrays({"n": np.array([2**40])}).open("train")


def test_digits():
    train, test = Digits().open("train"), Digits().open("test")
    assert (len(train), len(test)) == (1437, 360)
    assert train.spec["image"] == jax.ShapeDtypeStruct((8, 8, 1), np.uint8)
    assert train.spec["label"] == jax.ShapeDtypeStruct((), np.int32)
    assert train.classes == tuple("0123456789")
    both = Digits().open("all").take(np.arange(1797))
    assert both["image"].max() == 255 and both["image"].min() == 0
    assert np.bincount(both["label"]).tolist() == DIGITS
    # Recorded once; a result on Digits is comparable only while the splits stay what they are.
    digest = hashlib.sha256(test.take(np.arange(360))["label"].tobytes()).hexdigest()
    assert digest.startswith("19eeedcf82ca618f")


# scikit-learn's own count of each digit (sklearn.datasets.load_digits)
DIGITS = [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]


def test_digits_keep_what_scikit_learn_has():
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    ours = Digits().open("all").take(np.arange(1797))
    theirs = sorted((tuple(i), n) for i, n in zip(images.tolist(), labels.tolist(), strict=True))
    unscaled = np.rint(ours["image"].reshape(-1, 64) * (16 / 255))
    assert theirs == sorted(
        (tuple(i), n) for i, n in zip(unscaled.tolist(), ours["label"].tolist(), strict=True)
    )


TEXT = "the quick brown fox jumps over the lazy dog. "


def text_source(**splits_: str) -> Arrays:
    return Arrays(**{name: {"text": np.array([text])} for name, text in splits_.items()})


def decoded(dataset, tokens) -> str:
    return "".join(dataset.vocabulary[t] for t in tokens)


def test_text_windows_for_training_start_everywhere():
    dataset = CharText(text_source(train=TEXT), length=5).open("train")
    assert dataset.vocabulary == tuple(sorted(set(TEXT))) == dataset.classes
    assert len(dataset) == len(TEXT) - 5
    tokens = dataset.take(np.arange(len(dataset)))["tokens"]
    assert tokens.dtype == np.int32 and tokens.shape == (len(dataset), 6)
    assert [decoded(dataset, row) for row in tokens] == [
        TEXT[i : i + 6] for i in range(len(TEXT) - 5)
    ]


@pytest.mark.parametrize("length", [1, 4, 5, 44])
def test_text_evaluation_predicts_every_character_but_the_first_once(length):
    dataset = CharText(text_source(train=TEXT), length).open("train")
    predicted = []
    batches = EvalBatches(dataset, 4)
    for number in range(len(batches)):
        batch = batches.batch_at(number)
        assert batch["weight"].shape == (4, length)
        targets = batch["tokens"][:, 1:][batch["weight"] == 1]
        assert set(np.unique(batch["weight"])) <= {0, 1}
        predicted += targets.tolist()
    assert decoded(dataset, predicted) == TEXT[1:]


def test_text_slices_count_characters():
    source = CharText(text_source(train=TEXT * 2, test="lazy fox"), length=3)
    part = source.open("train[:50%]")
    assert len(part) == len(TEXT) - 3
    assert decoded(part, part.take(np.array([0]))["tokens"][0]) == "the "
    both = source.open("train[-4:]+test")
    rows = both.take(np.arange(len(both)))["tokens"]
    assert decoded(both, rows[0]) + decoded(both, rows[1:, -1]) == "og. lazy fox"


def test_text_joins_the_texts_of_a_split():
    source = Arrays({"text": np.array([b"one ", "zwölf ".encode()], object)})
    dataset = CharText(source, 2).open("train")
    assert len(dataset) == len("one zwölf ") - 2 and "ö" in dataset.vocabulary


def test_text_errors():
    unknown = CharText(text_source(train="abcabc", test="abécabc"), 2)
    with pytest.raises(DataError, match=r"split 'test'.*'é' \(U\+00E9\) at position 2 .* the 3"):
        unknown.open("test")
    assert len(unknown.open("train")) == 4
    with pytest.raises(DataError, match=r"'train' of .* has 3 characters; CharText.length 3 needs"):
        CharText(text_source(train="abc"), 3).open("train")
    with pytest.raises(DataError, match="has no column 'text'; it has words"):
        CharText(Arrays({"words": np.array(["ab"])}), 1).open("train")
    for text in (b"caf\xe9", "a\ud800b"):  # not UTF-8; half a character
        source = CharText(Arrays({"text": np.array([text], object)}), 1)
        with pytest.raises(DataError, match=r"column 'text', is not text: .*can't (de|en)code"):
            source.open("train")
    with pytest.raises(ConfigError, match=r"CharText.length: 0 is below 1"):
        CharText(length=0)


def test_tiny_shakespeare(tfds_dir):
    source = CharText(length=64)
    train, validation = (source.open(split, tfds_dir) for split in ("train", "validation"))
    assert len(train.vocabulary) == 65  # as nanoGPT counts them
    assert len(train) == 1_003_854 - 64 and len(validation) == 55_770 - 64
    tokens = train.take(np.array([0]))["tokens"][0]
    assert decoded(train, tokens).startswith("First Citizen:\nBefore we proceed")
    weight = validation.evaluation().take(np.arange(len(validation.evaluation())))["weight"]
    assert weight.sum() == 55_770 - 1
    assert TrainBatches(train, 12).batch_at(0)["tokens"].shape == (12, 65)


@pytest.fixture
def tree(tmp_path):
    """train: 3 red, 2 blue of different sizes and kinds; val: 1 blue."""
    root = tmp_path / "tree"
    made = [("train/red", "a.png"), ("train/red", "b.jpg"), ("train/red", "c.JPEG")]
    made += [("train/blue", "a.png"), ("train/blue", "d.png"), ("val/blue", "e.png")]
    for i, (folder, name) in enumerate(made):
        (root / folder).mkdir(parents=True, exist_ok=True)
        colour = (255, 0, 0) if "red" in folder else (0, 0, 255)
        Image.new("RGB", (10 + i, 20), colour).save(root / folder / name)
    (root / "train/red/notes.txt").write_text("not a picture")
    return root


@pytest.mark.parametrize("cached", [True, False])
def test_folder(tree, cached, monkeypatch):
    if not cached:
        monkeypatch.setattr("lsm.data.cache.MAX_BYTES", 0)
    source = Folder("tree", size=(6, 4))
    train, val = source.open("train", tree.parent), source.open("val", tree.parent)
    assert (len(train), len(val)) == (5, 1)
    assert train.classes == val.classes == ("blue", "red")
    assert train.spec["image"] == jax.ShapeDtypeStruct((6, 4, 3), np.uint8)
    batch = train.take(np.arange(5))
    assert sorted(batch["label"].tolist()) == [0, 0, 1, 1, 1] and batch["label"].dtype == np.int32
    red = batch["image"][..., 0].mean(axis=(1, 2)) > 200
    np.testing.assert_array_equal(red, batch["label"] == 1)
    assert len(source.open("train[:2]+val", tree.parent)) == 3


def test_folder_without_splits_is_train(tree):
    dataset = Folder(str(tree / "train"), size=4).open("train[:80%]")
    assert len(dataset) == 4 and dataset.classes == ("blue", "red")


def test_folder_order_is_by_hash_of_the_path(tree):
    dataset = Folder(str(tree), size=4).open("train")
    files = [path.relative_to(tree) for path in (tree / "train").glob("*/?.*")]
    ordered = sorted(files, key=lambda p: hashlib.sha256(p.as_posix().encode()).digest())
    expected = [int(path.parent.name == "red") for path in ordered]
    assert dataset.take(np.arange(5))["label"].tolist() == expected


def test_folder_sees_changed_pictures(tree):
    source = Folder(str(tree), size=4)
    before = source.open("val").take(np.array([0]))["image"]
    Image.new("RGB", (30, 30), (0, 255, 0)).save(tree / "val/blue/e.png")
    after = source.open("val").take(np.array([0]))["image"]
    assert before[..., 2].min() == 255 and after[..., 1].min() == 255


def test_a_grey_picture_of_16_bits_keeps_its_upper_8(tree):
    grey = np.array([[0, 255, 256], [32768, 65279, 65535]], np.uint16)
    Image.fromarray(grey).save(tree / "val/blue/e.png")
    image = Folder(str(tree), size=(2, 3)).open("val").take(np.array([0]))["image"][0]
    assert image[..., 0].tolist() == image[..., 2].tolist() == [[0, 0, 1], [128, 254, 255]]


def picture(path: pathlib.Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4)).save(path)


@pytest.mark.parametrize(
    ("stray", "other"),
    [
        ("train/0.png", "train/[a-z]+/.*"),  # once: the one class 'train', and one example
        ("0.png", "train/[a-z]+/.*"),
        ("train/red/more/0.png", "train/[a-z]+/.*"),
        ("train/red/even/more/0.png", "train/[a-z]+/.*"),
    ],
)
def test_folder_names_a_picture_at_another_depth(tree, stray, other):
    picture(tree / stray)
    with pytest.raises(DataError, match=f"({stray} and {other}|{other} and {stray}) are at"):
        Folder(str(tree)).open("train")


def test_folder_does_not_see_hidden_files(tree):
    picture(tree / "train/.thumbnails/a.png")
    picture(tree / "train/red/.a.png")
    picture(tree / ".trash/a.png")
    dataset = Folder(str(tree), size=4).open("train")
    assert dataset.classes == ("blue", "red") and len(dataset) == 5


def test_folder_takes_links_and_names_of_any_bytes(tree):
    (tree / "train/green").symlink_to(tree / "train/red")
    os.rename(tree / "train/blue/a.png", os.fsencode(tree) + b"/train/blue/caf\xe9.png")
    dataset = Folder(str(tree), size=4).open("train")
    assert dataset.classes == ("blue", "green", "red") and len(dataset) == 8


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize(
    ("link", "to", "said"),
    [
        ("train/red/gone.png", "nowhere.png", r"red/gone\.png.*(cannot be read|No such file)"),
        ("train/red/loop.png", "loop.png", r"red/loop\.png.*(cannot be read|symbolic links)"),
        ("train/red/up", "..", r"train/.* and train/.* are at different depths"),
    ],
)
def test_folder_names_a_broken_link(tree, link, to, said, cached, monkeypatch):
    if not cached:
        monkeypatch.setattr("lsm.data.cache.MAX_BYTES", 0)
    (tree / link).symlink_to(to)
    with pytest.raises(DataError, match=said) as error:
        dataset = Folder(str(tree)).open("train")
        dataset.take(np.arange(len(dataset)))
    assert "\n" not in str(error.value)


def test_folder_errors(tree, tmp_path):
    with pytest.raises(DataError, match="has no split 'test'; it has train, val"):
        Folder(str(tree)).open("test")
    with pytest.raises(DataError, match="trea is not there"):
        Folder("trea").open("train", tree.parent)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no picture as CLASS/FILE or SPLIT/CLASS/FILE"):
        Folder(str(tmp_path / "empty")).open("train")
    (tree / "val/blue/cut.png").write_bytes((tree / "val/blue/e.png").read_bytes()[:40])
    dataset = Folder(str(tree)).open("val")
    with pytest.raises(DataError, match=r"picture .*cut\.png cannot be read") as error:
        dataset.take(np.array([0]))  # whichever is asked for: all are decoded
    assert "\n" not in str(error.value)
    with pytest.raises(ConfigError, match=r"Folder.size: 0 is not a size"):
        Folder("x", size=0)


def test_hymenoptera(tfds_dir):
    root = tfds_dir.parent / "imagefolder"
    if not root.is_dir():
        pytest.skip(f"needs {root}")
    dataset = Folder("hymenoptera", size=32).open("train", root)
    labels = dataset.take(np.arange(len(dataset)))["label"]
    assert dataset.classes == ("ants", "bees")
    assert np.bincount(labels).tolist() == [123, 121]
    assert 30 < labels[:120].sum() < 90  # mixed: a slice is a sample of both


def test_examples_of_the_documentation_run():
    text = (pathlib.Path(__file__).parents[2] / "docs" / "data.md").read_text()
    names: dict = {}
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(block, names)
    spirals = names["Spirals"](points=50).open("train[:60%]")
    batches = TrainBatches(spirals, 8)
    assert batches.batch_at(0)["x"].shape == (8, 2)
    image = np.full((4, 2, 2, 1), 250, np.uint8)
    bright = TrainBatches(ArrayDataset({"image": image}), 4, augment=(names["Brightness"](20),))
    assert 230 <= bright.batch_at(0)["image"].min() <= bright.batch_at(0)["image"].max() <= 255


def test_what_tells_data_from_other_data(tree, monkeypatch):
    """Compared when a run goes on: names, sizes, order of classes; not where the data lies."""
    found = [Folder(str(tree), 4).open("train").identity]
    monkeypatch.setattr(cache, "MAX_BYTES", 0)  # read at random, not from the cache
    found.append(Folder(str(tree), 4).open("train").identity)
    found.append(
        Folder(tree.rename(tree.parent / "moved").name, 4).open("train", tree.parent).identity
    )
    assert found[0] == found[1] == found[2]
    tree = tree.parent / "moved"
    picture = next((tree / "train").glob("*/*"))
    picture.write_bytes(picture.read_bytes() + b"more")
    changed = Folder(str(tree), 4).open("train")
    assert changed.identity != found[0]
    assert changed.rows(0, 2).identity == {**changed.identity, "examples": 2}
    text = [CharText(text_source(train=words), length=2) for words in ("abc abc", "abc abd")]
    told = [source.open("train").identity for source in text]
    assert told[0]["examples"] == told[1]["examples"] and told[0] != told[1]
    halves = text[0].open("train[:3]").evaluation().identity
    assert set(halves) == {"examples", "text"}


def test_pixels_are_not_joined_with_fractions():
    """Whole numbers are (tests/train/test_splits.py); bytes would be 0 to 255 among 0 to 1."""
    pixels = np.zeros((2, 4, 4, 1), np.uint8)
    source = Arrays(train={"image": pixels}, test={"image": np.float32(pixels)})
    with pytest.raises(DataError, match="'image' is uint8 in one split and float32 in another"):
        source.open("train+test").take(np.arange(1))


@pytest.mark.parametrize(
    ("other", "line"),
    [
        ({"x": np.ones((2, 2))}, r"'x' is \(3,\) in one of the splits that are joined and \(2,\)"),
        ({"x": np.ones(2)}, r"'x' is \(3,\) in one of .* and \(\) in another"),
        (
            {"x": np.ones((2, 3)), "y": np.ones(2)},
            "'y' is not in all of the splits that are joined",
        ),
        ({"y": np.ones(2)}, "'x' is not in all of the splits"),
    ],
)
def test_splits_of_other_shapes_or_columns_are_not_joined(other, line):
    source = Arrays(train={"x": np.ones((2, 3))}, test=other)
    with pytest.raises(DataError, match=line):
        source.open("train+test").take(np.arange(1))


def test_parts_that_are_joined_tell_each():
    source = Arrays(train={"x": np.arange(10)}, test={"x": np.arange(4)})
    assert source.open("train[:50%]+test").identity == {"parts": [{"examples": 5}, {"examples": 4}]}
