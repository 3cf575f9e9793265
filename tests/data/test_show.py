import numpy as np
import pytest
from PIL import Image

from lsm.data import show

CSV = "width,kind\n1.5,a rather long text that nobody wants to see whole\n2,b\n"


@pytest.fixture(autouse=True)
def _desk(tmp_path, monkeypatch):
    monkeypatch.setenv("LSM_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def test_a_table(tmp_path, capsys):
    (tmp_path / "a.csv").write_text(CSV)
    assert show.main(["a.csv", "--rows=1"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "train: 2 examples",
        "",
        "train:",
        "  width: float32",
        "  kind: text",
        "0: width=1.5, kind='a rather long te ... nts to see whole'",
    ]


def test_the_word_that_makes_a_column_text(tmp_path, capsys):
    (tmp_path / "a.csv").write_text("age,kind\n1,b\n2,3\nmany,c\n4,4\n5,a\n")
    assert show.main(["a.csv", "--rows=0"]) == 0
    told = "  age: text, as a.csv row 3 holds 'many' among numbers\n  kind: text\n"
    assert told in capsys.readouterr().out


def test_pictures_as_a_grid(tmp_path, capsys):
    pixels = np.arange(5 * 4 * 3, dtype=np.uint8).reshape(5, 4, 3)
    np.savez(tmp_path / "a.npz", image=pixels, label=np.arange(5))
    assert show.main(["a.npz", "--grid=a.png"]) == 0
    assert "image: uint8 (4, 3)" in capsys.readouterr().out
    grid = np.asarray(Image.open("a.png"))
    assert grid.shape == (2 * 5, 3 * 4, 3)  # 3 across, 2 down, a pixel of white behind each
    np.testing.assert_array_equal(grid[:4, :3, 0], pixels[0])
    np.testing.assert_array_equal(grid[5:9, 4:7, 2], pixels[4])
    assert grid[4].min() == 255


def test_class_folders_and_splits(tmp_path, capsys):
    for name in ("train/red/0.png", "test/blue/0.png"):
        path = tmp_path / "tree" / name
        path.parent.mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(path)
    (tmp_path / "tree/test/blue/notes.txt").write_text("of the pictures\n")
    assert show.main(["tree", "--split=test"]) == 0
    out = capsys.readouterr().out
    assert "train: 1 examples" in out and "test:" in out and "2 classes: blue, red" in out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "no source given; one is needed"),
        (["a.csv", "b.csv"], "a.csv, b.csv given; one is needed"),
        (["b.csv"], "b.csv: no such file or folder. Did you mean 'a.csv'?"),
        (["a.csv", "--split=tset"], "has no split 'tset'; it has train"),
        (["a.csv", "--grid=x.png"], "--grid: no column of width, kind holds pictures"),
        (["mnst", "--data_dir=."], "dataset 'mnst' is neither in TFDS's catalogue"),
        (["a.csv", "--row=3"], "--row: there is no such flag"),
        (["./acsv"], "acsv: no such file or folder. Did you mean 'a.csv'?"),
    ],
)
def test_errors_are_one_line(words, said, tmp_path, capsys):
    (tmp_path / "a.csv").write_text(CSV)
    assert show.main(words) == 1
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1
