"""The KServe v2 protocol, by raw bodies and by Triton's own client."""

import gzip
import json
import struct
import zlib

import ml_dtypes
import numpy as np
import pytest
from serving import SECRETS, Double, serving

PATH = "/v2/models/double/infer"


class Mirror(Double):
    """y = x, of any datatype; a batch of three."""

    def __call__(self, inputs):
        return {"y": inputs["x"]}


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    loads = {
        "double": lambda folder: Double(),
        "half": lambda folder: Mirror(np.float16),
        "brain": lambda folder: Mirror(ml_dtypes.bfloat16),
        "text": lambda folder: Mirror(object),
        "bool": lambda folder: Mirror(bool),
        "int64": lambda folder: Mirror(np.int64),
    }
    with serving(tmp_path_factory.mktemp("kserve"), loads) as server:
        yield server


def x_of(data, datatype="FP32", shape=(1, 3), **more):
    return {"name": "x", "datatype": datatype, "shape": list(shape), "data": data} | more


def test_json_in_and_out(served):
    asked = {"id": "42", "inputs": [x_of([1, 2.5, -3])]}
    assert served.json("POST", PATH, asked) == (
        200,
        {
            "model_name": "double",
            "model_version": "1",
            "id": "42",
            "outputs": [{"name": "y", "datatype": "FP32", "shape": [1, 3], "data": [2, 5, -6]}],
        },
    )
    nested = {"inputs": [x_of([[1, 2, 3], [4, 5, 6]], shape=(2, 3))]}
    assert served.json("POST", PATH, nested)[1]["outputs"][0]["data"] == [2, 4, 6, 8, 10, 12]
    version = PATH.replace("/infer", "/versions/1/infer")
    assert served.json("POST", version, asked)[0] == 200
    assert served.json("POST", version.replace("1", "7"), asked)[0] == 404


def test_the_example_of_the_binary_extension(served):
    head = {
        "inputs": [
            {
                "name": "x",
                "shape": [2, 3],
                "datatype": "FP32",
                "parameters": {"binary_data_size": 24},
            }
        ],
        "outputs": [{"name": "y", "parameters": {"binary_data": True}}],
    }
    text = json.dumps(head).encode()
    body = text + np.arange(6, dtype="<f4").tobytes()
    headers = {"Inference-Header-Content-Length": str(len(text))}
    status, answered, answer = served.request("POST", PATH, body, headers)
    assert status == 200
    assert answered["Content-Type"] == "application/octet-stream"
    length = int(answered["Inference-Header-Content-Length"])
    assert json.loads(answer[:length])["outputs"] == [
        {"name": "y", "shape": [2, 3], "datatype": "FP32", "parameters": {"binary_data_size": 24}}
    ]
    np.testing.assert_array_equal(np.frombuffer(answer[length:], "<f4"), 2.0 * np.arange(6))
    for encoding, compress in {"gzip": gzip.compress, "deflate": zlib.compress}.items():
        more = headers | {"Content-Encoding": encoding}
        assert served.request("POST", PATH, compress(body), more)[2] == answer


def test_bytes_are_lengths_and_octets(served):
    elements = [b"", b"\x00\xff", "ä".encode()]
    data = b"".join(struct.pack("<I", len(item)) + item for item in elements)
    x = {
        "name": "x",
        "shape": [1, 3],
        "datatype": "BYTES",
        "parameters": {"binary_data_size": len(data)},
    }
    text = json.dumps({"inputs": [x], "parameters": {"binary_data_output": True}}).encode()
    headers = {"Inference-Header-Content-Length": str(len(text))}
    path = "/v2/models/text/infer"
    status, answered, answer = served.request("POST", path, text + data, headers)
    assert status == 200
    assert answer[int(answered["Inference-Header-Content-Length"]) :] == data
    asked = {"inputs": [x_of(["a", "ä", ""], "BYTES")]}
    assert served.json("POST", path, asked)[1]["outputs"][0]["data"] == ["a", "ä", ""]


@pytest.mark.parametrize(
    ("model", "datatype", "values"),
    [
        ("half", "FP16", [1.5, -2, 65504]),
        ("brain", "BF16", [1.5, -2, 2.0**100]),
        ("bool", "BOOL", [True, False, True]),
        ("int64", "INT64", [2**63 - 1, -(2**63), 0]),
    ],
)
def test_datatypes_come_back_exactly(served, model, datatype, values):
    asked = {"inputs": [x_of(values, datatype)]}
    status, answer = served.json("POST", f"/v2/models/{model}/infer", asked)
    assert (status, answer["outputs"][0]["data"]) == (200, values)


def test_metadata(served):
    assert served.json("GET", "/v2/models/brain") == (
        200,
        {
            "name": "brain",
            "versions": ["1"],
            "platform": "lsm_export",
            "inputs": [{"name": "x", "datatype": "BF16", "shape": [-1, 3]}],
            "outputs": [{"name": "y", "datatype": "BF16", "shape": [-1, 3]}],
            "labels": ["a", "b", "c"],
        },
    )
    assert served.json("GET", "/v2/models/brain/versions/1")[0] == 200
    assert served.json("GET", "/v2/models/brain/versions/2")[0] == 404
    assert "binary_tensor_data" in served.json("GET", "/v2")[1]["extensions"]


WRONG = {
    "no JSON": (b"{", "the body is no JSON object"),
    "deep": (b"[" * 200_000, "the body is no JSON object"),
    "NaN": (b'{"inputs": NaN}', "the body is no JSON object"),
    "no object": (b"[]", "no object"),
    "no inputs": ({}, "inputs: a list of objects is needed"),
    "missing": ({"inputs": []}, "inputs: x missing"),
    "twice": ({"inputs": [x_of([1, 2, 3])] * 2}, "x is given twice"),
    "unknown": ({"inputs": [x_of([1, 2, 3]) | {"name": "X"}]}, "Did you mean 'x'?"),
    "datatype": ({"inputs": [x_of([1, 2, 3], "FP64")]}, "x.datatype: 'FP64' given; FP32"),
    "shape": ({"inputs": [x_of([1, 2], shape=(1, 2))]}, "x.shape: [1, 2] given; [b, 3]"),
    "rank": ({"inputs": [x_of([1, 2, 3], shape=(3,))]}, "x.shape: [3] given; [b, 3]"),
    "negative": ({"inputs": [x_of([], shape=(-1, 3))]}, "x.shape"),
    "empty": ({"inputs": [x_of([], shape=(0, 3))]}, "b is 0; 1 or more is allowed"),
    "bool": ({"inputs": [x_of([1, 2, 3], shape=(True, 3))]}, "x.shape"),
    "few": ({"inputs": [x_of([1, 2])]}, "2 elements given; the shape needs 3"),
    "ragged": ({"inputs": [x_of([[1, 2, 3], [1]], shape=(2, 3))]}, "do not follow the shape"),
    "text": ({"inputs": [x_of([1, 2, "3"])]}, "x.data: FP32 needs numbers alone"),
    "beyond": ({"inputs": [x_of([1, 2, 1e39])]}, "beyond FP32"),
    "huge number": (
        b'{"inputs":[%s]}' % json.dumps(x_of([1, 2, 3])).replace("3]", "1e999]").encode(),
        "number is infinity",
    ),
    "lying size": (
        {"inputs": [x_of(None, parameters={"binary_data_size": 12})]},
        "0 bytes of binary",
    ),
    "negative size": (
        {"inputs": [x_of(None, parameters={"binary_data_size": -1})]},
        "binary_data_size",
    ),
    "output": ({"inputs": [x_of([1, 2, 3])], "outputs": [{"name": "z"}]}, "outputs: 'z' given"),
    "outputs": ({"inputs": [x_of([1, 2, 3])], "outputs": 5}, "outputs"),
    "sequence": ({"inputs": [x_of([1, 2, 3])], "parameters": {"sequence_id": 5}}, "no state"),
    "classes": (
        {
            "inputs": [x_of([1, 2, 3])],
            "outputs": [{"name": "y", "parameters": {"classification": 2}}],
        },
        "classification",
    ),
    "id": ({"id": 5, "inputs": [x_of([1, 2, 3])]}, "id: a text"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_malformed_is_told_in_a_line(served, name):
    body, told = WRONG[name]
    status, answer = served.json("POST", PATH, body)
    assert status == 400
    assert told in answer["error"]
    assert "\n" not in answer["error"]
    assert list(answer) == ["error"]


def test_products_that_overflow_are_refused_before_anything_is_made(served):
    for rows in (2**62, 2**63, 2**64 - 1):
        status, answer = served.json("POST", PATH, {"inputs": [x_of([], shape=(rows, 3))]})
        assert status == 413
        assert "more elements" in answer["error"]
    status, answer = served.json("POST", PATH, {"inputs": [x_of([], shape=(10**30, 3))]})
    assert status == 400 and "x.shape: [1e+30, 3] given; a list of whole" in answer["error"]


@pytest.mark.parametrize("length", ["-1", "x", "99999", "", "1" * 50])
def test_a_wrong_length_of_the_json(served, length):
    headers = {"Inference-Header-Content-Length": length}
    assert served.request("POST", PATH, b"{}", headers)[0] == 400


def test_a_number_that_json_lacks_comes_as_binary_only(served):
    values = np.array([[np.nan, np.inf, 1]], np.float16)
    x = {"name": "x", "shape": [1, 3], "datatype": "FP16", "parameters": {"binary_data_size": 6}}
    for binary, expected in ((False, 400), (True, 200)):
        text = json.dumps({"inputs": [x], "parameters": {"binary_data_output": binary}}).encode()
        headers = {"Inference-Header-Content-Length": str(len(text))}
        path = "/v2/models/half/infer"
        status, _, answer = served.request("POST", path, text + values.tobytes(), headers)
        assert status == expected
    assert answer.endswith(values.tobytes())


def test_triton_s_own_client(served):
    http = pytest.importorskip("tritonclient.http", reason="needs tritonclient[http]")
    client = http.InferenceServerClient(f"127.0.0.1:{served.port}")
    headers = {"Authorization": f"Bearer {SECRETS['infer'][0]}"}
    admin = {"Authorization": f"Bearer {SECRETS['admin'][0]}"}
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("double", headers=headers)
    assert client.is_model_ready("double", "1", headers=headers)
    assert client.get_server_metadata(headers=headers)["name"] == "lsm"
    assert client.get_model_metadata("double", headers=headers)["inputs"][0]["shape"] == [-1, 3]
    index = client.get_model_repository_index(headers=admin)
    assert {"double", "text"} <= {one["name"] for one in index}
    rng = np.random.default_rng(0)
    for binary in (True, False):
        for compression in (None, "gzip", "deflate"):
            values = rng.normal(size=(5, 3)).astype(np.float32)
            given = http.InferInput("x", [5, 3], "FP32")
            given.set_data_from_numpy(values, binary_data=binary)
            asked = http.InferRequestedOutput("y", binary_data=binary)
            # A copy of the headers: the client adds to what it is given.
            options = {"request_id": "7", "request_compression_algorithm": compression}
            answer = client.infer(
                "double", [given], outputs=[asked], headers={**headers}, **options
            )
            np.testing.assert_allclose(answer.as_numpy("y"), 2 * values)
            assert answer.get_response()["id"] == "7"
    texts = np.array([["a", "ä", ""]], object)
    given = http.InferInput("x", [1, 3], "BYTES")
    given.set_data_from_numpy(texts)
    answer = client.infer("text", [given], headers=headers).as_numpy("y")
    assert [item.decode() for item in answer[0]] == ["a", "ä", ""]
    brain = http.InferInput("x", [1, 3], "BF16")
    brain.set_data_from_numpy(np.array([[1.5, -2, 3]], ml_dtypes.bfloat16))
    np.testing.assert_array_equal(
        client.infer("brain", [brain], headers=headers).as_numpy("y"), [[1.5, -2, 3]]
    )
    with pytest.raises(Exception, match="key is needed"):
        client.get_model_metadata("double")
