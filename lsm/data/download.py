"""Fetches a dataset that is not prepared, where TFDS and the network allow."""

import logging
import pathlib
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from typing import Any

from lsm.data import build, raw
from lsm.errors import DataError

_PATIENCE = 10.0  # seconds to wait for a first answer of the server
_log = logging.getLogger("lsm.data")

# TFDS's own builders may import TensorFlow, and print a page where it is missing: not in here.
_BUILD = """
import sys, tensorflow_datasets as tfds
config = tfds.download.DownloadConfig(try_download_gcs=False)
tfds.builder(sys.argv[1], data_dir=sys.argv[2]).download_and_prepare(
    file_format="array_record", download_config=config)
"""


def fetch(name: str, builder: Any) -> None:
    """Downloads dataset `name` and prepares it where `builder` looks for it.

    MNIST, its relatives and CIFAR are read by lsm; others by TFDS in a process of its own, which
    for some of them needs TensorFlow. Where nothing answers within `_PATIENCE` seconds, nothing is
    tried. A failure leaves nothing behind.

    Raises:
      DataError: it could not be fetched; says how else to get it.
    """
    data_dir = pathlib.Path(builder.data_dir_root)
    without_version = name.split(":")[0]  # the builder has already checked the version
    name = without_version if without_version in build.PUBLISHED else name
    try:
        _fetch(name, builder, data_dir)
    except (DataError, OSError) as error:
        if build.is_prepared(builder):  # another process was quicker
            return
        raise DataError(
            f"dataset {name!r} is not prepared in {data_dir}, and cannot be downloaded "
            f"({build.reason(error).rstrip('.')}). {how(name, data_dir)}"
        ) from error


def how(name: str, data_dir: str | pathlib.Path) -> str:
    """Returns a sentence that says how to get a dataset by hand."""
    if name in build.PUBLISHED:
        return (
            f"With its published archives in DIR, 'python -m lsm.data.prepare {name} --raw=DIR "
            f"--data_dir={data_dir}' builds it."
        )
    return (
        f"Where there are a network and TensorFlow, 'tfds build {name} "
        f"--file_format=array_record --data_dir={data_dir}' builds it."
    )


def _fetch(name: str, builder: Any, data_dir: pathlib.Path) -> None:
    urls = list(builder.url_infos or ())
    files = build.PUBLISHED[name].files if name in build.PUBLISHED else ()
    if files:
        urls = [url for url in urls if url.rsplit("/", 1)[-1] in files]
    if not urls:
        raise DataError("TFDS does not know where to download it from")
    if not _answers(urls[0]):
        raise DataError(f"no answer from {urls[0]}")
    _log.info("%s is not in %s: downloading", name, data_dir)
    if files:
        build.write(
            lambda place: build.from_archive(name, _download(name, urls, place), place), data_dir
        )
    else:
        _build_apart(name, builder, data_dir)


def _download(name: str, urls: list[str], place: pathlib.Path) -> raw.Archive:
    """Downloads the archives with TFDS (which checks their hashes) and reads them."""
    import tensorflow_datasets as tfds

    manager = tfds.download.DownloadManager(
        download_dir=str(place / "downloads"),
        url_infos=tfds.builder_cls(name).url_infos,
        dataset_name=name,
    )
    try:
        paths = manager.download(urls)
    except Exception as error:  # requests, checksums and TFDS have kinds of their own
        raise DataError(f"download failed: {build.reason(error)}") from error
    folder = place / "archives"
    folder.mkdir()
    for url, path in zip(urls, paths, strict=True):  # under the names as published
        pathlib.Path(path).rename(folder / url.rsplit("/", 1)[-1])
    return build.PUBLISHED[name].read(folder)


def _build_apart(name: str, builder: Any, data_dir: pathlib.Path) -> None:
    relative = pathlib.Path(builder.data_dir).relative_to(data_dir)
    with build.staging(data_dir) as temporary:
        command = [sys.executable, "-c", _BUILD, name, str(temporary)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            # The last line of a traceback is the exception.
            reason = (done.stderr.strip().splitlines() or ["unknown reason"])[-1]
            raise DataError(f"TFDS's builder failed: {reason}")
        build.publish(temporary, relative, data_dir)


def _answers(url: str) -> bool:
    """Says whether anything answers at `url`, within `_PATIENCE` seconds whatever hangs."""
    answered = threading.Event()

    def ask() -> None:
        request = urllib.request.Request(url, method="HEAD")
        try:
            urllib.request.urlopen(request, timeout=_PATIENCE).close()
        except urllib.error.HTTPError:
            pass  # an answer, if not to this kind of question
        except (OSError, ValueError):
            return
        answered.set()

    thread = threading.Thread(target=ask, daemon=True)  # name resolution knows no time limit
    thread.start()
    thread.join(_PATIENCE)
    return answered.is_set()
