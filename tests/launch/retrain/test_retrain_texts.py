"""Texts as new data: a classifier of reviews, in a vocabulary that stays."""

import csv
import itertools

import numpy as np
import pytest

from launch.retrain import Bound, NoWorse, Retraining, __main__
from launch.retrain.journal import Journal
from lsm import Data, Experiment, Train, export
from lsm.data import Files, Subwords, Texts, Words, tokenize
from lsm.errors import ConfigError
from lsm.models import TextClassifier
from lsm.optim import Adam
from lsm.tasks import TextClassification

pytest.importorskip("tokenizers", reason="the extra `text` is not installed")

KINDS = {"good": ["fine", "great", "lovely", "bright"], "bad": ["awful", "dull", "poor", "grim"]}

CONFIG = """
from tests.launch.retrain.test_retrain_texts import retraining

def get_retraining(arg):
    return retraining(arg)
"""


def reviews(path, seed, count, kinds=KINDS):
    """Writes reviews of three words as CSV."""
    random = np.random.default_rng(seed)
    with path.open("w", newline="") as file:
        lines = csv.writer(file)
        lines.writerow(["text", "label"])
        for label, words in itertools.islice(itertools.cycle(kinds.items()), count):
            lines.writerow([" ".join(random.choice(words, 3)), label])


def retraining(folder, **changes):
    texts = {
        "source": Files(f"{folder}/data", labels=("label",)),
        "vocabulary": Subwords(path=f"{folder}/words"),
        "columns": {"tokens": "text"},
        "length": 16,
    }
    model = TextClassifier(vocabulary=300, outputs=2, width=8, units=(8,))
    return Retraining(
        experiment=Experiment(
            name="reviews",
            task=TextClassification(model=model),
            data=Data(source=Texts(**texts | changes), test="test"),
            optimizer=Adam(learning_rate=3e-2),
            train=Train(epochs=12, batch_size=16),
            writers=(),
        ),
        gates=(Bound("accuracy/*", least=0.9), NoWorse("accuracy", by=0.05)),
        settle=0,
    )


@pytest.fixture
def folder(tmp_path):
    for name in ("data", "incoming"):
        (tmp_path / name).mkdir()
    reviews(tmp_path / "data/train.csv", 0, 160)
    reviews(tmp_path / "data/test.csv", 1, 64)
    (tmp_path / "all.txt").write_text("\n".join(w for words in KINDS.values() for w in words))
    words = ["train", str(tmp_path / "all.txt"), "--kind=bpe", "--size=300"]
    assert tokenize.main([*words, f"--out={tmp_path}/words"]) == 0
    (tmp_path / "config.py").write_text(CONFIG)
    return tmp_path


def done(folder):
    """Runs what there is to do; returns the journal."""
    words = [
        f"--config={folder}/config.py:{folder}",
        f"--watch={folder}/incoming",
        f"--workdir={folder}/work",
        f"--models={folder}/models",
        "--once",
    ]
    assert __main__.main(words) == 0
    return Journal(folder / "work/journal.jsonl")


@pytest.mark.slow
def test_new_texts_are_learnt_from_and_served_in_the_same_vocabulary(folder):
    done(folder)
    fresh = {"good": ["glad", *KINDS["good"]], "bad": ["sad", *KINDS["bad"]]}
    reviews(folder / "incoming/monday.csv", 2, 160, fresh)
    reviews(folder / "incoming/strange.csv", 3, 8, {"mixed": ["well"]})
    journal = done(folder)
    assert [r["verdict"] for r in journal.found("end")] == ["serves", "serves"]
    assert [len(r["new"]) for r in journal.found("start")] == [0, 1]
    (aside,) = journal.found("set aside")
    assert "classes that the old data has not: mixed" in aside["reason"]
    texts = ["fine great fine", "dull awful grim", "glad glad glad", "sad sad sad"]
    for number, known in (("1", 2), ("2", 4)):
        model = export.load(folder / "models" / number)
        said = [model.labels[k] for k in model(model.preprocess(texts))["label"]]
        assert said[:known] == ["good", "bad", "good", "bad"][:known]


def test_a_vocabulary_that_new_data_would_change_is_refused(tmp_path):
    for vocabulary in (Words(100), Subwords(kind="bpe", size=300)):
        with pytest.raises(ConfigError, match=r"learnt from the data.*Subwords\(path=FOLDER\)"):
            retraining(tmp_path, vocabulary=vocabulary)


def test_texts_of_something_else_than_files_are_refused(tmp_path):
    from lsm.data import Tfds

    with pytest.raises(ConfigError, match=r"texts of .*; lsm.data.Files is needed.*or Texts of it"):
        retraining(tmp_path, source=Tfds("glue/sst2"))
