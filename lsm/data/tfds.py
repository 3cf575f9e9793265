"""Datasets of TensorFlow Datasets, read without TensorFlow."""

import contextlib
import copy
import dataclasses
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from lsm.data import cache, images
from lsm.data.dataset import Columns, Dataset, PathLike, Spec, digest
from lsm.data.features import Parser
from lsm.data.source import SplitSource
from lsm.errors import ConfigError, DataError, LsmError, listed, nearest


@dataclasses.dataclass(frozen=True)
class Tfds(SplitSource):
    """A dataset of TensorFlow Datasets, prepared as ArrayRecord.

    Pictures come as uint8 (height, width, channels), labels as int32, texts as bytes in a column of
    dtype object; 64-bit numbers as 32-bit ones. Splits of fixed shape and moderate size
    (`lsm.data.cache.MAX_BYTES`) are decoded once into the cache, the others read at random.
    A dataset that is not there is fetched where TFDS and the network allow.

    Attributes:
      name: name in TFDS, with config and version if wanted: "mnist", "glue/sst2", "mnist:3.0.1".
      columns: features to deliver; None is the dataset's (input, target) pair where it
        declares one, else all.
      size: pictures are resized to this, N or (height, width); None keeps their size. Needed where
        they differ in size.
    """

    name: str
    columns: tuple[str, ...] | None = None
    size: int | tuple[int, int] | None = None

    def __post_init__(self):
        if not self.name:
            raise ConfigError("Tfds.name: is empty; give the name of a dataset, such as 'mnist'.")
        if isinstance(self.columns, str):
            raise ConfigError(f"Tfds.columns: {self.columns!r} is one string; give a tuple.")
        images.as_size(self.size, "Tfds.size")

    def __str__(self) -> str:
        return self.name

    def shards(self, data_dir: PathLike | None = None) -> dict[str, list[int]]:
        """See `SplitSource.shards`."""
        info = builder(self.name, data_dir).info
        return {name: list(split.shard_lengths) for name, split in info.splits.items()}

    def spec(self, split: str, data_dir: PathLike | None = None) -> Spec:
        """See `Source.spec`; the data need not be there."""
        features = _features(_find(self.name, data_dir), self.columns)
        return _spec(Parser(features, images.as_size(self.size, "Tfds.size")))

    def open_split(self, name: str, data_dir: PathLike | None = None) -> Dataset:
        """See `SplitSource.open_split`."""
        records = _Records(builder(self.name, data_dir), name, self.columns, self.size)
        if not cache.fits(records.spec, len(records)):
            return records
        key = cache.fingerprint(records.files, records.features, self.columns, self.size)
        return cache.cached(f"{records.name}-{name}", key, records)


def builder(name: str, data_dir: PathLike | None = None) -> Any:
    """Returns the `tfds.core.DatasetBuilder` of a prepared dataset; fetches it where that can be.

    Raises:
      DataError: no such dataset, or it is not prepared and cannot be fetched, or not with random
        access.
    """
    # Here, because urllib and tarfile would cost every import of lsm some 25 ms.
    from lsm.data import build, download

    found = _find(name, data_dir)
    if not build.is_prepared(found):
        download.fetch(name, found)
        found = _find(name, data_dir)
    file_format = found.info.file_format
    if file_format is None or file_format.value not in ("array_record", "parquet"):
        raise DataError(
            f"dataset {name!r} in {found.data_dir} is stored as {file_format and file_format.value}"
            f", which has no random access; {download.how(name, found.data_dir_root)}"
        )
    return found


def _find(name: str, data_dir: PathLike | None) -> Any:
    import tensorflow_datasets as tfds

    place = {} if data_dir is None else {"data_dir": str(data_dir)}
    try:
        return tfds.builder(name, **place)
    except Exception as error:  # TFDS and what it reads with have many kinds
        known = set(tfds.list_builders(with_community_datasets=False)) | _prepared(data_dir)
        bare = name.split(":")[0]
        # Of "mnst/config", which is like no name as a whole, the part before the config.
        hint = nearest(bare, known - {bare}) or nearest(bare.split("/")[0], known - {bare})
        if isinstance(error, tfds.core.DatasetNotFoundError):
            raise DataError(
                f"dataset {name!r} is neither in TFDS's catalogue nor prepared in "
                f"{data_dir or tfds.core.constants.DATA_DIR}.{hint}"
            ) from None
        reason, *_ = [*str(error).strip().splitlines(), type(error).__name__]  # it may say nothing
        # Of a dataset that is there, another name is no advice.
        hint = "" if bare in known else hint
        raise DataError(f"dataset {name!r} cannot be opened: {reason}{hint}") from None


def _prepared(data_dir: PathLike | None) -> set[str]:
    """Names of the folders, and of their configs, in which prepared datasets lie."""
    if data_dir is None or not pathlib.Path(data_dir).is_dir():
        return set()
    root = pathlib.Path(data_dir)
    # NAME/VERSION, and NAME/CONFIG/VERSION.
    versions = [path.parent.parent for path in root.glob("*/*/dataset_info.json")]
    versions += [path.parent.parent for path in root.glob("*/*/*/dataset_info.json")]
    return {path.relative_to(root).as_posix() for path in versions}


class _Records(Dataset):
    """One split of a prepared dataset, read and decoded at random."""

    def __init__(
        self,
        builder: Any,
        split: str,
        columns: tuple[str, ...] | None,
        size: int | tuple[int, int] | None,
    ):
        import tensorflow_datasets as tfds

        info = builder.info
        self.name = f"{info.full_name}"
        self.features = _features(builder, columns)
        self._shards = info.splits[split].filepaths
        self.files = [pathlib.Path(path) for path in self._shards]
        self._size = images.as_size(size, "Tfds.size")
        self._parser = Parser(self.features, self._size)
        raw = tfds.decode.DeserializeMethod.RAW_BYTES
        with _readable(self.name, self.files):
            self._records = builder.as_data_source(split=split, deserialize_method=raw)

    def __len__(self) -> int:
        return len(self._records)

    @property
    def spec(self) -> Spec:
        return _spec(self._parser)

    @property
    def classes(self) -> tuple[str, ...] | None:
        return next(iter(self.names.values()), None)

    @property
    def names(self) -> dict[str, tuple[str, ...]]:
        import tensorflow_datasets as tfds

        labels = {n: f for n, f in self.features.items() if isinstance(f, tfds.features.ClassLabel)}
        return {name: tuple(label.names) for name, label in labels.items() if label.num_classes}

    @property
    def identity(self) -> dict[str, Any]:
        with _readable(self.name, self.files):
            # TFDS's own paths, which may lead into a bucket.
            shards = [(path.name, path.stat().length) for path in self._shards]
        return super().identity | {"name": self.name, "shards": digest(shards)}

    def column(self, name: str) -> np.ndarray:
        if name not in self.features:
            return super().column(name)
        alone = copy.copy(self)  # so that no picture is decoded for a label
        alone.features = {name: self.features[name]}
        alone._parser = Parser(alone.features, self._size)
        return Dataset.column(alone, name)

    def take(self, indices: np.ndarray) -> Columns:
        wanted = np.asarray(indices).tolist()
        with _readable(self.name, self.files):
            return self._parser(self._records.__getitems__(wanted))


@contextlib.contextmanager
def _readable(name: str, files: list[pathlib.Path]) -> Iterator[None]:
    """Tells of a record file that cannot be read, or read as what features.json says, in a line."""
    try:
        yield
    except LsmError:
        raise
    except Exception as error:  # TFDS and what it reads with have many kinds
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        where = f"{files[0].parent} ({listed(file.name for file in files)})"
        raise DataError(f"dataset {name}: {where} is damaged or incomplete: {reason}") from error


def _features(builder: Any, columns: tuple[str, ...] | None) -> dict[str, Any]:
    """Returns the features that are delivered, by name."""
    info = builder.info
    names = columns or _default_columns(info)
    for name in names:
        if name not in info.features:
            raise DataError(
                f"Tfds.columns: {builder.name} has no feature {name!r}; it has "
                f"{listed(info.features)}.{nearest(name, info.features)}"
            )
    return {name: info.features[name] for name in names}


def _spec(parser: Parser) -> Spec:
    return {name: column.one for name, column in parser.columns.items()}


def _default_columns(info: Any) -> tuple[str, ...]:
    """The (input, target) pair that the dataset declares, or every feature."""
    pair = info.supervised_keys
    if pair and all(isinstance(key, str) for key in pair):
        return tuple(pair)
    return tuple(info.features)
