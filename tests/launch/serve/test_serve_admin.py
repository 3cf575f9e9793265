"""Versions beside each other: loaded, given shares, unloaded; what /metrics and Grafana tell."""

import concurrent.futures
import json
import pathlib
import re
import socket
import time

import numpy as np
import prometheus_client.parser
import pytest
from serving import SECRETS, Double, folder_of, serving, until

from launch.serve import drift, gate, models
from launch.serve.app import Bounds
from launch.serve.batching import Policy
from lsm.errors import LsmError

ROOT = pathlib.Path(__file__).parents[3]
ADMIN = "/v2/repository/models/double"


def load(folder):
    version = int(folder.name)
    if version == 3:
        raise LsmError(f"{folder}: is damaged.")
    model = Double(version=version)
    if version == 4:
        model.error = ValueError("does not run here")
    return model


@pytest.fixture
def served(tmp_path):
    folder_of(tmp_path / "double", ["1"])
    with serving(tmp_path, {"double": load}) as server:
        yield server


def admin(served, verb, **body):
    return served.json("POST", f"{ADMIN}/{verb}", body, key="admin")


def answered_by(served, count):
    return [served.infer([[0, 0, 0]])[1]["model_version"] for _ in range(count)]


def test_a_load_takes_as_long_as_it_takes(tmp_path, monkeypatch):
    monkeypatch.setattr(gate, "_GRACE", 0.0)

    class Slow(Double):
        def __call__(self, inputs):
            time.sleep(0.2)
            return super().__call__(inputs)

    folder_of(tmp_path / "double", ["1"])
    loads = {"1": Double, "2": Slow}
    made = {"double": lambda folder: loads[folder.name]()}
    with serving(tmp_path, made, bounds=Bounds(seconds=0.3)) as server:
        folder_of(tmp_path / "double", ["2"])
        assert admin(server, "load", parameters={"version": "2"})[0] == 200
        assert admin(server, "share", shares={"2": 1})[0] == 200


def test_who_has_chosen_a_version_is_answered_by_it_before_it_goes(served, tmp_path):
    folder_of(tmp_path / "double", ["2"])
    x = {"name": "x", "datatype": "FP32", "shape": [1, 3], "data": [0, 0, 0]}
    body = json.dumps({"inputs": [x]}).encode()
    head = (
        "POST /v2/models/double/infer HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
        f"Authorization: Bearer {SECRETS['infer'][0]}\r\nContent-Length: {len(body)}\r\n\r\n"
    ).encode()
    with socket.create_connection(("127.0.0.1", served.port), timeout=5) as client:
        client.sendall(head + body[:20])
        until(lambda: served.repository.models["double"].versions["1"].users)
        assert admin(served, "load", parameters={"version": "2"})[0] == 200
        assert admin(served, "share", shares={"2": 1})[0] == 200
        with concurrent.futures.ThreadPoolExecutor() as pool:
            gone = pool.submit(admin, served, "unload", parameters={"version": "1"})
            until(lambda: "1" not in served.repository.models["double"].versions)
            assert answered_by(served, 1) == ["2"]
            client.sendall(body[20:])
            assert b'"model_version":"1"' in b"".join(iter(lambda: client.recv(4096), b""))
            assert gone.result()[0] == 200


def test_a_new_version_gets_a_share_then_all_and_back(served, tmp_path):
    folder_of(tmp_path / "double", ["2", "10", "x", "02"])
    assert admin(served, "load", parameters={"version": "2"}) == (200, {"version": "2", "share": 0})
    assert answered_by(served, 5) == ["1"] * 5
    by_name = "/v2/models/double/versions/2/infer"
    x = {"name": "x", "datatype": "FP32", "shape": [1, 3], "data": [0, 0, 0]}
    assert served.json("POST", by_name, {"inputs": [x]})[1]["outputs"][0]["data"] == [2, 2, 2]
    assert admin(served, "share", shares={"1": 9, "2": 1}) == (
        200,
        {"shares": {"1": 0.9, "2": 0.1}},
    )
    assert answered_by(served, 20).count("2") == 2
    assert admin(served, "unload", parameters={"version": "1"})[0] == 409
    assert admin(served, "share", shares={"2": 1})[0] == 200
    assert answered_by(served, 5) == ["2"] * 5
    assert admin(served, "unload", parameters={"version": "1"})[0] == 200
    assert served.json("GET", "/v2/models/double/versions/1")[0] == 404
    text = served.request("GET", "/metrics", key="metrics")[2].decode()
    assert 'version="2"' in text and 'version="1"' not in text
    assert admin(served, "load")[1]["version"] == "10"  # the newest, by number
    states = served.json("POST", "/v2/repository/index", key="admin")[1]
    assert [(s["version"], s["state"], s["share"]) for s in states] == [
        ("2", "READY", 1),
        ("10", "READY", 0),
    ]


def test_a_version_that_cannot_be_had_leaves_the_others_alone(served, tmp_path):
    folder_of(tmp_path / "double", ["2", "3", "4"])
    status, answer = admin(served, "load", parameters={"version": "3"})
    assert (status, answer["error"][-12:]) == (409, " is damaged.")
    status, answer = admin(served, "load", parameters={"version": "4"})
    assert status == 409 and "does not run here" in answer["error"]
    assert admin(served, "load", parameters={"version": "5"})[0] == 404
    assert admin(served, "load", parameters={"version": "../double/2"})[0] == 404
    assert admin(served, "load", parameters={"version": 2})[0] == 400
    assert admin(served, "share", shares={"4": 1})[0] == 409
    for shares in ({"1": -1}, {"1": 0}, {"1": "all"}, {"1": True}, [], {}):
        assert admin(served, "share", shares=shares)[0] == 400
    assert admin(served, "share", shares={"7": 1})[0] == 404
    assert served.json("POST", "/v2/repository/models/x/load", key="admin")[0] == 404
    index = served.json("POST", "/v2/repository/index", {"ready": True}, key="admin")[1]
    assert [one["version"] for one in index] == ["1"]
    assert answered_by(served, 2) == ["1", "1"]


def test_psi_and_ks_by_hand():
    expected, actual = np.array([50.0, 50]), np.array([25.0, 75])
    # (.25 - .5) ln(.25 / .5) + (.75 - .5) ln(.75 / .5) = .25 ln 2 + .25 ln 1.5
    assert drift.psi(expected, actual) == pytest.approx(0.25 * np.log(2) + 0.25 * np.log(1.5))
    assert drift.ks(expected, actual) == pytest.approx(0.25)
    assert drift.psi(expected, expected * 7) == drift.ks(expected, expected) == 0
    assert np.isfinite(drift.psi(expected, np.array([0.0, 1])))


def test_a_histogram_forgets_takes_any_value_and_stays_small():
    histogram = drift.Histogram(np.array([0.0, 1, 2, 3]), np.array([1, 1, 1]))
    assert histogram.distances() is None
    histogram.add(np.array([-5, 0.5, 1.5, 99, np.nan, np.inf, -np.inf], np.float16))
    np.testing.assert_array_equal(histogram.seen, [[2, 1, 1]])
    for _ in range(300):
        histogram.add(np.full((2000, 3), 2.5))
    assert histogram.seen.sum() <= 2 * drift.WINDOW
    assert histogram.distances()[1] == pytest.approx(2 / 3, abs=1e-3)


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '{"inputs": 5}',
        '{"inputs": {"x": {"edges": [1, 2]}}}',
        '{"inputs": {"x": {"edges": [1, 2], "counts": [0]}}}',
        '{"inputs": {"x": {"edges": [2, 1], "counts": [1]}}}',
    ],
)
def test_statistics_that_are_none(tmp_path, text):
    (tmp_path / "statistics.json").write_text(text)
    with pytest.raises(LsmError, match=r"statistics.json: is no statistics"):
        drift.read(tmp_path)


def test_a_shift_of_the_inputs_shows_in_the_metrics(tmp_path):
    edges = np.linspace(-3, 3, 13)
    counts = np.histogram(np.random.default_rng(0).normal(size=10_000), edges)[0]
    statistics = {"inputs": {"x": {"edges": edges.tolist(), "counts": counts.tolist()}}}
    (folder_of(tmp_path / "double") / "1" / "statistics.json").write_text(json.dumps(statistics))
    rng = np.random.default_rng(1)
    with serving(tmp_path, {"double": load}, Policy(wait=0.0)) as server:
        server.infer(rng.normal(size=(300, 3)))
        usual = psi_of(server)
        server.infer(rng.normal(2, size=(3000, 3)))
        assert usual < 0.1 < 0.25 < psi_of(server)


def test_columns_have_a_histogram_each_and_the_worst_is_told():
    histogram = drift.Histogram(np.array([0, 0.5, 1]), np.array([[9, 1], [1, 1]]))
    histogram.add(np.array([[0.2, 0.2], [0.2, 0.8], [0.2, 0.2], [0.2, 0.8]]))
    np.testing.assert_array_equal(histogram.seen, [[4, 0], [2, 2]])
    assert histogram.distances()[1] == pytest.approx(0.1)  # of the first: 0.9 became 1


def psi_of(server):
    text = server.request("GET", "/metrics", key="metrics")[2].decode()
    found = re.search(
        r'lsm_drift_psi\{kind="input",model="double",tensor="x",version="1"\} (\S+)', text
    )
    return float((found or re.search(r"lsm_drift_psi\{[^}]*\} (\S+)", text))[1])


def test_the_dashboard_asks_for_metrics_that_there_are(served):
    served.infer([[1, 2, 3]])
    served.infer([[1, 2, 3]], key=None)
    text = served.request("GET", "/metrics", key="metrics")[2].decode()
    families = list(prometheus_client.parser.text_string_to_metric_families(text))
    board = json.loads((ROOT / "launch/serve/grafana.json").read_text())
    queries = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    asked = {name for query in queries for name in re.findall(r"\blsm_\w+", query)}
    # Of what has counted nothing yet, such as decoders here, there is the name of the family alone.
    shown = {re.sub(r"_(total|bucket|sum|count)$", "", name) for name in asked}
    assert shown <= {f.name for f in families}
    assert {f.name for f in families if not f.name.endswith("_created")} - shown == set()
    ids = [panel["id"] for panel in board["panels"]]
    assert len(ids) == len(set(ids))
    labels = {label for f in families for s in f.samples for label in s.labels}
    for query in queries:
        assert (
            set(re.findall(r"by \(([\w, ]+)\)", query)[0].split(", ") if "by (" in query else [])
            <= labels
        )


def test_a_server_begins_with_the_version_that_current_names(tmp_path):
    folder = folder_of(tmp_path / "double", ["1", "2", "10"])
    assert models.first(folder)[0] == "10"
    (folder / "current").symlink_to("2")
    assert models.first(folder) == ("2", folder / "2")
    with serving(tmp_path, {"double": load}) as server:
        assert answered_by(server, 2) == ["2", "2"]
        assert admin(server, "load")[1]["version"] == "10"
    (folder / "current").unlink()
    (folder / "current").symlink_to("3")
    with pytest.raises(LsmError, match="current: names '3'; there are 1, 2, 10"):
        models.first(folder)


def test_failures_are_counted_by_version(tmp_path):
    model = Double()
    with serving(tmp_path, {"double": lambda folder: model}) as server:
        model.error = ValueError("no")
        assert server.infer([[0, 0, 0]])[0] == 500
        page = server.request("GET", "/metrics", key="metrics")[2].decode()
    assert 'lsm_model_failures_total{model="double",version="1"} 1.0' in page
