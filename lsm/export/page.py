"""Makes a page on which one draws a picture, and the network in the page says what it is.

    npm pack onnxruntime-web@1.30.0
    onnx/bin/python -m lsm.export.page --model=digits.onnx --runtime=onnxruntime-web-1.30.0.tgz \\
        --out=digits.html

One file, which needs no server and no network: it holds the network, as `lsm.export.onnx` wrote it,
and onnxruntime-web (MIT licence), which computes it. For classifiers of pictures, uint8.
"""

import base64
import gzip
import hashlib
import html
import io
import json
import pathlib
import string
import sys
import tarfile
from collections.abc import Sequence
from typing import Any

from absl import flags

from lsm import command_line
from lsm.errors import ConfigError
from lsm.export.onnx import METADATA
from lsm.files import atomic_write, expanded

PAGE = string.Template(pathlib.Path(__file__).with_name("page.html").read_text())
RUNTIME = "onnxruntime-web 1.30.0"
DIGEST = "d2228df7e4616bc3348bf504ee888f3bec43789a273f0a63f3e68d203ce3bf71"
"""Of its package, as the registry has it."""

_PARTS = {
    "runtime": "package/dist/ort.wasm.min.js",
    "glue": "package/dist/ort-wasm-simd-threaded.mjs",
    "wasm": "package/dist/ort-wasm-simd-threaded.wasm",
}


def page(model: bytes, runtime: bytes, box: float = 1.0, pen: float = 0.09) -> str:
    """Returns the page.

    Args:
      model: an ONNX file of `lsm.export.onnx`.
      runtime: the package of onnxruntime-web.
      box: share of the picture's side that what is drawn fills: 1 of scikit-learn's digits, 20 / 28
        of MNIST.
      pen: how wide the pen is, as a share of the side of what is drawn on.

    Raises:
      ConfigError: the model is no classifier of pictures, or the package is another.
    """
    known = _facts(model)
    ((name, column),) = known["columns"].items()
    height, width, *channels = column["shape"]
    facts = {
        "labels": known["labels"],
        "size": [height, width],
        "channels": channels[0] if channels else 1,
        "tail": channels,
        "input": name,
        "output": "probability",
        "box": box,
        "pen": pen,
    }
    parts = {part: _packed(content) for part, content in _unpacked(runtime).items()}
    # In a script, the end of one is no text.
    told = json.dumps(facts).replace("<", "\\u003c")
    return PAGE.substitute(
        title=html.escape(known["name"]), facts=told, model=_packed(model), **parts
    )


def _facts(model: bytes) -> dict[str, Any]:
    try:
        import onnx
    except ImportError as error:
        raise ConfigError(
            "lsm.export.page: onnx is not installed; it is in the environment of lsm.export.onnx, "
            "which `python -m lsm.export.onnx --help` says how to make."
        ) from error
    try:
        entries = onnx.load_model_from_string(model).metadata_props
        known = json.loads(next(entry.value for entry in entries if entry.key == METADATA))
    except Exception as error:  # protobuf and JSON raise their own kinds
        raise ConfigError("--model: not an ONNX file that lsm.export.onnx wrote.") from error
    shapes = [column["shape"] for column in known["columns"].values()]
    kinds = [column["dtype"] for column in known["columns"].values()]
    if not known["labels"] or kinds != ["uint8"] or len(shapes[0]) not in (2, 3):
        raise ConfigError(
            f"--model: it reads {', '.join(known['columns'])}; a classifier of pictures, uint8 "
            "(height, width, channels), with names of its classes is needed."
        )
    return known


def _unpacked(runtime: bytes) -> dict[str, bytes]:
    if (found := hashlib.sha256(runtime).hexdigest()) != DIGEST:
        raise ConfigError(f"--runtime: not {RUNTIME}: its SHA-256 is {found}, not {DIGEST}.")

    with tarfile.open(fileobj=io.BytesIO(runtime)) as package:
        return {part: package.extractfile(path).read() for part, path in _PARTS.items()}


def _packed(content: bytes) -> str:
    return base64.b64encode(gzip.compress(content, mtime=0)).decode()


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    return command_line.run(_act, _flags(), argv, doc=__doc__)


def _flags() -> flags.FlagValues:
    given = flags.FlagValues()
    flags.DEFINE_string("model", None, "ONNX file of lsm.export.onnx", given, required=True)
    flags.DEFINE_string("runtime", None, f"the package of {RUNTIME}", given, required=True)
    flags.DEFINE_string("out", None, "the HTML file", given, required=True)
    share = "share of the picture's side that what is drawn fills: 1 of digits, 0.71 of MNIST"
    flags.DEFINE_float("box", 1.0, share, 0.1, 1.0, flag_values=given)
    return given


def _act(given: flags.FlagValues, words: list[str]) -> None:
    del words
    model, runtime, out = (expanded(given[f].value, f"--{f}") for f in ("model", "runtime", "out"))
    try:
        contents = [model.read_bytes(), runtime.read_bytes()]
    except OSError as error:
        raise ConfigError(f"{error.filename}: {error.strerror}.") from error
    if out.exists() and any(map(out.samefile, (model, runtime))):
        raise ConfigError(f"--out: {out} is one of the files that are read.")
    made = page(*contents, box=given.box)
    atomic_write(out, made.encode())
    print(f"{given.out}: {len(made) / 2**20:.1f} MiB; open it in a browser")


if __name__ == "__main__":
    sys.exit(main())
