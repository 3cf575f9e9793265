"""Hostile bodies of the KServe protocol: drawn at random."""

import json

import hypothesis
import numpy as np
from hypothesis import strategies as st
from serving import Signature, Tensor

from launch.serve import kserve, tensors
from launch.serve.refusal import Refused

SIGNATURE = Signature(
    {
        "x": Tensor(("b", 3), np.dtype(np.float32)),
        "n": Tensor(("b", "t"), np.dtype(np.int8)),
        "s": Tensor(("b",), np.dtype(object)),
    },
    {"y": Tensor(("b",), np.dtype(np.float32))},
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4)
    ),
    max_leaves=12,
)
SIZES = st.integers(-2, 5) | st.sampled_from([2**31, 2**63, 2**64, 10**30, True, 1.0, None])
TENSOR = st.fixed_dictionaries(
    {},
    optional={
        "name": st.sampled_from(["x", "n", "s", "z", 5]),
        "shape": st.lists(SIZES, max_size=4) | JSON,
        "datatype": st.sampled_from(["FP32", "INT8", "BYTES", "BOOL", "fp32"]) | JSON,
        "data": st.lists(st.integers(-300, 300) | st.floats() | st.text(max_size=3), max_size=9)
        | JSON,
        "parameters": st.fixed_dictionaries({"binary_data_size": st.integers(-3, 40) | JSON})
        | JSON,
    },
)
REQUEST = st.fixed_dictionaries(
    {"inputs": st.lists(TENSOR, max_size=4) | JSON},
    optional={
        "id": JSON,
        "outputs": st.lists(
            st.fixed_dictionaries({"name": st.sampled_from(["y", "z"])}), max_size=2
        )
        | JSON,
        "parameters": JSON | st.fixed_dictionaries({"timeout": JSON, "binary_data_output": JSON}),
    },
)


def decoded(body, length):
    """What the handler does before the model is asked; an answer or Refused, and nothing else."""
    try:
        asked, binary = kserve._divided(body, length)
        kserve._id(asked), kserve._deadline(asked, 1e9)
        tensors.requested(asked, ["y"])
        return tensors.decode(asked.get("inputs"), binary, SIGNATURE, 10_000)
    except Refused as refused:
        assert refused.status in (400, 413)
        assert "\n" not in str(refused) and len(str(refused)) <= 1000
        json.dumps({"error": str(refused)})


@hypothesis.settings(max_examples=150, deadline=None, derandomize=True, database=None)
@hypothesis.given(REQUEST, st.binary(max_size=40), st.integers(-1, 300) | st.text(max_size=4))
def test_hostile_requests_are_refused_in_one_line(request, tail, length):
    text = json.dumps(request).encode()  # with NaN and Infinity where hypothesis made them
    decoded(text, None)
    decoded(text + tail, str(len(text)))
    decoded(text + tail, str(length))


@hypothesis.settings(max_examples=200, deadline=None, derandomize=True, database=None)
@hypothesis.given(st.binary(max_size=60), st.integers(0, 6))
def test_elements_of_bytes_never_read_beyond_their_end(data, count):
    x = {
        "name": "s",
        "shape": [count],
        "datatype": "BYTES",
        "parameters": {"binary_data_size": len(data)},
    }
    signature = Signature({"s": SIGNATURE.inputs["s"]}, {"y": Tensor(("b",), np.dtype(np.float32))})
    try:
        found = tensors.decode([x], memoryview(data), signature, 100)["s"]
    except Refused:
        return
    assert sum(4 + len(item) for item in found) == len(data)
