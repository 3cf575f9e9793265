"""The folder of an exported model: which files it has, and that they are what was written."""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from lsm.errors import ExportError, listed, nearest
from lsm.export import weights
from lsm.export.spec import Array, Function
from lsm.files import nothing_at, parsed_json

FORMAT = 1
"""Of `signature.json`; another number is of another version of lsm."""

SIGNATURE, PREPROCESSING, STATISTICS = "signature.json", "preprocessing.json", "statistics.json"
TOKENIZER, CARD = "tokenizer.json", "README.md"

PREDICT, PREFILL, DECODE = "predict", "prefill", "decode"
"""The functions that there may be."""

PLATFORMS = ("cpu", "cuda", "tpu")
"""What there may be functions for."""

_LARGEST = 64_000_000
"""Bytes of JSON at the most."""


@dataclasses.dataclass(frozen=True)
class Signature:
    """What `signature.json` says.

    Attributes:
      name: of the experiment.
      step: updates that made the weights.
      platforms: what the functions are lowered for, of "cpu", "cuda" and "tpu".
      functions: by name.
      weights: shape and dtype of each, by name.
      shards: the files of the weights, and the names in each.
      labels: names of the classes, in the order of their numbers; None where they are not known.
      context: of a decoder, positions of prompt and text together; None without one.
      ends: ids of the tokens that end a text.
      versions: of lsm, jax and jaxlib that wrote it.
      files: SHA-256 of each file of the folder, hexadecimal.
    """

    name: str
    step: int
    platforms: tuple[str, ...]
    functions: Mapping[str, Function]
    weights: Mapping[str, Array]
    shards: Mapping[str, tuple[str, ...]]
    labels: tuple[str, ...] | None
    context: int | None
    ends: tuple[int, ...]
    versions: Mapping[str, str]
    files: Mapping[str, str]

    def to_json(self) -> bytes:
        """Returns the content of `signature.json`, with a digest of itself."""
        tree = {"format": FORMAT, **dataclasses.asdict(self)}
        return json.dumps(tree | {"digest": _digest_of(tree)}, indent=1).encode() + b"\n"

    @classmethod
    def from_json(cls, text: bytes) -> "Signature":
        """Returns what `to_json` wrote; raises what Python does where it is something else."""
        tree = parsed_json(text)
        found = tree.pop("format")
        if found != FORMAT:
            raise ValueError(f"it is of format {found!r}, and this lsm reads {FORMAT}")
        if tree.pop("digest") != _digest_of({"format": found, **tree}):
            raise ValueError("its digest is another")
        arrays = {n: Array(tuple(a["shape"]), a["dtype"]) for n, a in tree["weights"].items()}
        made = {
            "functions": {n: Function.from_json(f) for n, f in tree["functions"].items()},
            "weights": arrays,
            "shards": {file: tuple(names) for file, names in tree["shards"].items()},
            "labels": tree["labels"] and tuple(map(str, tree["labels"])),
            "platforms": tuple(tree["platforms"]),
            "ends": tuple(map(int, tree["ends"])),
            "context": None if tree["context"] is None else int(tree["context"]),
        }
        signature = cls(**{**tree, **made})
        _check(signature)
        return signature


def _check(signature: Signature) -> None:
    """Raises ValueError where parts do not belong together, or a file is not in the folder."""
    for file in signature.files:
        if pathlib.PurePath(file).name != file or file in (".", "..", SIGNATURE) or "\\" in file:
            raise ValueError(f"it names the file {file!r}")
    if not set(signature.platforms) <= {*PLATFORMS} or not signature.platforms:
        raise ValueError(f"its platforms are {signature.platforms}")
    known = [function.file for function in signature.functions.values()]
    known += list(signature.shards)
    if missing := [file for file in known if file not in signature.files]:
        raise ValueError(f"it has no digest of {missing[0]!r}")
    placed = [name for names in signature.shards.values() for name in names]
    if sorted(placed) != sorted(signature.weights):
        raise ValueError("its weights are not those of its files")
    for name, function in signature.functions.items():
        if unknown := [w for w in function.weights if w not in signature.weights]:
            raise ValueError(f"{name!r} takes the weights {unknown[0]!r}, which there are not")


def _digest_of(tree: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()


def digest(path: pathlib.Path) -> str:
    """Returns the SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclasses.dataclass(frozen=True)
class Artefact:
    """An exported model on the disk, all of whose files are what was written.

    Attributes:
      folder: where.
      signature: of `signature.json`.
    """

    folder: pathlib.Path
    signature: Signature

    @classmethod
    def open(cls, folder: pathlib.Path) -> "Artefact":
        """Reads the signature, and all files once.

        Raises:
          ExportError: there is no such folder, or it is damaged, incomplete, or none of these.
        """
        path = folder / SIGNATURE
        if not folder.exists():
            raise ExportError(nothing_at(folder))
        if not path.is_file():
            hint = "it is a run: `python -m lsm.export` makes one of it" if _is_run(folder) else ""
            raise ExportError(
                f"{folder}: is no exported model, without {SIGNATURE}; {hint}".rstrip("; ") + "."
            )
        try:
            if path.stat().st_size > _LARGEST:
                raise ValueError(f"it has more than {_LARGEST} bytes")
            signature = Signature.from_json(path.read_bytes())
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            reason = f"{error!s}" if isinstance(error, ValueError) else repr(error)
            raise ExportError(f"{path}: cannot be used: {reason}; export the run again.") from error
        artefact = cls(folder, signature)
        artefact._check_files()
        return artefact

    def _check_files(self) -> None:
        for name, known in self.signature.files.items():
            path = self.folder / name
            if path.is_symlink() or not path.is_file():
                raise ExportError(f"{path}: is missing; copy the whole folder, or export again.")
            if digest(path) != known:
                raise ExportError(f"{path}: is damaged, its SHA-256 is another; export again.")

    def content(self, name: str) -> bytes:
        """Returns the bytes of a file; raises ExportError where it is none, or has changed."""
        if name not in self.signature.files:
            there = listed(self.signature.files)
            hint = nearest(name, self.signature.files)
            raise ExportError(f"{self.folder}: has no {name!r}; it has {there}.{hint}")
        try:
            content = (self.folder / name).read_bytes()
        except OSError as error:
            raise ExportError(f"{self.folder / name}: cannot be read: {error.strerror}.") from error
        if hashlib.sha256(content).hexdigest() != self.signature.files[name]:
            raise ExportError(f"{self.folder / name}: has changed since it was opened.")
        return content

    def json(self, name: str) -> dict[str, Any] | None:
        """Returns what a file of JSON says; None where there is no such file."""
        return parsed_json(self.content(name)) if name in self.signature.files else None

    def arrays(self) -> Iterator[tuple[str, np.ndarray]]:
        """Yields the weights by name, mapped into memory."""
        known = self.signature.weights
        for file, names in self.signature.shards.items():
            wanted = {name: known[name] for name in names}
            yield from weights.read(self.folder / file, wanted).items()


def _is_run(folder: pathlib.Path) -> bool:
    return (folder / "checkpoints").is_dir()
