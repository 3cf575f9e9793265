"""Figures of classes against scikit-learn; and that no split into batches changes them."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
from sklearn import metrics as sk

from lsm import evaluate
from lsm.errors import ConfigError, DataError
from lsm.evaluate import F1, CalibrationError, Confusion, RocAuc, TopK

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


def test_labels_below_0_of_tokens_do_not_count():
    batch = {"label": np.array([[1, -1, 0], [-1, -1, -1]])}
    said = {"label": np.array([[1, 1, 1], [0, 1, 0]])}
    expected = sk.f1_score([1, 0], [1, 1], average="macro")
    assert figures((F1(),), said, batch)["f1"] == pytest.approx(expected)


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


NAMES = ("cat", "dog", "a/b", "3", "4")


@pytest.mark.parametrize("weights", [False, True])
def test_figures_of_each_class_equal_scikit_learn(weights):
    predictions, batch = data(4, seed=5, weights=weights)
    labels, predicted, weight = batch["label"], predictions["label"], batch.get("weight")
    metrics = [metric.told(NAMES) for metric in (F1(by_class=True), Confusion())]
    found = figures(metrics, predictions, batch, cuts=(17, 300))
    options = {"labels": range(5), "zero_division": 0, "sample_weight": weight}
    columns = sk.precision_recall_fscore_support(labels, predicted, **options)[:3]
    expected = sk_f1(labels, predicted, weight)
    for name, values in zip(("precision", "recall", "f1"), columns, strict=True):
        expected |= {f"{name}/{kind}": x for kind, x in zip(NAMES, values, strict=True)}
        expected[f"{name}_micro"] = sk.f1_score(labels, predicted, average="micro", sample_weight=weight)  # fmt: skip
    matrix = sk.confusion_matrix(labels, predicted, labels=range(5), sample_weight=weight)
    for (i, j), x in np.ndenumerate(matrix):
        expected[f"confusion/{NAMES[i]}/{NAMES[j]}"] = x
    assert found == pytest.approx(expected, abs=1e-6)
    assert found.keys() == set(evaluate.names(metrics))


def guo(labels, probabilities, weight, bins=15):
    """Guo et al. 2017, equations 2, 3 and 5, bin by bin."""
    sure, hits = probabilities.max(1).astype(float), probabilities.argmax(1) == labels
    error, edges = 0.0, np.linspace(0, 1, bins + 1)
    for low, high in itertools.pairwise(edges):
        inside = (sure > low) & (sure <= high) & (weight > 0)
        if inside.any():
            accuracy = np.average(hits[inside], weights=weight[inside])
            confidence = np.average(sure[inside], weights=weight[inside])
            error += weight[inside].sum() / weight.sum() * abs(accuracy - confidence)
    return error


@pytest.mark.parametrize("classes", [2, 7])
def test_top_k_equals_scikit_learn_and_the_calibration_error_its_definition(classes):
    """Scores have ties, and 1/8, 1/4, ... of 8 bins are edges."""
    predictions, batch = data(classes, seed=classes)
    scores, labels, weight = predictions["probability"], batch["label"], batch["weight"]
    metrics = (TopK(1), TopK(2), TopK(3), CalibrationError(), CalibrationError(bins=8))
    with pytest.raises(ConfigError, match="both give 'calibration_error'"):
        evaluate.names(metrics)
    for metric in metrics:
        (found,) = figures((metric,), predictions, batch, cuts=(17, 17, 300)).values()
        if isinstance(metric, CalibrationError):
            expected = guo(labels, scores, weight, metric.bins)
        elif metric.k >= classes:
            expected = 1
        else:
            # A class more that nobody is in: of two, scikit-learn wants one score.
            own = np.pad(scores, ((0, 0), (0, 1)), constant_values=-1)
            options = {"k": metric.k, "sample_weight": weight, "labels": range(classes + 1)}
            expected = sk.top_k_accuracy_score(labels, own, **options)
        assert found == pytest.approx(expected, abs=1e-6)
    scores[batch["weight"] > 0, 0] = np.nan
    assert all(math.isnan(x) for m in metrics for x in figures((m,), predictions, batch).values())


def test_a_probability_of_one_number_is_that_of_class_1():
    predictions, batch = data(2)
    one = {"probability": predictions["probability"][:, 1]}
    whole = {"probability": np.stack([1 - one["probability"], one["probability"]], axis=1)}
    for metric in (CalibrationError(), TopK(1)):
        assert figures((metric,), one, batch) == figures((metric,), whole, batch)


def test_classes_that_nobody_knows_are_asked_for():
    for metric in (F1(by_class=True), Confusion()):
        with pytest.raises(ConfigError, match=r"^\w+\.classes: neither the data nor the model"):
            evaluate.names((metric.told(()),))
        kinds = dataclasses.replace(metric, classes=("a", "b", "c")).told(NAMES)
        assert kinds.classes == ("a", "b", "c")
        predictions, batch = data(4)
        with pytest.raises(DataError, match="a label of 3; labels must be 0 to 2"):
            figures((kinds,), predictions, batch)
    assert F1().told(()) == F1()


def test_padding_that_is_predicted_as_none_does_not_count():
    labels, said = {"label": np.array([[1, 0, 0, 0]])}, {"label": np.array([[1, 1, -1, -1]])}
    metric = F1(prediction="label")
    found = metric.compute(metric.update(metric.init(), said, labels))
    alone = {"label": labels["label"][:, :2]}, {"label": said["label"][:, :2]}
    assert found == metric.compute(metric.update(metric.init(), alone[1], alone[0]))
