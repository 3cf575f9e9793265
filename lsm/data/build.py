"""Writes datasets in TFDS's layout (ArrayRecord) without TensorFlow.

The catalogue's own builders say what a dataset looks like (features, version, keys, splits); only
how the raw archive is read is replaced, because TFDS reads it, and encodes pictures, with
TensorFlow. Pictures are handed over as PNG, which TFDS stores as it is.
"""

import contextlib
import dataclasses
import functools
import io
import pathlib
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

from lsm.data import folder, images, raw
from lsm.errors import DataError, LsmError, listed
from lsm.files import remove_old

_TREE_BYTES = 1000 * 2**20  # TFDS sorts a split in memory up to here, beyond it by TensorFlow
_TREE_VERSION = "1.0.0"


@dataclasses.dataclass(frozen=True)
class Published:
    """A dataset of TFDS's catalogue whose raw archives lsm can read.

    Attributes:
      read: from the folder (or file) of the archives to their content.
      files: names under which TFDS downloads the archives; () where lsm cannot use those.
      examples: split -> number of examples as published; others are allowed, with a warning.
    """

    read: Callable[[pathlib.Path], raw.Archive]
    files: tuple[str, ...]
    examples: dict[str, int]


_IDX = Published(raw.read_mnist, raw.MNIST_FILES, {"train": 60_000, "test": 10_000})
_CIFAR = {"train": 50_000, "test": 10_000}
_EMNIST = {
    "byclass": (697_932, 116_323),
    "bymerge": (697_932, 116_323),
    "balanced": (112_800, 18_800),
    "letters": (88_800, 14_800),
    "digits": (240_000, 40_000),
    "mnist": (60_000, 10_000),
}

PUBLISHED: dict[str, Published] = {
    "mnist": _IDX,
    "fashion_mnist": _IDX,
    "kmnist": _IDX,
    "cifar10": Published(
        functools.partial(raw.read_cifar, names=raw.CIFAR10),
        ("cifar-10-binary.tar.gz",),
        _CIFAR,
    ),
    "cifar100": Published(
        functools.partial(raw.read_cifar, names=raw.CIFAR100),
        ("cifar-100-binary.tar.gz",),
        _CIFAR,
    ),
} | {
    f"emnist/{config}": Published(
        functools.partial(raw.read_mnist, prefix=f"emnist-{config}-"),
        # TFDS downloads one zip of all six, which `raw` does not open.
        (),
        {"train": train, "test": test},
    )
    for config, (train, test) in _EMNIST.items()
}


def from_archive(name: str, archive: raw.Archive, data_dir: pathlib.Path) -> Any:
    """Returns the catalogue's builder of `name`, one of `PUBLISHED`, made to write `archive`."""
    import tensorflow_datasets as tfds

    catalogue_name, _, config = name.partition("/")
    base = tfds.builder_cls(catalogue_name)

    class FromArchive(base, skip_registration=True):  # the catalogue keeps its own
        __module__ = base.__module__  # recorded in dataset_info.json
        name = base.name  # else TFDS makes one of the class's: from_archive

        def _split_generators(self, dl_manager):
            for label, class_names in archive.class_names.items():
                self.info.features[label].names = class_names
            return {split: self._generate_examples(split) for split in archive.splits}

        def _generate_examples(self, split):
            content = archive.splits[split]
            for index, image in enumerate(content.images):
                # A file object is stored byte by byte; an array would be encoded, by TensorFlow.
                example = {"image": io.BytesIO(images.encode_png(image))}
                example |= {label: int(numbers[index]) for label, numbers in content.labels.items()}
                if "id" in self.info.features:
                    example["id"] = f"{split}_{index:05d}"
                # TFDS orders a split by a hash of the key; this is the catalogue's own key.
                yield index, example

    made = FromArchive(data_dir=str(data_dir), **({"config": config} if config else {}))
    wanted = made.info.features["image"].shape
    for split, content in archive.splits.items():
        if content.images.shape[1:] != wanted:
            raise DataError(
                f"split {split!r} holds pictures of {_by(content.images.shape[1:])}; those of "
                f"{name} are of {_by(wanted)}."
            )
    return made


def _by(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def from_tree(name: str, tree: pathlib.Path, data_dir: pathlib.Path) -> Any:
    """Returns a builder that writes a class-per-folder tree (see `Folder`) as dataset `name`.

    Features as of `tfds.ImageFolder`: `image` (any size, 3 channels), `label`, `image/filename`.

    Raises:
      DataError: the name is not one that TFDS allows or is taken in its catalogue; no such tree,
        one of more than 1,000 MiB in a split, or with a broken link in it.
    """
    import tensorflow_datasets as tfds

    _check_tree_name(name)
    splits, classes = folder.tree(tree)
    for split, files in splits.items():
        if sum(folder.size(file) for file in files) > _TREE_BYTES:
            raise DataError(
                f"{tree}: split {split!r} is above 1,000 MiB, which TFDS cannot sort without "
                f"TensorFlow; read the tree itself with Folder({str(tree)!r})."
            )
    dataset_name = name

    class FromTree(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        name = dataset_name
        VERSION = tfds.core.Version(_TREE_VERSION)

        def _info(self):
            return tfds.core.DatasetInfo(
                builder=self,
                description="Pictures from a tree with one folder a class.",
                features=tfds.features.FeaturesDict(
                    {
                        "image": tfds.features.Image(shape=(None, None, 3)),
                        "label": tfds.features.ClassLabel(names=classes),
                        "image/filename": tfds.features.Text(),
                    }
                ),
                supervised_keys=("image", "label"),
            )

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples(files) for split, files in splits.items()}

        def _generate_examples(self, files):
            for file in files:
                path = file.relative_to(tree).as_posix()
                yield (
                    path,
                    {
                        "image": io.BytesIO(_as_rgb(file)),
                        "label": file.parent.name,
                        "image/filename": path,
                    },
                )

    return FromTree(data_dir=str(data_dir))


def _check_tree_name(name: str) -> None:
    import tensorflow_datasets as tfds

    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise DataError(f"{name!r} cannot name a dataset; give small letters, digits and '_'.")
    if name in tfds.list_builders(with_community_datasets=False):
        raise DataError(
            f"{name!r} is in TFDS's catalogue with a layout of its own, which lsm cannot build "
            f"from raw files; it can build {listed(PUBLISHED, 20)}. A tree needs another name."
        )


def _as_rgb(file: pathlib.Path) -> bytes:
    """The file as it is where it is an upright RGB JPEG or PNG, else as an RGB PNG."""
    from PIL import ExifTags, Image

    pixels = folder.read(file, None)  # also tells of a damaged file before it is stored
    with Image.open(file) as image:
        upright = image.getexif().get(ExifTags.Base.Orientation, 1) == 1
        if image.mode == "RGB" and image.format in ("JPEG", "PNG") and upright:
            return file.read_bytes()
    return images.encode_png(pixels)


def write(builder_in: Callable[[pathlib.Path], Any], data_dir: pathlib.Path) -> pathlib.Path:
    """Lets a builder write its dataset, and moves it into `data_dir` when it is whole.

    Args:
      builder_in: from the directory to write into to the builder.
      data_dir: where the dataset goes; made if it is not there.

    Returns:
      The directory of the dataset, `data_dir/NAME/[CONFIG/]VERSION`.

    Raises:
      DataError: it is already there, or cannot be built or written.
    """
    import tensorflow_datasets as tfds

    # Else TFDS would first look for a prepared copy in Google's bucket.
    config = tfds.download.DownloadConfig(try_download_gcs=False)
    with staging(data_dir) as temporary:
        builder = builder_in(temporary)
        relative = pathlib.Path(builder.data_dir).relative_to(temporary)
        # Told now, and not after minutes of work, when the move would fail.
        check_absent(data_dir / relative)
        try:
            # TFDS prints the temporary directory, and a banner where TensorFlow is missing.
            with contextlib.redirect_stdout(io.StringIO()):
                builder.download_and_prepare(file_format="array_record", download_config=config)
        except LsmError:
            raise
        except Exception as error:  # TFDS wraps what its writers raise in many kinds
            raise DataError(f"{relative.parent} cannot be built: {reason(error)}") from error
        return publish(temporary, relative, data_dir)


@contextlib.contextmanager
def staging(data_dir: pathlib.Path) -> Iterator[pathlib.Path]:
    """A temporary directory in `data_dir`; leaves nothing behind where nothing was published."""
    # The folders made here, the deepest first, as which they can be removed.
    missing = [path for path in (data_dir, *data_dir.parents) if not path.exists()]
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        remove_old(data_dir, ".lsm-*")
        # In data_dir, because a folder is renamed in one move only within a file system.
        temporary = pathlib.Path(tempfile.mkdtemp(prefix=".lsm-", dir=data_dir))
    except OSError as error:
        raise DataError(f"data_dir {data_dir} cannot be written: {error.strerror}.") from error
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        for path in missing:
            with contextlib.suppress(OSError):  # not empty: something was published
                path.rmdir()


def publish(
    temporary: pathlib.Path, relative: pathlib.Path, data_dir: pathlib.Path
) -> pathlib.Path:
    """Moves the finished `temporary/relative` to `data_dir/relative`; returns that."""
    target = data_dir / relative
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # By this file TFDS knows which config a name without one means.
        default_config = pathlib.Path(relative.parts[0], ".config")
        if (temporary / default_config).exists() and not (data_dir / default_config).exists():
            (temporary / default_config).rename(data_dir / default_config)
        # Fails where another process was quicker: a folder does not replace one with content.
        (temporary / relative).rename(target)
    except OSError as error:
        raise DataError(f"{target} cannot be written: {error.strerror}.") from error
    return target


def is_prepared(builder: Any) -> bool:
    """Says whether a builder's dataset is there; TFDS's own question logs a warning if not."""
    return (builder.data_path / "dataset_info.json").exists()


def check_absent(target: pathlib.Path) -> None:
    """Raises DataError where a dataset is already there."""
    if target.exists():
        raise DataError(f"{target} is already there; lsm does not overwrite it. Remove it first.")


def reason(error: BaseException) -> str:
    """Returns the last line of an error's message: before it, TFDS puts whole examples."""
    lines = str(error).strip().splitlines()
    return lines[-1] if lines else type(error).__name__
