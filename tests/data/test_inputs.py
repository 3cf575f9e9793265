"""What is given to a model from outside, as the columns that it reads."""

import json

import jax
import numpy as np
import pytest
from PIL import Image

from lsm.data import CharText, Tfds
from lsm.data.inputs import Inputs
from lsm.errors import DataError

PICTURES = Inputs(
    {
        "image": jax.ShapeDtypeStruct((4, 6, 3), np.uint8),
        "label": jax.ShapeDtypeStruct((), np.int32),
    },
    classes=("a", "b"),
)
TEXTS = Inputs({"tokens": jax.ShapeDtypeStruct((6,), np.int32)}, ("a", "b", "c"), "abc")
NUMBERS = Inputs({"x": jax.ShapeDtypeStruct((2,), np.float32)})
BESIDE = Inputs(
    {"x": jax.ShapeDtypeStruct((5,), np.float32)},
    names={"colour": ("blue", "red"), "n": ("9", "10")},
    joined={"x": ("w", "colour", "n")},
)
NAMED = Inputs({"colour": jax.ShapeDtypeStruct((), np.int32)}, names={"colour": ("blue", "red")})


@pytest.mark.parametrize("inputs", [PICTURES, TEXTS, NUMBERS, NAMED, BESIDE])
def test_json_and_back(inputs):
    assert Inputs.from_json(json.loads(json.dumps(inputs.to_json()))) == inputs


def test_names_are_the_numbers_of_the_run():
    for given in (["red", "blue"], np.array(["red", "blue"]), np.array(["red", "blue"], object)):
        assert NAMED.read("colour", given)[0].tolist() == [1, 0]
    assert NAMED.read("colour", "red")[0].dtype == np.int32
    assert NAMED.read("colour", np.array([1, 0]))[0].tolist() == [1, 0]


def test_whole_numbers_are_floats_where_the_run_had_such():
    # A classifier would divide them by 255.
    assert NUMBERS.read("x", [[1, 2]])[0].dtype == np.float32
    assert PICTURES.read("label", np.array([1]))[0].dtype.kind == "i"


def test_rows_of_classes_and_numbers_are_one_hot_as_in_the_run():
    expected = np.float32([[2.5, 0, 1, 0, 1], [7, 1, 0, 1, 0]])
    rows = [[2.5, "red", 10], [7, "blue", 9]]
    for given in (rows, np.array(rows), np.array(rows, object), expected):
        np.testing.assert_array_equal(BESIDE.read("x", given)[0], expected)
    wide = Inputs({"x": BESIDE.columns["x"]}, names={"n": tuple("1234")}, joined={"x": ("n", "w")})
    assert wide.read("x", np.array([[2, 0.5]]))[0].tolist() == [[0, 1, 0, 0, 0.5]]
    for given, line in {
        (("1", "rde", 9),): r"column 'colour' holds 'rde', which .*: blue, red. Did you mean 'red'",
        ((1, "red", 9), ("tall", "red", 9)): "column 'w' holds 'tall'; numbers are needed",
        ((1, "red"),): r"\(1, 'red'\) given for column 'x'; a row of w, colour, n is needed",
        ("red", 1, 9): "'red' given for column 'x'; a row of w, colour, n is needed",
    }.items():
        with pytest.raises(DataError, match=line):
            BESIDE.read("x", given)


def test_pictures_become_of_the_size_and_colours_of_the_run(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (4, 6, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "same.png")
    Image.fromarray(pixels[..., 0]).resize((30, 20)).save(tmp_path / "grey.png")
    found, lengths = PICTURES.read("image", [tmp_path / "same.png", str(tmp_path / "grey.png")])
    assert found.shape == (2, 4, 6, 3) and lengths is None
    np.testing.assert_array_equal(found[0], pixels)
    np.testing.assert_array_equal(found[1][..., 0], found[1][..., 2])
    np.testing.assert_array_equal(PICTURES.read("image", tmp_path / "same.png")[0][0], pixels)
    np.testing.assert_array_equal(PICTURES.read("image", pixels[None])[0][0], pixels)


def test_texts_are_the_tokens_of_their_characters():
    tokens, lengths = TEXTS.read("tokens", ["ab", "cabb"])
    assert tokens.tolist() == [[0, 1, 0, 0], [2, 0, 1, 1]] and lengths.tolist() == [2, 4]
    assert tokens.dtype == np.int32
    assert TEXTS.read("tokens", "ba")[0].tolist() == [[1, 0]]


def test_characters_are_those_of_the_text_it_was_trained_on(tfds_dir):
    dataset = CharText(Tfds("tiny_shakespeare"), length=8).open("train", tfds_dir)
    inputs, text = Inputs.of(dataset), "First Ci"
    assert inputs.read("tokens", text)[0][0].tolist() == dataset.take([0])["tokens"][0, :8].tolist()


@pytest.mark.parametrize(
    ("inputs", "column", "values", "line"),
    [
        (TEXTS, "tokens", "abd", r"character 'd' \(U\+0064\) is none of the 3"),
        (TEXTS, "tokens", "a", "a text of 1 characters given; 2 to 6"),
        (TEXTS, "tokens", ["ab", "abcabca"], "a text of 7 characters given; 2 to 6"),
        (
            NAMED,
            "colour",
            ["red", "bleu"],
            "holds 'bleu', .*allowed: blue, red. Did you mean 'blue'",
        ),
        (NUMBERS, "x", "ab", r"'ab' given for column 'x', which holds numbers of shape \(2,\)"),
        (NUMBERS, "x", np.zeros((3, 5)), r"shape \(3, 5\) given for column 'x'; \(N, 2\)"),
        (NUMBERS, "x", [[1, 2], [1]], "column 'x'"),
        (PICTURES, "image", "/nowhere.png", r"picture /nowhere.png cannot be read"),
        (PICTURES, "image", np.zeros((4, 6, 3)), r"\(4, 6, 3\) given .* \(N, 4, 6, 3\)"),
    ],
)
def test_rubbish_is_one_line(inputs, column, values, line):
    with pytest.raises(DataError, match=line) as error:
        inputs.read(column, values)
    assert "\n" not in str(error.value)
