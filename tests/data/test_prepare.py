import contextlib
import functools
import gzip
import http.server
import io
import pathlib
import pickle
import shutil
import subprocess
import sys
import tarfile
import threading
import types

import numpy as np
import pytest
from PIL import Image

from lsm.data import Folder, Tfds, build, download, prepare, raw
from lsm.errors import DataError


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LSM_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def raw_dir(tmp_path) -> pathlib.Path:
    (tmp_path / "raw").mkdir()
    return tmp_path / "raw"


@pytest.fixture
def data_dir(tmp_path) -> pathlib.Path:
    return tmp_path / "data"


def pictures(examples: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(examples).integers(0, 256, (examples, *shape)).astype(np.uint8)


def idx(array: np.ndarray) -> bytes:
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes()


MNIST = {
    "train": (pictures(12, 28, 28), np.arange(12, dtype=np.uint8) % 10),
    "test": (pictures(5, 28, 28), np.arange(5, dtype=np.uint8) * 2),
}


def write_mnist(folder: pathlib.Path, prefix: str = "", test: str = "t10k", zipped: bool = True):
    for split, start in (("train", "train"), ("test", test)):
        for array, kind in zip(MNIST[split], ("images-idx3", "labels-idx1"), strict=True):
            file = folder / f"{prefix}{start}-{kind}-ubyte{'.gz' if zipped else ''}"
            file.write_bytes(gzip.compress(idx(array)) if zipped else idx(array))


def as_set(images, labels) -> set[tuple[bytes, int]]:
    return {(np.asarray(i).tobytes(), int(n)) for i, n in zip(images, labels, strict=True)}


def read_back(name: str, data_dir: pathlib.Path, split: str) -> tuple[list[dict], dict]:
    """The examples by `tfds.data_source` and by lsm, which must agree one by one."""
    import tensorflow_datasets as tfds

    source = tfds.data_source(name, split=split, data_dir=str(data_dir))
    theirs = source.__getitems__(list(range(len(source))))
    columns = tuple(source.dataset_info.features)
    dataset = Tfds(name, columns=columns).open(split, data_dir)
    ours = dataset.take(np.arange(len(dataset)))
    for column in columns:
        for one, other in zip(ours[column], theirs, strict=True):
            np.testing.assert_array_equal(one, other[column])
    return theirs, ours


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    ("name", "prefix", "test", "version"),
    [
        ("mnist", "", "t10k", "3.0.1"),
        ("fashion_mnist", "", "t10k", "3.0.1"),
        ("kmnist", "", "t10k", "3.0.1"),
        ("emnist/letters", "emnist-letters-", "test", "3.1.0"),
    ],
)
def test_idx_files(raw_dir, data_dir, name, prefix, test, version, zipped):
    write_mnist(raw_dir, prefix, test, zipped)
    target = prepare.prepare(name, raw_dir, data_dir)
    assert target == data_dir / name / version
    bare = name.split("/")[0]
    assert {file.name for file in target.iterdir()} - {"label.labels.txt"} == {
        "dataset_info.json",
        "features.json",
        f"{bare}-train.array_record-00000-of-00001",
        f"{bare}-test.array_record-00000-of-00001",
    }
    for split, (images, labels) in MNIST.items():
        _, ours = read_back(name, data_dir, split)
        assert as_set(ours["image"], ours["label"]) == as_set(images, labels)
    assert [path.name for path in data_dir.iterdir()] == [bare]


def test_layout_is_that_of_the_prepared_datasets(tfds_dir, raw_dir, data_dir):
    write_mnist(raw_dir)
    prepare.prepare("mnist", raw_dir, data_dir)
    write_cifar(raw_dir, "binary", raw.CIFAR10)
    prepare.prepare("cifar10", raw_dir, data_dir)
    for place in ("mnist/3.0.1", "cifar10/3.0.2"):
        official, ours = tfds_dir / place, data_dir / place
        assert {f.name for f in official.iterdir()} == {f.name for f in ours.iterdir()}
    features = (data_dir / "mnist/3.0.1/features.json").read_text()
    assert features == (tfds_dir / "mnist/3.0.1/features.json").read_text()


def test_order_is_that_of_tfds(raw_dir, data_dir):
    """TFDS orders by a hash of the split and the example's number, whatever the content."""
    from tensorflow_datasets.core.hashing import Hasher

    write_mnist(raw_dir)
    prepare.prepare("mnist", raw_dir, data_dir)
    _, ours = read_back("mnist", data_dir, "train")
    order = [
        next(i for i, image in enumerate(MNIST["train"][0]) if np.array_equal(image, row[..., 0]))
        for row in ours["image"]
    ]
    assert order == sorted(range(12), key=Hasher("train").hash_key)


CIFAR = {"train": pictures(10, 32, 32, 3), "test": pictures(3, 32, 32, 3)}
NAMES = {"label": [f"fine{i}" for i in range(100)], "coarse_label": [f"c{i}" for i in range(20)]}


def cifar_labels(split: str, names: raw.Cifar) -> dict[str, np.ndarray]:
    fine = (np.arange(len(CIFAR[split])) * 3) % 10
    return {label: fine if label == "label" else fine % 7 for label in names.labels}


def class_names(names: raw.Cifar, label: str) -> list[str]:
    return NAMES[label][:10] if names is raw.CIFAR10 else NAMES[label]


def cifar_files(kind: str, names: raw.Cifar) -> dict[str, bytes]:
    """The published files of a small CIFAR, by name."""
    files = {}
    binary = kind == "binary"
    for split, members in (
        ("train", names.train[0 if binary else 1]),
        ("test", (names.test[0 if binary else 1],)),
    ):
        rows = CIFAR[split].transpose(0, 3, 1, 2).reshape(len(CIFAR[split]), -1)
        labels = cifar_labels(split, names)
        for member, part in zip(
            members, np.array_split(np.arange(len(rows)), len(members)), strict=True
        ):
            columns = [labels[label][part, None].astype(np.uint8) for label in names.labels]
            if binary:
                files[member] = np.concatenate([*columns, rows[part]], axis=1).tobytes()
            else:
                batch = {"data": rows[part], "batch_label": "x"}
                for label, (_, _, key) in names.labels.items():
                    batch[key] = labels[label][part].tolist()
                files[member] = pickle.dumps(batch, protocol=2)
    if binary:
        for label, (file, _, _) in names.labels.items():
            files[file] = ("\n".join(class_names(names, label)) + "\n\n").encode()
    else:
        meta = {key: class_names(names, label) for label, (_, key, _) in names.labels.items()}
        files[names.meta] = pickle.dumps(meta, protocol=2)
    return files


def tarball(files: dict[str, bytes], file: pathlib.Path) -> None:
    with tarfile.open(file, "w:gz") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(f"cifar-batches/{name}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def write_cifar(folder: pathlib.Path, kind: str, names: raw.Cifar, packed: bool = True) -> None:
    files = cifar_files(kind, names)
    if packed:
        tarball(files, folder / f"cifar-{kind}.tar.gz")
        return
    (folder / "batches").mkdir()
    for name, content in files.items():
        (folder / "batches" / name).write_bytes(content)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("kind", ["binary", "python"])
@pytest.mark.parametrize(("name", "names"), [("cifar10", raw.CIFAR10), ("cifar100", raw.CIFAR100)])
def test_cifar(raw_dir, data_dir, name, names, kind, packed):
    write_cifar(raw_dir, kind, names, packed)
    prepare.prepare(name, raw_dir, data_dir)
    for split, images in CIFAR.items():
        theirs, _ = read_back(name, data_dir, split)
        labels = cifar_labels(split, names)
        assert len(theirs) == len(images)
        for example in theirs:
            number = int(example["id"].decode().removeprefix(f"{split}_"))
            assert example["id"].decode() == f"{split}_{number:05d}"
            np.testing.assert_array_equal(example["image"], images[number])
            for label, values in labels.items():
                assert example[label] == values[number]
    dataset = Tfds(name).open("train", data_dir)
    assert dataset.classes == tuple(class_names(names, "label"))


def test_a_tarball_itself_can_be_given(raw_dir, data_dir):
    write_cifar(raw_dir, "python", raw.CIFAR10)
    prepare.prepare("cifar10", raw_dir / "cifar-python.tar.gz", data_dir)
    assert len(Tfds("cifar10").open("train", data_dir)) == 10


def test_python_2_pickles_are_read(raw_dir):
    """The published batches were pickled by Python 2's NumPy: other module names, raw strings."""
    array = np.arange(6, dtype=np.uint8)
    pickled = pickle.dumps({"data": array}, protocol=2)
    old = pickled.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    assert b"numpy.core.multiarray" in old
    np.testing.assert_array_equal(raw._unpickle(old, "batch")["data"], array)


def test_tree(raw_dir, data_dir):
    made = {
        "train/ant/a.png": Image.fromarray(pictures(8, 9, 3)),
        "train/bee/b.jpg": Image.fromarray(pictures(16, 12, 3)),
        "val/bee/grey.jpg": Image.fromarray(pictures(6, 6)),
    }
    for name, picture in made.items():
        (raw_dir / name).parent.mkdir(parents=True, exist_ok=True)
        picture.save(raw_dir / name)
    target = prepare.prepare("insects", raw_dir, data_dir)
    assert target == data_dir / "insects/1.0.0"
    found = {}
    for split in ("train", "val"):
        theirs, _ = read_back("insects", data_dir, split)
        found |= {e["image/filename"].decode(): e for e in theirs}
    assert set(found) == set(made)
    for name, example in found.items():
        with Image.open(raw_dir / name) as picture:
            np.testing.assert_array_equal(example["image"], np.asarray(picture.convert("RGB")))
        assert example["label"] == int("bee" in name)
    resized = Tfds("insects", size=8).open("all", data_dir)
    assert resized.classes == ("ant", "bee")
    of_tree = Folder(str(raw_dir), size=8).open("all")
    columns = [d.take(np.arange(3)) for d in (resized, of_tree)]
    assert as_set(*columns[0].values()) == as_set(*columns[1].values())


def refused(name: str, raw_dir: pathlib.Path, data_dir: pathlib.Path, said: str) -> None:
    with pytest.raises(DataError, match=said) as error:
        prepare.prepare(name, raw_dir, data_dir)
    assert "\n" not in str(error.value)
    assert not data_dir.exists()


def test_idx_errors(raw_dir, data_dir):
    refused("mnist", raw_dir, data_dir, "holds no train-images-idx3-ubyte.gz or")
    for name in ("FashionMNIST", "MNIST"):  # as torchvision puts them, all with one name
        (raw_dir / name).mkdir()
        write_mnist(raw_dir / name)
    refused("mnist", raw_dir, data_dir, r"has them in \S+FashionMNIST, \S+MNIST; give the folder")
    for name in ("FashionMNIST", "MNIST"):
        shutil.rmtree(raw_dir / name)
    write_mnist(raw_dir)
    images, labels = (raw_dir / f"train-{k}-ubyte.gz" for k in ("images-idx3", "labels-idx1"))
    good = images.read_bytes()
    images.write_bytes(good[: len(good) // 2])
    refused("mnist", raw_dir, data_dir, r"train-images.*\.gz is truncated or damaged")
    images.write_bytes(b"not gzip at all")
    refused("mnist", raw_dir, data_dir, r"train-images.*\.gz is truncated or damaged")
    images.write_bytes(gzip.compress(gzip.decompress(good)[:-100]))
    refused("mnist", raw_dir, data_dir, r"header says 9,408 bytes \(12, 28, 28\), it holds 9,308")
    images.write_bytes(gzip.compress(b"\x89PNG" + bytes(100)))
    refused("mnist", raw_dir, data_dir, "not an IDX file of bytes: it starts with 0x89504e47")
    images.write_bytes(labels.read_bytes())
    refused("mnist", raw_dir, data_dir, "has 1 dimensions; expected 3")
    images.write_bytes(gzip.compress(idx(MNIST["train"][0][:7])))
    refused("mnist", raw_dir, data_dir, "has 7 images, .* has 12 labels")
    images.write_bytes(good)
    labels.write_bytes(gzip.compress(idx(np.full(12, 11, np.uint8))))
    refused("mnist", raw_dir, data_dir, "mnist cannot be built: Class label 11 ")


def test_cifar_errors(raw_dir, data_dir):
    refused("cifar10", raw_dir, data_dir, "holds neither all of data_batch_1.bin, .* nor all of")
    refused("cifar10", raw_dir / "gone", data_dir, "gone is not there")
    files = cifar_files("binary", raw.CIFAR10)
    packed = raw_dir / "cifar-binary.tar.gz"
    tarball({n: c for n, c in files.items() if n != "data_batch_3.bin"}, packed)
    refused("cifar10", raw_dir, data_dir, "holds neither all of data_batch_1.bin")
    tarball(files | {"data_batch_3.bin": files["data_batch_3.bin"][:-1]}, packed)
    refused("cifar10", raw_dir, data_dir, "data_batch_3.bin is truncated: 6,145 bytes")
    tarball(files, packed)
    packed.write_bytes(packed.read_bytes()[:5000])
    refused("cifar10", raw_dir, data_dir, r"cifar-binary.tar.gz is truncated or damaged")
    packed.unlink()
    files = cifar_files("python", raw.CIFAR10)
    tarball(files | {"data_batch_2": files["data_batch_2"][:900]}, packed)
    refused("cifar10", raw_dir, data_dir, "data_batch_2 is truncated or no CIFAR batch")


@pytest.mark.parametrize("cut", [4, 5, 15])
def test_an_idx_file_that_ends_within_its_header(raw_dir, data_dir, cut):
    write_mnist(raw_dir, zipped=False)
    images = raw_dir / "train-images-idx3-ubyte"
    images.write_bytes(images.read_bytes()[:cut])
    refused("mnist", raw_dir, data_dir, "train-images-idx3-ubyte is truncated: it ends within")


def test_pictures_of_another_size_are_refused(raw_dir, data_dir):
    write_mnist(raw_dir)
    half = gzip.compress(idx(pictures(12, 14, 14)))
    (raw_dir / "train-images-idx3-ubyte.gz").write_bytes(half)
    said = "'train' holds pictures of 14 x 14 x 1; those of mnist are of 28 x 28 x 1"
    refused("mnist", raw_dir, data_dir, said)


NO_BATCH = "data_batch_2 is no CIFAR batch: rows of 3,072 bytes are needed"
NO_META = "batches.meta is no CIFAR meta file: it has no list 'label_names' of names"


@pytest.mark.parametrize(
    ("member", "changed", "said"),
    [
        ("data_batch_2", lambda batch: [batch], NO_BATCH),
        ("data_batch_2", lambda batch: None, NO_BATCH),
        ("data_batch_2", lambda batch: batch | {"data": batch["data"].tolist()}, NO_BATCH),
        ("data_batch_2", lambda batch: batch | {"data": batch["data"] / 255}, NO_BATCH),
        ("data_batch_2", lambda batch: batch | {"data": batch["data"][:, :3]}, NO_BATCH),
        ("data_batch_2", lambda batch: batch | {"labels": [300, 0]}, NO_BATCH),
        ("data_batch_2", lambda batch: batch | {"labels": [-1, 0]}, NO_BATCH),
        ("data_batch_2", lambda batch: batch | {"labels": [1.5, 0]}, NO_BATCH),
        ("data_batch_2", lambda batch: batch | {"labels": [0]}, NO_BATCH),
        ("data_batch_2", lambda batch: batch | {"labels": None}, NO_BATCH),
        ("data_batch_2", lambda batch: batch | {"labels": [77, 0]}, "cannot be built: .*label 77"),
        ("batches.meta", lambda meta: {}, NO_META),
        ("batches.meta", lambda meta: [meta], NO_META),
        ("batches.meta", lambda meta: {"label_names": [1, 2]}, NO_META),
        ("batches.meta", lambda meta: {"label_names": ["a"]}, "cannot be built: .*Got 1 names"),
    ],
)
def test_cifar_pickles_of_something_else(raw_dir, data_dir, member, changed, said):
    files = cifar_files("python", raw.CIFAR10)
    files[member] = pickle.dumps(changed(pickle.loads(files[member])), protocol=2)
    tarball(files, raw_dir / "cifar-10-python.tar.gz")
    refused("cifar10", raw_dir, data_dir, said)


def test_cifar_names_that_are_no_text(raw_dir, data_dir):
    files = cifar_files("binary", raw.CIFAR10) | {"batches.meta.txt": b"caf\xe9"}
    tarball(files, raw_dir / "cifar-10-binary.tar.gz")
    refused("cifar10", raw_dir, data_dir, "names of the classes are not UTF-8 text")


def test_a_tree_with_a_broken_link(raw_dir, data_dir):
    (raw_dir / "train/ant").mkdir(parents=True)
    (raw_dir / "train/ant/gone.png").symlink_to("nowhere.png")
    refused("insects", raw_dir, data_dir, r"gone\.png cannot be read: No such file")


@pytest.mark.parametrize("cached", [True, False])
def test_a_prepared_dataset_that_is_damaged(raw_dir, data_dir, cached, monkeypatch):
    """Whatever is done to one of its files: one line, or as before."""
    if not cached:
        monkeypatch.setattr("lsm.data.cache.MAX_BYTES", 0)
    (raw_dir / "train/ant").mkdir(parents=True)
    Image.fromarray(pictures(8, 9, 3)).save(raw_dir / "train/ant/a.png")
    good = prepare.prepare("insects", raw_dir, data_dir)
    for name in ("dataset_info.json", "features.json", "insects-train.array_record-00000-of-00001"):
        file, kept = good / name, (good / name).read_bytes()
        for change in (None, "link", b"", b"{}", b"[]", b"\xff\xfe", b"[" * 50_000, kept[:99]):
            file.unlink()
            if change == "link":
                file.symlink_to(name)
            elif change is not None:
                file.write_bytes(change)
            with pytest.raises(DataError) as error:
                Tfds("insects", size=4).open("train", data_dir).take(np.arange(1))
            assert "\n" not in str(error.value)
            file.unlink(missing_ok=True)
            file.write_bytes(kept)


def test_a_pickle_that_would_run_code_is_refused(raw_dir, data_dir, tmp_path):
    class Evil:
        def __reduce__(self):
            return (pathlib.Path.touch, (tmp_path / "run",))

    files = cifar_files("python", raw.CIFAR10) | {"test_batch": pickle.dumps(Evil(), protocol=2)}
    tarball(files, raw_dir / "cifar-10-python.tar.gz")
    refused(
        "cifar10", raw_dir, data_dir, "test_batch is truncated or no CIFAR batch: .* not allowed"
    )
    assert not (tmp_path / "run").exists()


def test_tree_errors(raw_dir, data_dir):
    refused("insects", raw_dir, data_dir, "holds no picture")
    (raw_dir / "train/ant").mkdir(parents=True)
    (raw_dir / "train/ant/a.jpg").write_bytes(b"no picture")
    refused("insects", raw_dir, data_dir, r"a\.jpg cannot be read")
    refused("Insects", raw_dir, data_dir, "'Insects' cannot name a dataset")
    refused("imagenette", raw_dir, data_dir, "'imagenette' is in TFDS's catalogue")


def test_an_existing_dataset_is_left_alone(raw_dir, data_dir):
    write_mnist(raw_dir)
    target = prepare.prepare("mnist", raw_dir, data_dir)
    before = {file.name: file.stat().st_mtime_ns for file in target.iterdir()}
    with pytest.raises(DataError, match=r"mnist/3.0.1 is already there; lsm does not overwrite it"):
        prepare.prepare("mnist", raw_dir, data_dir)
    assert before == {file.name: file.stat().st_mtime_ns for file in target.iterdir()}
    assert [path.name for path in data_dir.iterdir()] == ["mnist"]


def test_a_data_dir_that_cannot_be_written(raw_dir, tmp_path):
    write_mnist(raw_dir)
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="file/data cannot be written: Not a directory"):
        prepare.prepare("mnist", raw_dir, tmp_path / "file" / "data")


@pytest.mark.slow
def test_command_line(raw_dir, data_dir):
    write_mnist(raw_dir)
    flags = [f"--raw={raw_dir}", f"--data_dir={data_dir}"]

    def run(*arguments: str) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "lsm.data.prepare", *arguments]
        return subprocess.run(command, capture_output=True, text=True)

    done = run("mnist", *flags)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"mnist: train 12, test 5 in {data_dir}/mnist/3.0.1 (")
    assert "split train has 12 examples; the published one has 60,000" in done.stderr
    again = run("mnist", *flags)
    assert again.returncode == 1 and again.stdout == ""
    last = again.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ") and "already there" in last
    assert "Traceback" not in again.stderr


@contextlib.contextmanager
def served(folder: pathlib.Path):
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def builder_with(urls: list[str], name: str, version: str, data_dir: pathlib.Path):
    """What `fetch` looks at in a TFDS builder, with other addresses."""
    return types.SimpleNamespace(
        data_dir_root=str(data_dir),
        data_dir=str(data_dir / name / version),
        data_path=data_dir / name / version,
        url_infos=dict.fromkeys(urls),
    )


def test_download_of_published_archives(raw_dir, data_dir):
    write_mnist(raw_dir)
    with served(raw_dir) as address:
        urls = [f"{address}/{file.name}" for file in raw_dir.iterdir()]
        download.fetch("mnist:3.0.1", builder_with(urls, "mnist", "3.0.1", data_dir))
    _, ours = read_back("mnist", data_dir, "test")
    assert as_set(ours["image"], ours["label"]) == as_set(*MNIST["test"])
    assert [path.name for path in data_dir.iterdir()] == ["mnist"]


def test_download_that_fails_leaves_nothing(raw_dir, data_dir):
    with served(raw_dir) as address:
        urls = [f"{address}/{name}" for name in raw.MNIST_FILES]
        with pytest.raises(DataError, match=r"cannot be downloaded \(download failed: .*404") as e:
            download.fetch("mnist", builder_with(urls, "mnist", "3.0.1", data_dir))
    assert "\n" not in str(e.value) and not data_dir.exists()


def test_download_by_tfds_itself(data_dir, raw_dir, monkeypatch):
    make = "import pathlib, sys; pathlib.Path(sys.argv[2], 'my_set/1.0.0').mkdir(parents=True)"
    with served(raw_dir) as address:
        builder = builder_with([address], "my_set", "1.0.0", data_dir)
        monkeypatch.setattr(download, "_BUILD", "raise ImportError('TensorFlow is needed')")
        with pytest.raises(DataError, match="builder failed: ImportError: TensorFlow is needed"):
            download.fetch("my_set", builder)
        assert not data_dir.exists()
        monkeypatch.setattr(download, "_BUILD", make)
        download.fetch("my_set", builder)
    assert (data_dir / "my_set/1.0.0").is_dir()


def test_no_network_is_found_out_in_bounded_time(monkeypatch):
    import socket
    import time

    monkeypatch.setattr(download, "_PATIENCE", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts, and never answers
        address = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        start = time.perf_counter()
        assert not download._answers(address)
        assert time.perf_counter() - start < 3
    assert not download._answers(address)  # refused


def test_published_numbers_are_those_of_tfds():
    import tensorflow_datasets as tfds

    for name, published in build.PUBLISHED.items():
        base, _, config = name.partition("/")
        if config:
            found = tfds.builder_cls(base).builder_configs[config]
            assert published.examples == {
                "train": found.train_examples,
                "test": found.test_examples,
            }
        assert set(published.files) <= {
            url.rsplit("/", 1)[-1] for url in tfds.builder_cls(base).url_infos
        }
