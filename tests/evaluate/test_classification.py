"""ROC AUC and F1 against scikit-learn; and that no split into batches changes them."""

import dataclasses
import math

import numpy as np
import pytest
from sklearn import metrics as sk

from lsm import evaluate
from lsm.errors import ConfigError, DataError
from lsm.evaluate import F1, RocAuc

pytestmark = pytest.mark.filterwarnings("error")


def data(classes, count=400, seed=0, weights=True):
    """Random probabilities in steps of 1/8, so with ties, labels that they tell something of."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, count).astype(np.int32)
    logits = rng.normal(size=(count, classes)) + 1.5 * np.eye(classes)[labels]
    scores = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    scores = np.round(scores * 8).astype(np.float32) / 8
    batch = {"label": labels}
    if weights:
        batch["weight"] = rng.choice([0, 0.5, 1, 3], count).astype(np.float32)
    return {"probability": scores, "label": scores.argmax(1).astype(np.int32)}, batch


def figures(metrics, predictions, batch, cuts=()):
    accumulators = evaluate.init(metrics)
    for rows in np.split(np.arange(len(batch["label"])), cuts):
        part = [
            {name: array[rows] for name, array in group.items()} for group in (predictions, batch)
        ]
        accumulators = evaluate.update(metrics, accumulators, *part)
    return evaluate.compute(metrics, accumulators)


def sk_auc(labels, scores, weight=None):
    classes = range(scores.shape[1])
    if len(classes) == 2:
        return sk.roc_auc_score(labels, scores[:, 1], sample_weight=weight)
    return np.mean(
        [sk.roc_auc_score(labels == k, scores[:, k], sample_weight=weight) for k in classes]
    )


def sk_f1(labels, predicted, weight=None):
    options = {"average": "macro", "zero_division": 0, "sample_weight": weight}
    precision, recall, f1, _ = sk.precision_recall_fscore_support(labels, predicted, **options)
    return {"f1": f1, "precision": precision, "recall": recall}


@pytest.mark.parametrize("weights", [False, True])
@pytest.mark.parametrize("classes", [2, 3, 7])
def test_both_equal_scikit_learn(classes, weights):
    predictions, batch = data(classes, seed=classes, weights=weights)
    labels, weight = batch["label"], batch.get("weight")
    expected = {"roc_auc": sk_auc(labels, predictions["probability"], weight)}
    expected |= sk_f1(labels, predictions["label"], weight)
    found = figures((RocAuc(), F1()), predictions, batch, cuts=(17, 17, 300))
    assert found == pytest.approx(expected, abs=1e-6)
    assert 0.6 < found["roc_auc"] < 0.99 and 0.3 < found["f1"] < 0.95


@pytest.mark.parametrize("cuts", [(1,), (0, 400), (100, 200, 300), tuple(range(400))], ids=len)
def test_any_split_into_batches_gives_the_same(cuts):
    predictions, batch = data(4, seed=9)
    metrics = (RocAuc(), F1())
    assert figures(metrics, predictions, batch, cuts) == figures(metrics, predictions, batch)


def test_auc_is_that_of_scikit_learns_own_multiclass():
    predictions, batch = data(3, weights=False)
    scores = predictions["probability"] + np.float32(1e-3)
    scores /= scores.sum(1, keepdims=True)
    expected = sk.roc_auc_score(batch["label"], scores, multi_class="ovr")
    found = figures((RocAuc(),), {"probability": scores}, batch)["roc_auc"]
    assert found == pytest.approx(expected, abs=1e-12)


def test_auc_by_hand():
    """Of 2 x 3 pairs the positive is higher in 3, and 2 are ties: (3 + 2 / 2) / 6."""
    predictions = {"probability": np.float32([0.5, 0.9, 0.5, 0.5, 0.95])}
    batch = {"label": np.array([1, 1, 0, 0, 0])}
    assert figures((RocAuc(),), predictions, batch)["roc_auc"] == pytest.approx(3 / 6)
    predictions["probability"][4] = 0.1
    assert figures((RocAuc(),), predictions, batch)["roc_auc"] == pytest.approx(5 / 6)


def test_scores_of_one_number_are_those_of_class_1():
    predictions, batch = data(2)
    whole = figures((RocAuc(),), predictions, batch)
    one = {"score": predictions["probability"][:, 1]}
    assert figures((RocAuc(prediction="score"),), one, batch) == whole


def test_f1_by_hand():
    """Class 0: 1 hit, 2 labels, 1 predicted; class 1: 1 hit, 1, 3; class 3: 0 hits, 1, 0."""
    labels, predicted = np.array([0, 0, 1, 3]), np.array([0, 1, 1, 1])
    found = figures((F1(),), {"label": predicted}, {"label": labels}, cuts=(2,))
    assert found["precision"] == pytest.approx((1 + 1 / 3 + 0) / 3)
    assert found["recall"] == pytest.approx((1 / 2 + 1 + 0) / 3)
    assert found["f1"] == pytest.approx((2 / 3 + 2 / 4 + 0) / 3)


def test_recall_claimed_as_precision_and_f1_of_accuracy_true_of_precision_and_recall():
    """recall = TP / (TP + FP);  F1 = 2 accuracy recall / (accuracy + recall).

    6 true positives, 2 false ones, 3 missed, 9 true negatives. lsm's figures are means over both
    classes, of which one counts the positives as its negatives.
    """
    tp, fp, fn, tn = 6, 2, 3, 9
    labels = np.repeat([1, 0, 1, 0], [tp, fp, fn, tn])
    predicted = np.repeat([1, 1, 0, 0], [tp, fp, fn, tn])

    def mean_of(figure):
        return (figure(tp, fp, fn) + figure(tn, fn, fp)) / 2

    precision, recall = (lambda tp, fp, fn: tp / (tp + fp)), (lambda tp, fp, fn: tp / (tp + fn))

    def f1(tp, fp, fn):
        p, r = precision(tp, fp, fn), recall(tp, fp, fn)
        return 2 * p * r / (p + r)

    found = figures((F1(),), {"label": predicted}, {"label": labels})
    assert found == pytest.approx(
        {"precision": mean_of(precision), "recall": mean_of(recall), "f1": mean_of(f1)}
    )
    assert (precision(tp, fp, fn), recall(tp, fp, fn)) == (6 / 8, 6 / 9)
    accuracy, claimed_recall = (tp + tn) / 20, tp / (tp + fp)
    claimed_f1 = 2 * accuracy * claimed_recall / (accuracy + claimed_recall)
    assert (claimed_recall, claimed_f1) == pytest.approx((0.75, 0.75))
    assert (recall(tp, fp, fn), f1(tp, fp, fn)) == pytest.approx((2 / 3, 12 / 17))
    # A model that calls everything positive would have a recall of its precision, not of 1.
    everything = figures((F1(),), {"label": np.ones(20, int)}, {"label": labels})
    assert everything["recall"] == (1 + 0) / 2
    assert everything["precision"] == pytest.approx((9 / 20 + 0) / 2)


def test_classes_that_do_not_occur():
    predictions, batch = data(5)
    kept = (batch["label"] != 2) | (batch["weight"] == 0)  # such examples do not count
    predictions, batch = ({k: v[kept] for k, v in x.items()} for x in (predictions, batch))
    seen = batch["weight"] != 0
    expected = sk_f1(*(x[seen] for x in (batch["label"], predictions["label"], batch["weight"])))
    found = figures((RocAuc(), F1()), predictions, batch)
    assert math.isnan(found.pop("roc_auc"))
    assert found == pytest.approx(expected, abs=1e-6)


def test_what_is_not_defined_is_nan():
    metrics = (RocAuc(), F1())
    predictions, batch = data(2)
    for rows in (slice(0, 0), batch["weight"] == 0):
        nothing = ({k: v[rows] for k, v in x.items()} for x in (predictions, batch))
        assert all(math.isnan(v) for v in figures(metrics, *nothing).values())
    assert math.isnan(figures(metrics, predictions, {"label": 0 * batch["label"]})["roc_auc"])
    predictions["probability"][3, 1] = np.nan
    batch["weight"][3] = 1
    assert math.isnan(figures(metrics, predictions, batch)["roc_auc"])


def test_examples_of_weight_0_may_hold_anything():
    predictions, batch = data(3)
    expected = figures((RocAuc(), F1()), predictions, batch)
    nothing = batch["weight"] == 0
    batch["label"][nothing], predictions["probability"][nothing] = -100, np.nan
    assert figures((RocAuc(), F1()), predictions, batch) == expected
    direct = F1().compute(F1().update(F1().init(), predictions, batch))
    assert direct["f1"] == expected["f1"]


def test_a_label_for_each_token():
    predictions, batch = data(3, count=400)
    expected = figures((RocAuc(), F1()), predictions, batch)
    rows = {"probability": predictions["probability"].reshape(40, 10, 3)}
    rows["label"] = predictions["label"].reshape(40, 10)
    tokens = {name: column.reshape(40, 10) for name, column in batch.items()}
    assert figures((RocAuc(), F1()), rows, tokens, cuts=(7,)) == pytest.approx(expected, abs=1e-12)
    tokens["weight"] = np.arange(40, dtype=np.float32) % 3
    batch["weight"] = np.repeat(tokens["weight"], 10)
    expected = figures((RocAuc(), F1()), predictions, batch)
    assert figures((RocAuc(), F1()), rows, tokens) == pytest.approx(expected, abs=1e-12)


def test_padding_is_dropped_before_a_metric_sees_it():
    @dataclasses.dataclass(frozen=True)
    class Seen(evaluate.Metric):
        columns = ("text",)

        def init(self):
            return ()

        def update(self, accumulator, predictions, batch):
            weights = batch.get("weight", np.zeros(0))
            return (
                *accumulator,
                (predictions["x"].tolist(), batch["text"].tolist(), weights.shape),
            )

        def compute(self, accumulator):
            return {"seen": float(len(accumulator))}

    predictions = {"x": np.arange(3)}
    batch = {"text": np.array(["a", "b", "c"], object)}
    (whole,) = evaluate.update((Seen(),), ((),), predictions, batch)
    assert whole == (([0, 1, 2], ["a", "b", "c"], (0,)),)
    batch["weight"] = np.float32([[0, 0.5], [0, 0], [1, 0]])
    (kept,) = evaluate.update((Seen(),), ((),), predictions, batch)
    assert kept == (([0, 2], ["a", "c"], (2, 2)),)


def test_accumulators_are_values():
    predictions, batch = data(3)
    metrics = (RocAuc(), F1())
    once = evaluate.update(metrics, evaluate.init(metrics), predictions, batch)
    before = evaluate.compute(metrics, once)
    evaluate.update(metrics, once, predictions, {**batch, "label": (batch["label"] + 1) % 3})
    predictions["probability"][:], batch["label"][:] = 0, 0
    assert evaluate.compute(metrics, once) == before


def test_names_and_columns_are_known_before_anything_is_seen():
    metrics = (RocAuc(), F1(label="kind"))
    assert evaluate.names(metrics) == ("roc_auc", "f1", "precision", "recall")
    assert evaluate.columns(metrics) == ("label", "kind")
    assert evaluate.names(()) == evaluate.columns(()) == ()
    with pytest.raises(ConfigError, match=r"^evaluation\.metrics: F1 and F1 both give 'f1'; keep"):
        evaluate.names((F1(), RocAuc(), F1(label="kind")))


@pytest.mark.parametrize(("metric", "change", "match"), [
    (RocAuc(prediction="probabilty"), {}, r"RocAuc\.prediction: there is no 'probabilty'.* Did you"),
    (RocAuc(label="kind"), {}, r"^RocAuc\.label: there is no 'kind'; there is label, weight\."),
    (F1(label="kind"), {}, r"^F1\.label: there is no 'kind'"),
    (RocAuc(), {"label": np.full(400, 3)}, r"RocAuc\.label: a label of 3; labels must be 0 to 2"),
    (F1(), {"label": np.full(400, -1)}, r"F1\.label: a label of -1; labels must be 0 or more"),
    (F1(), {"label": np.zeros(400)}, r"F1\.label: float64 given; integer class numbers"),
    (F1(), {"weight": np.ones((400, 2))}, r"weight: \(400, 2\) given for labels \(400,\)"),
], ids=str)  # fmt: skip
def test_what_does_not_fit_is_one_line(metric, change, match):
    predictions, batch = data(3)
    batch["weight"][:] = 1
    with pytest.raises(DataError, match=match):
        figures((metric,), predictions, batch | change)
