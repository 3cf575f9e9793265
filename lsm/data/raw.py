"""Readers of the archives in which MNIST, EMNIST and CIFAR are published; plain NumPy.

Formats: IDX (https://yann.lecun.com/exdb/mnist/, section "file formats") and CIFAR's binary and
Python versions (https://www.cs.toronto.edu/~kriz/cifar.html).
"""

import dataclasses
import gzip
import io
import math
import pathlib
import pickle
import tarfile
import zlib
from collections.abc import Iterable
from typing import Any

import numpy as np

from lsm.errors import DataError, listed

_IDX_FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
MNIST_FILES = tuple(f"{name}.gz" for pair in _IDX_FILES.values() for name in pair)
"""The four files as which MNIST, Fashion-MNIST and KMNIST are published."""


@dataclasses.dataclass(frozen=True)
class Split:
    """A split as published.

    Attributes:
      images: (N, height, width, channels) uint8.
      labels: name of the label feature -> (N,) uint8.
    """

    images: np.ndarray
    labels: dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Archive:
    """A whole published dataset.

    Attributes:
      splits: split name -> its content, in the published order.
      class_names: label feature -> names of its classes, where the archive has them.
    """

    splits: dict[str, Split]
    class_names: dict[str, list[str]] = dataclasses.field(default_factory=dict)


def read_idx(path: pathlib.Path, dimensions: int) -> np.ndarray:
    """Returns the uint8 array of an IDX file, plain or gzipped.

    Raises:
      DataError: damaged or truncated, not IDX, not of bytes, or of other than `dimensions`.
    """
    content = _bytes(path)
    # Magic number: two zeros, 8 for uint8, the number of dimensions; then big-endian sizes.
    if len(content) < 4 or content[:3] != b"\0\0\x08":
        raise DataError(
            f"{path} is not an IDX file of bytes: it starts with 0x{content[:4].hex()}, "
            f"not 0x0000080{dimensions}."
        )
    if content[3] != dimensions:
        raise DataError(f"{path} has {content[3]} dimensions; expected {dimensions}.")
    if len(content) < 4 + 4 * dimensions:
        raise DataError(f"{path} is truncated: it ends within its header.")
    shape = np.frombuffer(content, ">u4", dimensions, 4).tolist()
    held = len(content) - 4 - 4 * dimensions
    if held != math.prod(shape):
        raise DataError(
            f"{path} is truncated or too long: its header says {math.prod(shape):,} bytes "
            f"{tuple(shape)}, it holds {held:,}."
        )
    return np.frombuffer(content, np.uint8, offset=4 + 4 * dimensions).reshape(shape)


def read_mnist(raw: pathlib.Path, prefix: str = "") -> Archive:
    """Returns the four IDX files of MNIST and its relatives, .gz or not, found in folder `raw`.

    Args:
      raw: folder; its subfolders are looked through too.
      prefix: start of the file names, "emnist-letters-" for EMNIST (whose test files say "test").

    Raises:
      DataError: a file is missing, damaged, or images and labels do not agree.
    """
    splits = {}
    for split, names in _IDX_FILES.items():
        if prefix:
            names = [prefix + name.replace("t10k", "test") for name in names]
        image_file, label_file = (_one_of(raw, (f"{name}.gz", name)) for name in names)
        images, labels = read_idx(image_file, 3), read_idx(label_file, 1)
        if len(images) != len(labels):
            raise DataError(
                f"{image_file} has {len(images):,} images, {label_file.name} has "
                f"{len(labels):,} labels."
            )
        splits[split] = Split(images[..., None], {"label": labels})  # (N, 28, 28, 1)
    return Archive(splits)


@dataclasses.dataclass(frozen=True)
class Cifar:
    """What the files of one CIFAR are called.

    Attributes:
      train: names of the training files, binary and Python.
      test: names of the test files, binary and Python.
      labels: label feature -> (file of its names in the binary version, key of its names in the
        Python version's meta file, key of its labels there), in the order of the binary records.
      meta: name of the Python version's meta file.
    """

    train: tuple[tuple[str, ...], tuple[str, ...]]
    test: tuple[str, str]
    labels: dict[str, tuple[str, str, str]]
    meta: str


CIFAR10 = Cifar(
    train=(
        tuple(f"data_batch_{i}.bin" for i in range(1, 6)),
        tuple(f"data_batch_{i}" for i in range(1, 6)),
    ),
    test=("test_batch.bin", "test_batch"),
    labels={"label": ("batches.meta.txt", "label_names", "labels")},
    meta="batches.meta",
)
CIFAR100 = Cifar(
    train=(("train.bin",), ("train",)),
    test=("test.bin", "test"),
    labels={
        "coarse_label": ("coarse_label_names.txt", "coarse_label_names", "coarse_labels"),
        "label": ("fine_label_names.txt", "fine_label_names", "fine_labels"),
    },
    meta="meta",
)


def read_cifar(raw: pathlib.Path, names: Cifar) -> Archive:
    """Returns CIFAR from its binary or Python version, in a tarball or unpacked.

    Args:
      raw: a tarball, or a folder with one or with the unpacked files in it or below.
      names: `CIFAR10` or `CIFAR100`.

    Raises:
      DataError: neither version is there in full, or a file is damaged.
    """
    binary = [*names.train[0], names.test[0], *(files[0] for files in names.labels.values())]
    python = [*names.train[1], names.test[1], names.meta]
    for wanted, reader in ((binary, _binary_cifar), (python, _python_cifar)):
        found = _members(raw, wanted)
        if found is not None:
            return reader(found, names)
    raise DataError(
        f"{raw} holds neither all of {listed(binary)} (binary version) nor all of "
        f"{listed(python)} (Python version), as files or in a .tar.gz."
    )


def _binary_cifar(files: dict[str, bytes], names: Cifar) -> Archive:
    width = len(names.labels) + 3072  # a byte a label, then 3 x 32 x 32 pixels
    parts = {"train": names.train[0], "test": (names.test[0],)}
    splits = {}
    for split, members in parts.items():
        for member in members:
            if not files[member] or len(files[member]) % width:
                raise DataError(
                    f"{member} is truncated: {len(files[member]):,} bytes are not a multiple of "
                    f"its records' {width:,}."
                )
        content = b"".join(files[member] for member in members)
        records = np.frombuffer(content, np.uint8).reshape(-1, width)
        labels = {name: records[:, i] for i, name in enumerate(names.labels)}
        splits[split] = Split(_cifar_images(records[:, len(names.labels) :]), labels)
    try:
        class_names = {
            label: files[file].decode().split() for label, (file, _, _) in names.labels.items()
        }
    except UnicodeDecodeError as error:
        raise DataError(f"the names of the classes are not UTF-8 text: {error}.") from error
    return Archive(splits, class_names)


def _python_cifar(files: dict[str, bytes], names: Cifar) -> Archive:
    parts = {"train": names.train[1], "test": (names.test[1],)}
    splits = {}
    for split, members in parts.items():
        batches = [_unpickle(files[member], member) for member in members]
        for member, batch in zip(members, batches, strict=True):
            if not _is_batch(batch, [key for _, _, key in names.labels.values()]):
                raise DataError(
                    f"{member} is no CIFAR batch: rows of 3,072 bytes are needed, and for each a "
                    "label from 0 to 255."
                )
        images = _cifar_images(np.concatenate([batch["data"] for batch in batches]))
        labels = {
            label: np.concatenate([np.asarray(batch[key], np.uint8) for batch in batches])
            for label, (_, _, key) in names.labels.items()
        }
        splits[split] = Split(images, labels)
    meta = _unpickle(files[names.meta], names.meta)
    keys = {label: key for label, (_, key, _) in names.labels.items()}
    for key in keys.values():
        found = meta.get(key) if isinstance(meta, dict) else None
        if not (isinstance(found, list) and all(isinstance(name, str) for name in found)):
            raise DataError(f"{names.meta} is no CIFAR meta file: it has no list {key!r} of names.")
    return Archive(splits, {label: meta[key] for label, key in keys.items()})


def _is_batch(batch: Any, keys: list[str]) -> bool:
    """Whether what was unpickled holds "data" (n, 3072) uint8 and n labels under each of `keys`."""
    data = batch.get("data") if isinstance(batch, dict) else None
    if not (isinstance(data, np.ndarray) and data.dtype == np.uint8 and data.shape[1:] == (3072,)):
        return False
    return all(
        isinstance(labels := batch.get(key), list | np.ndarray)
        and len(labels) == len(data) > 0
        and all(isinstance(n, int | np.integer) and 0 <= n <= 255 for n in labels)
        for key in keys
    )


def _cifar_images(rows: np.ndarray) -> np.ndarray:
    """(N, 3072), all red, then all green, then all blue -> (N, 32, 32, 3)."""
    return rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)


class _ArraysOnly(pickle.Unpickler):
    """Unpickles NumPy arrays and nothing that runs code: an archive may come from anywhere."""

    def find_class(self, module: str, name: str) -> object:
        # This NumPy's own: the published files say numpy.core, which NumPy 2 calls numpy._core.
        reconstruct = np.ndarray(0).__reduce__()[0]
        allowed = {
            ("multiarray", "_reconstruct"): reconstruct,
            ("numpy", "ndarray"): np.ndarray,
            ("numpy", "dtype"): np.dtype,
        }
        if module.split(".")[0] == "numpy" and (module.split(".")[-1], name) in allowed:
            return allowed[module.split(".")[-1], name]
        if (module, name) == ("_codecs", "encode"):
            return _latin1
        raise pickle.UnpicklingError(f"{module}.{name} is not allowed")


def _latin1(text: str, encoding: str) -> bytes:
    """Stands for `_codecs.encode`, by which Python 3 writes bytes in protocol 2."""
    return text.encode("latin1")


def _unpickle(content: bytes, member: str) -> Any:
    try:
        # Pickled by Python 2, whose texts hold the pixels: Latin-1 gives every byte back.
        return _ArraysOnly(io.BytesIO(content), encoding="latin1").load()
    except Exception as error:  # of a damaged pickle: any kind
        raise DataError(f"{member} is truncated or no CIFAR batch: {error}.") from error


def _members(raw: pathlib.Path, wanted: Iterable[str]) -> dict[str, bytes] | None:
    """Contents of the files called `wanted`, from a folder or a tarball in it; None if not all."""
    wanted = set(wanted)
    if raw.is_dir():
        found = [file for file in raw.rglob("*") if file.name in wanted]
        files = {file.name: file for file in found}
        if set(files) == wanted:
            _check_one_folder(raw, found)
            return {name: _bytes(file) for name, file in files.items()}
        tarballs = sorted(raw.glob("*.tar.gz")) + sorted(raw.glob("*.tgz"))
    elif raw.is_file():
        tarballs = [raw]
    else:
        raise DataError(f"{raw} is not there; --raw is the folder of the downloaded archives.")
    for tarball in tarballs:
        contents = _untar(tarball, wanted)
        if set(contents) == wanted:
            return contents
    return None


def _untar(tarball: pathlib.Path, wanted: set[str]) -> dict[str, bytes]:
    try:
        with tarfile.open(tarball) as archive:
            contents = {}
            for member in archive:
                name = pathlib.PurePosixPath(member.name).name
                if member.isfile() and name in wanted:
                    contents[name] = archive.extractfile(member).read()
            return contents
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        raise DataError(f"{tarball} is truncated or damaged: {error}.") from error


def _one_of(raw: pathlib.Path, names: tuple[str, ...]) -> pathlib.Path:
    found = [file for name in names for file in sorted(raw.rglob(name))]
    if not found:
        what = " or ".join(names)
        raise DataError(f"{raw} holds no {what}; --raw is the folder of the IDX files.")
    _check_one_folder(raw, found)
    return found[0]


def _check_one_folder(raw: pathlib.Path, files: Iterable[pathlib.Path]) -> None:
    """Raises DataError for files of one name in several folders: MNIST's relatives all have its."""
    folders = sorted({str(file.parent) for file in files})
    if len(folders) > 1:
        raise DataError(f"--raw: {raw} has them in {listed(folders)}; give the folder of one.")


def _bytes(path: pathlib.Path) -> bytes:
    try:
        content = path.read_bytes()
        return gzip.decompress(content) if path.suffix == ".gz" else content
    except (EOFError, zlib.error, OSError) as error:
        raise DataError(f"{path} is truncated or damaged: {error}.") from error
