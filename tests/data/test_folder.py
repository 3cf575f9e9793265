"""Trees with files that are no pictures, damaged, empty, turned or of odd kinds."""

import logging
import os
import zlib

import numpy as np
import pytest
from PIL import Image

import lsm
from lsm import Data, Experiment, Train
from lsm.data import Folder, build, folder, images
from lsm.errors import DataError
from lsm.models import MLP
from lsm.optim import SGD
from lsm.tasks import Classification

CORNERS = np.array([[0, 60, 120], [180, 240, 30]], np.uint8)


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    monkeypatch.setattr(folder, "_told", set())


@pytest.fixture(params=["cached", "each batch"])
def cached(request, monkeypatch):
    if request.param == "each batch":
        monkeypatch.setattr("lsm.data.cache.MAX_BYTES", 0)
    return request.param == "cached"


@pytest.fixture
def tree(tmp_path):
    """Four pictures, two a class."""
    rng = np.random.default_rng(0)
    for name in ("cat/a.png", "cat/b.jpg", "dog/c.png", "dog/d.jpg"):
        file = tmp_path / "tree" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (9, 7, 3), np.uint8)).save(file)
    return tmp_path / "tree"


BAD = {
    "cat/cut.png": "truncated",
    "cat/text.jpg": "no picture of a known kind",
    "dog/bomb.png": "4294967296 pixels",
    "dog/empty.png": "it is empty",
    "dog/float.tif": "pixels are of 32 bits",
    "dog/gone.png": "(no such file|No such file)",
}
"""Files that cannot be read, and what is said of each."""


def spoil(file):
    """Makes one of the files in BAD."""
    whole = (file.parents[1] / "cat/a.png").read_bytes()
    # A PNG's signature, the length and the name of its header; width and height; the rest; CRC-32.
    header = b"IHDR" + b"\0\1\0\0" * 2 + whole[24:29]
    content = {
        "cut.png": whole[: len(whole) // 2],
        "text.jpg": b"not a picture",
        "empty.png": b"",
        "bomb.png": whole[:12] + header + zlib.crc32(header).to_bytes(4, "big") + whole[33:],
    }
    if file.name == "float.tif":
        Image.new("F", (2, 2)).save(file)
    elif file.name == "gone.png":
        file.symlink_to("nowhere.png")
    else:
        file.write_bytes(content[file.name])


def test_what_cannot_be_read_is_named_before_the_first_step(tree, cached):
    for name, said in BAD.items():
        if name == "cat/cut.png" and not cached:  # its header is whole
            continue
        spoil(tree / name)
        with pytest.raises(DataError, match=rf"{name}.*{said}") as error:
            list(Folder(str(tree), size=4).open("train").held())
        assert "\n" not in str(error.value)
        (tree / name).unlink()


def test_bad_files_are_skipped_and_counted_where_that_is_asked(tree, cached, caplog):
    clean = Folder(str(tree), size=4).open("train").take(np.arange(4))
    for name in BAD:
        spoil(tree / name)
    (tree / "bird").mkdir()
    source = Folder(str(tree), size=4, skip_bad=True)
    with caplog.at_level(logging.WARNING, "lsm.data"):
        found = [source.open(split) for split in ("train", "train[:3]")]
    assert [len(dataset) for dataset in found] == [4, 3] and found[0].classes == ("cat", "dog")
    np.testing.assert_array_equal(found[0].take(np.arange(4))["image"], clean["image"])
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 2, lines
    assert "1 no pictures by their endings, and left out: bird." in lines[0]
    assert "6 no pictures that can be read, and left out: cat/cut.png (image file is" in lines[1]
    for file in tree.glob("dog/[cd].*"):
        file.unlink()
    with pytest.raises(DataError, match="dog: none of its pictures can be read"):
        source.open("train")


def test_what_is_left_out_is_said_once(tree, caplog):
    (tree / "cat/notes.txt").write_text("")
    (tree / "README").write_text("")  # in no class
    with caplog.at_level(logging.WARNING, "lsm.data"):
        for _ in range(2):
            Folder(str(tree), size=4).open("train")
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.endswith(": 1 no pictures by their endings, and left out: cat/notes.txt.")


@pytest.mark.parametrize("form", ["CLASS", "SPLIT/CLASS"])
def test_an_empty_class_folder_is_an_error(tree, form):
    root = tree if form == "CLASS" else tree.parent
    (tree / "bird").mkdir()
    (tree / "bird/notes.txt").write_text("")
    (tree.parent / "other").mkdir()  # beside the splits
    with pytest.raises(DataError, match="bird: no picture in there; remove it, or put some there"):
        Folder(str(root), size=4).open("train" if form == "CLASS" else "tree")


def test_one_class_cannot_be_told_apart(tree, tmp_path):
    for file in (tree / "dog").iterdir():
        file.unlink()
    (tree / "dog").rmdir()
    experiment = Experiment(
        name="one",
        task=Classification(model=MLP(widths=(), outputs=2)),
        data=Data(source=Folder(str(tree), size=4)),
        optimizer=SGD(learning_rate=0.1),
        train=Train(steps=1, batch_size=2),
    )
    with pytest.raises(DataError, match="has one class, 'cat'; two or more are needed"):
        lsm.fit(experiment, tmp_path / "run")


def test_a_photo_stands_as_its_exif_says(tree):
    """Its pixels are stored as such a camera stores them, and come out as the eye saw them."""
    back = {
        1: None,
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,  # the viewer turns it by 270
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    image = Image.fromarray(np.kron(CORNERS, np.ones((8, 8), np.uint8))).convert("RGB")
    for orientation, way in back.items():
        stored = image if way is None else image.transpose(way)
        exif = Image.Exif()
        exif[0x0112] = orientation
        for suffix, near in ((".png", 0), (".jpg", 3), (".webp", 6), (".tif", 0)):
            file = tree / f"cat/photo{suffix}"
            stored.save(file, exif=exif)
            seen = images.decode(file)
            np.testing.assert_allclose(seen.astype(int), np.asarray(image, int), atol=near)
        # And as it is stored where that is asked for, as TFDS has it.
        content = (tree / "cat/photo.png").read_bytes()
        (of_bytes,) = images.decode_all([content], upright=False)
        np.testing.assert_array_equal(of_bytes, np.asarray(stored))
        # So a dataset that is prepared of the tree gets them upright.
        prepared = images.decode(build._as_rgb(tree / "cat/photo.png"))
        np.testing.assert_array_equal(prepared, np.asarray(image))


def test_of_an_animation_the_first_picture_is_taken(tree):
    frames = [Image.new("RGB", (6, 6), colour) for colour in ("red", "blue")]
    for suffix in (".gif", ".webp", ".png"):
        file = tree / f"cat/film{suffix}"
        frames[0].save(file, save_all=True, append_images=frames[1:])
        red = images.decode(file).reshape(-1, 3)
        assert (red[:, 0] > 240).all() and (red[:, 2] < 15).all()
    assert len(Folder(str(tree), size=4).open("train")) == 7


def test_a_name_of_any_bytes_can_be_skipped(tree):
    os.rename(tree / "cat/a.png", os.fsencode(tree) + b"/cat/caf\xe9.png")
    (tree / "cat/cut.png").write_bytes(b"x")
    assert len(Folder(str(tree), size=4, skip_bad=True).open("train")) == 4
