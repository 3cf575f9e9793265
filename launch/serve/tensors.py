"""Arrays in requests and responses of the KServe v2 protocol, as JSON and as binary data.

The protocol: KServe's "Predict Protocol - Version 2" and Triton's "Binary Tensor Data Extension".
"""

import itertools
import math
import pathlib
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import orjson

from launch.command import LaunchError
from launch.serve.models import Range, Signature, Tensor
from launch.serve.refusal import Refused, malformed
from lsm.data.texts.encoder import LENGTH
from lsm.errors import listed, nearest, shortened

_DTYPES = {
    "BOOL": np.dtype(bool),
    **{f"INT{bits}": np.dtype(f"int{bits}") for bits in (8, 16, 32, 64)},
    **{f"UINT{bits}": np.dtype(f"uint{bits}") for bits in (8, 16, 32, 64)},
    **{f"FP{bits}": np.dtype(f"float{bits}") for bits in (16, 32, 64)},
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "BYTES": np.dtype(object),
}
_DATATYPES = {dtype: name for name, dtype in _DTYPES.items()}
_MOST_DIMENSIONS = 32


def datatype(dtype: Any) -> str:
    """Returns the protocol's word for a dtype of NumPy or ml_dtypes: "FP32" for float32.

    Raises:
      TypeError: it has none.
    """
    found = np.dtype(dtype)
    if found.kind in "SU":
        return "BYTES"
    if found not in _DATATYPES:
        raise TypeError(f"{found} has no datatype in the KServe protocol")
    return _DATATYPES[found]


def check(signature: Signature, folder: pathlib.Path) -> None:
    """Raises LaunchError where an array of a model has no datatype in the protocol."""
    for name, tensor in {**signature.inputs, **signature.outputs}.items():
        try:
            datatype(tensor.dtype)
        except TypeError as error:
            raise LaunchError(f"{folder}: {name}: {error}.") from error


def metadata(tensors: Mapping[str, Tensor]) -> list[dict[str, Any]]:
    """Returns name, datatype and shape of each; -1 for a size that varies."""
    return [
        {
            "name": name,
            "datatype": datatype(tensor.dtype),
            "shape": [size if isinstance(size, int) else -1 for size in tensor.shape],
        }
        for name, tensor in tensors.items()
    ]


def decode(
    given: Any, binary: memoryview, signature: Signature, most: int
) -> dict[str, np.ndarray]:
    """Returns the inputs of a request, in the order and with the dtypes of the signature.

    Args:
      given: "inputs" of the JSON.
      binary: what follows the JSON.
      signature: what the model takes.
      most: elements that all inputs together may have.

    Raises:
      Refused: 400 for whatever is not as the protocol and the signature say; 413 above `most`.
    """
    if not isinstance(given, list) or not all(isinstance(one, dict) for one in given):
        raise malformed("inputs: a list of objects is needed.")
    arrays: dict[str, np.ndarray] = {}
    sizes: dict[str, tuple[int, str]] = {}
    for one in given:
        name, expected = _expected(one.get("name"), arrays, signature)
        shape = _shape(name, one.get("shape"), expected, signature.symbols, sizes, most)
        most -= math.prod(shape)
        dtype = _dtype(name, one.get("datatype"), expected)
        size = _parameters(name, one).get("binary_data_size")
        if size is None:
            arrays[name] = _from_json(name, one.get("data"), shape, dtype)
            continue
        if type(size) is not int or not 0 <= size <= len(binary):
            line = f"{shortened(repr(size))} given; {len(binary)} bytes of binary data are left."
            raise malformed(f"{name}.parameters.binary_data_size: {line}")
        if "data" in one:
            raise malformed(f"{name}: data given, and binary data; one of them is needed.")
        arrays[name] = _from_binary(name, binary[:size], shape, dtype)
        binary = binary[size:]
    if len(binary):
        raise malformed(f"{len(binary)} bytes of binary data belong to no input.")
    if missing := [name for name in signature.inputs if name not in arrays]:
        raise malformed(f"inputs: {listed(missing)} missing.")
    _check_lengths(arrays)
    return {name: arrays[name] for name in signature.inputs}


def _check_lengths(arrays: Mapping[str, np.ndarray]) -> None:
    """Refuses a NAME_length beyond its NAME (B, T): padding would be read as text."""
    for name, array in arrays.items():
        lengths = arrays.get(name + LENGTH)
        if array.ndim < 2 or lengths is None or lengths.dtype.kind not in "iu":
            continue
        wrong = lengths[(lengths < 0) | (lengths > array.shape[1])]
        if wrong.size:
            most = array.shape[1]
            raise malformed(f"{name}{LENGTH}: {wrong[0]} given; 0 to {most} is allowed.")


def _expected(name: Any, taken: Mapping, signature: Signature) -> tuple[str, Tensor]:
    if not isinstance(name, str) or name not in signature.inputs:
        known = listed(signature.inputs)
        hint = nearest(name[:100], signature.inputs) if isinstance(name, str) else ""
        raise malformed(f"inputs: no input {shortened(repr(name))}; there are {known}.{hint}")
    if name in taken:
        raise malformed(f"inputs: {name} is given twice.")
    return name, signature.inputs[name]


def _shape(
    name: str,
    shape: Any,
    expected: Tensor,
    symbols: Mapping[str, Range],
    sizes: dict[str, tuple[int, str]],
    most: int,
) -> tuple[int, ...]:
    if not isinstance(shape, list) or any(type(size) is not int or size < 0 for size in shape):
        given = shortened(repr(shape))
        raise malformed(f"{name}.shape: {given} given; a list of whole numbers is needed.")
    needed = f"[{', '.join(map(str, expected.shape))}]"
    if len(shape) != len(expected.shape) or len(shape) > _MOST_DIMENSIONS:
        raise malformed(f"{name}.shape: {shortened(repr(shape))} given; {needed} is needed.")
    for size, own in zip(shape, expected.shape, strict=True):
        if isinstance(own, int) and size != own:
            raise malformed(f"{name}.shape: {shortened(repr(shape))} given; {needed} is needed.")
        if isinstance(own, str):
            _check_symbol(name, own, size, symbols[own], sizes)
    if math.prod(shape) > most:
        line = f"{name}.shape: more elements than the {most:,} that may come (or are left)."
        raise Refused(413, "too_large", line)
    return tuple(shape)


def _check_symbol(
    name: str, symbol: str, size: int, allowed: Range, sizes: dict[str, tuple[int, str]]
) -> None:
    given = shortened(str(size))
    if size < allowed.least or (allowed.most is not None and size > allowed.most):
        most = "or more" if allowed.most is None else f"to {allowed.most}"
        raise malformed(f"{name}.shape: {symbol} is {given}; {allowed.least} {most} is allowed.")
    first, where = sizes.setdefault(symbol, (size, name))
    if first != size:
        raise malformed(f"{name}.shape: {symbol} is {given} here, but {where} has {first}.")


def _dtype(name: str, given: Any, expected: Tensor) -> np.dtype:
    needed = datatype(expected.dtype)
    if given != needed:
        raise malformed(f"{name}.datatype: {shortened(repr(given))} given; {needed} is needed.")
    return _DTYPES[needed]


def _parameters(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the parameters of the request, of an input or of an output."""
    parameters = given.get("parameters", {})
    if not isinstance(parameters, dict):
        raise malformed(f"{name}.parameters: an object is needed.")
    for refused in ("shared_memory_region", "classification"):
        if parameters.get(refused):
            raise malformed(f"{name}.parameters.{refused}: this extension is not offered here.")
    return parameters


def _from_binary(name: str, data: memoryview, shape: tuple[int, ...], dtype: np.dtype):
    if dtype.kind == "O":
        return _bytes_array(name, _elements(name, data), shape)
    needed = math.prod(shape) * dtype.itemsize
    if len(data) != needed:
        line = f"{len(data)} given; the shape and datatype need {needed}."
        raise malformed(f"{name}.parameters.binary_data_size: {line}")
    if dtype.kind == "b" and bytes(data).strip(b"\x00\x01"):
        raise malformed(f"{name}: a BOOL is a byte of 0 or 1.")
    return np.frombuffer(data, dtype.newbyteorder("<")).astype(dtype, copy=False).reshape(shape)


def _elements(name: str, data: memoryview) -> list[bytes]:
    found, place = [], 0
    while place < len(data):
        end = place + 4
        if end <= len(data):
            end += struct.unpack_from("<I", data, place)[0]
        if end < place + 4 or end > len(data):
            raise malformed(f"{name}: an element of BYTES ends beyond the binary data.")
        found.append(bytes(data[place + 4 : end]))
        place = end
    return found


def _bytes_array(name: str, elements: list[bytes], shape: tuple[int, ...]) -> np.ndarray:
    if len(elements) != math.prod(shape):
        raise malformed(f"{name}: {len(elements)} elements given; the shape needs another number.")
    array = np.empty(len(elements), object)
    array[:] = elements
    return array.reshape(shape)


def _from_json(name: str, data: Any, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    flat = _flat(name, data, shape)
    if dtype.kind == "O":
        if not all(type(item) is str for item in flat):
            raise malformed(f"{name}.data: BYTES are texts in JSON.")
        return _bytes_array(name, [item.encode() for item in flat], shape)
    allowed = {"b": {bool}, "i": {int}, "u": {int}}.get(dtype.kind, {int, float})
    if not {*map(type, flat)} <= allowed:
        raise malformed(f"{name}.data: {_DATATYPES[dtype]} needs {_WORDS[dtype.kind]} alone.")
    try:
        with np.errstate(over="ignore"):
            array = _numbers(flat, dtype)
    except (OverflowError, ValueError) as error:
        raise malformed(f"{name}.data: a number is beyond {_DATATYPES[dtype]}.") from error
    if dtype.kind not in "biu" and not np.isfinite(array).all():
        raise malformed(f"{name}.data: a number is beyond {_DATATYPES[dtype]}.")
    return array.reshape(shape)


def _numbers(flat: list, dtype: np.dtype) -> np.ndarray:
    if dtype == np.uint8:  # most pictures: a fifth of the time
        return np.frombuffer(bytearray(flat), np.uint8)
    exact = np.float64 if dtype.kind in "fV" else dtype
    return np.fromiter(flat, exact, len(flat)).astype(dtype, copy=False)


_WORDS = {"b": "true and false", "i": "whole numbers", "u": "whole numbers from 0"}
_WORDS |= dict.fromkeys("fV", "numbers")


def _flat(name: str, data: Any, shape: tuple[int, ...]) -> list:
    """Returns the elements in order, given flat or as lists of lists that follow the shape."""
    if not isinstance(data, list):
        raise malformed(f"{name}.data: a list is needed, or binary data.")
    if len(shape) > 1 and data and isinstance(data[0], list):
        if len(data) != shape[0]:
            raise malformed(f"{name}.data: {len(data)} rows given; the shape says {shape[0]}.")
        for size in shape[1:]:
            if not all(type(item) is list and len(item) == size for item in data):
                raise malformed(f"{name}.data: its lists do not follow the shape.")
            data = list(itertools.chain.from_iterable(data))
    if len(data) != math.prod(shape):
        line = f"{len(data)} elements given; the shape needs {math.prod(shape)}."
        raise malformed(f"{name}.data: {line}")
    return data


def requested(request: Mapping[str, Any], outputs: Sequence[str]) -> dict[str, bool]:
    """Returns which outputs are asked for, in order, and whether each comes as binary data.

    Raises:
      Refused: an output is unknown or asked for twice, or a parameter is of the wrong type.
    """
    every = _flag("parameters", _parameters("request", request), "binary_data_output", False)
    asked = request.get("outputs")
    if not asked:
        if asked not in (None, []):
            raise malformed("outputs: a list of objects is needed.")
        return dict.fromkeys(outputs, every)
    found: dict[str, bool] = {}
    for one in asked if isinstance(asked, list) else [asked]:
        name = one.get("name") if isinstance(one, dict) else None
        if not isinstance(name, str) or name not in outputs or name in found:
            hint = nearest(name[:100], outputs) if isinstance(name, str) else ""
            given = shortened(repr(name))
            raise malformed(
                f"outputs: {given} given; each once, there are {listed(outputs)}.{hint}"
            )
        found[name] = _flag(name, _parameters(name, one), "binary_data", every)
    return found


def _flag(name: str, parameters: Mapping[str, Any], key: str, default: bool) -> bool:
    value = parameters.get(key, default)
    if not isinstance(value, bool):
        raise malformed(f"{name}.{key}: {shortened(repr(value))} given; true or false.")
    return value


def encode(
    head: dict[str, Any], outputs: Mapping[str, np.ndarray], asked: Mapping[str, bool]
) -> tuple[bytes, int | None]:
    """Returns a response's body, and the length of its JSON where binary data follow it.

    Args:
      head: the response without its outputs.
      outputs: arrays by name.
      asked: from `requested`.

    Raises:
      Refused: 400 where a NaN or an infinity is asked for as JSON, which has none.
    """
    described, chunks = [], []
    for name, binary in asked.items():
        array = outputs[name]
        one = {"name": name, "datatype": datatype(array.dtype), "shape": list(array.shape)}
        if binary:
            chunks.append(_binary(array))
            one["parameters"] = {"binary_data_size": len(chunks[-1])}
        else:
            one["data"] = _listed(name, array)
        described.append(one)
    text = orjson.dumps(head | {"outputs": described})
    return b"".join([text, *chunks]), len(text) if chunks else None


def _binary(array: np.ndarray) -> bytes:
    if datatype(array.dtype) == "BYTES":
        elements = [_octets(item) for item in array.reshape(-1)]
        return b"".join(struct.pack("<I", len(item)) + item for item in elements)
    return array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()


def _listed(name: str, array: np.ndarray) -> list:
    if datatype(array.dtype) == "BYTES":
        return [_octets(item).decode(errors="replace") for item in array.reshape(-1)]
    if array.dtype.kind in "fV":
        if not np.isfinite(array).all():
            raise malformed(f"{name}: holds NaN or infinity, unknown to JSON; ask for binary data.")
        array = array.astype(np.float64)
    return array.reshape(-1).tolist()


def _octets(item: Any) -> bytes:
    return item if isinstance(item, bytes) else str(item).encode()
