"""New files: which are taken, which wait, which are set aside, and why."""

import dataclasses
import os
import sys

import numpy as np
import pytest
import retraining
from test_retrain_config import config

from launch.command import LaunchError
from launch.retrain.incoming import DAMAGED, Incoming
from launch.retrain.journal import Journal
from lsm import Data, Train
from lsm.data import Files
from lsm.errors import LsmError
from lsm.models import MLP
from lsm.tasks import Classification


@pytest.fixture
def incoming(tmp_path):
    retraining.prepared(tmp_path)
    (tmp_path / "incoming/torn.npz").unlink()
    given = dataclasses.replace(config(tmp_path / "data"), settle=0)
    return Incoming(
        given, tmp_path / "incoming", tmp_path / "store", Journal(tmp_path / "j"), None, print
    )


def aside(incoming):
    return {r["file"]: r["reason"] for r in incoming.journal.found("set aside")}


def test_a_sound_file_is_taken_once_and_left_where_it_is(incoming):
    assert incoming.collect(1) == ["a.npz"]
    assert incoming.collect(1) == [] == incoming.collect(2)
    again = dataclasses.replace(incoming, journal=Journal(incoming.watch.parent / "j"))
    assert again.collect(2) == []
    [copy] = incoming.taken
    assert copy.read_bytes() == (incoming.watch / "a.npz").read_bytes()
    # The same name with other content is another file; the same content is none.
    retraining.digits(incoming.watch / "a.npz", 600, 700)
    (incoming.watch / "b.npz").write_bytes(copy.read_bytes())
    assert incoming.collect(2) == ["a.npz"]
    assert aside(incoming) == {"b.npz": "its content is that of a.npz."}
    assert copy.exists() and len(incoming.taken) == 2


def test_what_is_not_whole_yet_waits(incoming):
    slow = dataclasses.replace(incoming.retraining, settle=60)
    assert dataclasses.replace(incoming, retraining=slow).collect(1) == []
    marked = dataclasses.replace(incoming.retraining, settle=60, marker=".done")
    marked = dataclasses.replace(incoming, retraining=marked)
    assert marked.collect(1) == []
    (incoming.watch / "a.npz.done").touch()
    assert marked.collect(1) == ["a.npz"]
    for name in (".b.npz", "b.npz.part", "notes.md"):
        (incoming.watch / name).write_bytes(b"?")
    assert incoming.collect(2) == []


def test_damaged_and_other_files_are_set_aside(incoming):
    whole = np.load(incoming.watch / "a.npz")
    content = (incoming.watch / "a.npz").read_bytes()
    (incoming.watch / "torn.npz").write_bytes(content[:-2000])
    flipped = bytearray(content)
    flipped[3000] ^= 1
    (incoming.watch / "flipped.npz").write_bytes(flipped)
    np.savez(incoming.watch / "wide.npz", image=np.zeros((3, 9, 9, 1), "u1"), label=["d1"] * 3)
    np.savez(incoming.watch / "bare.npz", label=whole["label"])
    np.savez(incoming.watch / "class.npz", image=whole["image"][:2], label=["d1", "cat"])
    assert incoming.collect(1) == ["a.npz"]
    told = aside(incoming)
    assert told.keys() == {f"{n}.npz" for n in ("torn", "flipped", "wide", "bare", "class")}
    assert all(line.count("\n") == 0 and "store" not in line for line in told.values())
    assert "column 'image' is (9, 9, 1); (8, 8, 1) is needed" in told["wide.npz"]
    assert (
        "image" in told["bare.npz"]
        and "classes that the old data has not: cat" in told["class.npz"]
    )
    assert {p.name for p in (incoming.watch / DAMAGED).iterdir()} == told.keys()
    assert len(list(incoming.store.glob("*.npz"))) == 1


def test_the_newest_is_the_last(incoming):
    (incoming.watch / "a.npz").unlink()
    for age, name in enumerate(("friday", "tuesday", "monday")):
        path = incoming.watch / f"{name}.npz"
        retraining.digits(path, 600 + 20 * age, 620 + 20 * age)
        os.utime(path, (1e9 - age, 1e9 - age))
    assert incoming.collect(1) == ["monday.npz", "tuesday.npz", "friday.npz"]


def test_classes_that_stand_beside_numbers_are_those_of_the_old_data(tmp_path):
    """A file need not hold every one of them; one that is new would make the column wider."""
    for name in ("data", "incoming"):
        (tmp_path / name).mkdir()
    old = "".join(f"{c},{n},{k}\n" for n in range(8) for c, k in (("red", "a"), ("blue", "b")))
    for split in ("train", "test"):
        (tmp_path / f"data/{split}.csv").write_text("colour,size,label\n" + old)
    files = Files(
        str(tmp_path / "data"), {"x": ("colour", "size"), "label": "label"}, ("label", "colour")
    )
    given = config(tmp_path / "data")
    experiment = dataclasses.replace(
        given.experiment,
        task=Classification(model=MLP(widths=()), input="x"),
        data=Data(source=files, test="test"),
        train=Train(steps=2, batch_size=8),
    )
    given = dataclasses.replace(given, experiment=experiment, settle=0)
    watch = tmp_path / "incoming"
    (watch / "known.csv").write_text("colour,size,label\nred,1,a\nred,2,b\n")
    (watch / "other.csv").write_text("colour,size,label\nred,1,a\npink,2,b\n")
    incoming = Incoming(given, watch, tmp_path / "store", Journal(tmp_path / "j"), None, print)
    assert incoming.collect(1) == ["known.csv"]
    assert aside(incoming) == {"other.csv": "it has classes that the old data has not: pink."}


def test_what_was_set_aside_is_looked_at_again_where_it_comes_back(incoming):
    """The old data may have been at fault: so here, they lack a class at first."""
    path = incoming.watch / "a.npz"
    old = incoming.watch.parent / "data"
    whole = {split: (old / f"{split}.npz").read_bytes() for split in ("train", "test")}
    for split in whole:
        held = np.load(old / f"{split}.npz")
        kept = held["label"] != "d9"
        np.savez(old / f"{split}.npz", image=held["image"][kept], label=held["label"][kept])
    assert incoming.collect(1) == [] and "d9" in aside(incoming)["a.npz"]
    for split, content in whole.items():
        (old / f"{split}.npz").write_bytes(content)
    (incoming.watch / DAMAGED / "a.npz").rename(path)
    assert incoming.collect(2) == ["a.npz"] and path.exists()


def test_what_was_being_set_aside_at_a_kill_is_moved(incoming):
    path = incoming.watch / "a.npz"
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Incoming, "_aside", lambda self, path: sys.exit("killed"))
        with pytest.raises(SystemExit):
            incoming.collect(1)
    again = dataclasses.replace(incoming, journal=Journal(incoming.watch.parent / "j"))
    assert again.collect(2) == [] == again.collect(2)
    assert not path.exists() and (incoming.watch / DAMAGED / "a.npz").exists()
    assert len(again.journal.found("set aside")) == 1


def test_a_folder_that_is_not_there(incoming):
    elsewhere = dataclasses.replace(incoming, watch=incoming.watch.parent / "incomin")
    with pytest.raises(LaunchError, match="--watch: .*no such file or folder.*'incoming'"):
        elsewhere.collect(1)


def test_what_is_wrong_with_the_old_data_is_no_fault_of_a_new_file(incoming):
    (incoming.watch.parent / "data/train.npz").unlink()
    with pytest.raises(LsmError, match="train"):
        incoming.collect(1)
    assert (incoming.watch / "a.npz").exists() and not incoming.journal.records
