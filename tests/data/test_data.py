"""Data sets in their true on-disk formats, and what the options do to them."""

import gzip
import io
import pickle
import struct
import threading
import zlib
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from data_files import idx, put, put_cifar10, put_folder, put_mnist, python2_batch, random_bytes
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.io import savemat
from torchvision import datasets

from planescope.data.load import Files, load
from planescope.data.options import DataOptions, Labels, Resize, Validation
from planescope.data.sets import files as datafiles
from planescope.data.sets import matfiles
from planescope.files.errors import CheckpointError, PlanescopeError, UsageError

PARITY = Path(__file__).parents[1] / "parity"


# ---- digits and IDX ----


def test_digits_are_balanced_and_the_splits_do_not_meet():
    train, val = load("digits"), load("digits", split="val")
    assert train.images.shape == (4000, 1, 28, 28)
    assert val.images.shape == (1000, 1, 28, 28)
    assert train.images.dtype == torch.uint8
    assert train.labels.bincount().tolist() == [400] * 10
    assert val.labels.bincount().tolist() == [100] * 10
    assert not {image.numpy().tobytes() for image in train.images} & {
        image.numpy().tobytes() for image in val.images
    }


def test_digits_are_labelled_as_in_mnists_own_files():
    digits = [load("digits", split=split) for split in ("train", "val")]
    label_of = {
        image.tobytes(): label
        for data in digits
        for image, label in zip(data.images.numpy(), data.labels.tolist(), strict=True)
    }
    mnist = load("mnist", path=PARITY, split="val")  # 1,000 of the same digits
    found = [label_of[image.tobytes()] for image in mnist.images.numpy()]
    assert found == mnist.labels.tolist()


def test_validation_files_of_mnist_load_alone(tmp_path):
    val = load("mnist", path=PARITY, split="val")
    assert val.images.shape == (1000, 1, 28, 28)
    assert (val.mean, val.std) == ((0.1307,), (0.3015,))
    with pytest.raises(
        CheckpointError, match=r"mnist is not there; put train-images-idx3-ubyte and train-labels"
    ):
        load("mnist", path=PARITY)
    # torchvision reads the same files, unpacked.
    raw = PARITY / "MNIST" / "raw"
    for prefix in ("t10k", "train"):
        for kind in ("images-idx3", "labels-idx1"):
            content = gzip.decompress((raw / f"t10k-{kind}-ubyte.gz").read_bytes())
            put(tmp_path / "MNIST" / "raw" / f"{prefix}-{kind}-ubyte", content)
    theirs = datasets.MNIST(tmp_path, train=False)
    assert torch.equal(val.images[:, 0], theirs.data)
    assert torch.equal(val.labels, theirs.targets)


@pytest.mark.parametrize("place", ["", "raw", "FashionMNIST/raw"])
@pytest.mark.parametrize(
    ("pack", "suffix"), [(bytes, ""), (gzip.compress, ".gz")], ids=["plain", "gzipped"]
)
def test_idx_files_are_found_where_they_usually_lie(tmp_path, place, pack, suffix):
    images, labels = put_mnist(tmp_path / place, pack=pack, suffix=suffix)
    data = load("fashion-mnist", path=tmp_path, split="val")
    np.testing.assert_array_equal(data.images[:, 0], images)
    np.testing.assert_array_equal(data.labels, labels)
    assert data.classes[9] == "ankle boot"


GOOD = idx(random_bytes(12, 28, 28))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(b"", "is no IDX file", id="empty"),
        pytest.param(b"<html>", "begins with 3c68746d", id="a-web-page"),
        pytest.param(idx(random_bytes(12)), r"with 3 dimension\(s\)", id="labels-for-images"),
        pytest.param(GOOD[:9], "does not justify", id="cut-in-the-header"),
        pytest.param(GOOD[:-1], "claims 9408 bytes of data, the file holds 9407", id="cut"),
        pytest.param(GOOD + b"\0", "the file holds more", id="longer"),
        pytest.param(
            b"\0\0\x08\3" + struct.pack(">3I", 2**31, 2**31, 2**31) + b"x",
            "claims 2147483648 × 2147483648 × 2147483648 bytes, which the file does not justify",
            id="header-that-lies",
        ),
        pytest.param(
            gzip.compress(b"\0\0\x08\3" + struct.pack(">3I", 2**20, 2**10, 2**10)),
            "does not justify",
            id="gzip-bomb",
        ),
        pytest.param(gzip.compress(GOOD)[:-900], "gzip stream is damaged", id="gzip-cut"),
        pytest.param(b"\x1f\x8b\x08" + bytes(40), "gzip stream is damaged", id="gzip-of-zeros"),
    ],
)
def test_idx_file_that_is_not_what_it_claims(tmp_path, content, message):
    put_mnist(tmp_path)
    put(tmp_path / "t10k-images-idx3-ubyte", content)
    with pytest.raises(CheckpointError, match=message) as caught:
        load("mnist", path=tmp_path, split="val")
    assert "t10k-images-idx3-ubyte" in str(caught.value)


def test_images_without_their_labels(tmp_path):
    put_mnist(tmp_path)
    put(tmp_path / "t10k-labels-idx1-ubyte", idx(np.zeros(11, dtype=np.uint8)))
    with pytest.raises(CheckpointError, match="12 images but 11 labels"):
        load("mnist", path=tmp_path, split="val")
    put(tmp_path / "t10k-labels-idx1-ubyte", idx(np.full(12, 10, dtype=np.uint8)))
    with pytest.raises(CheckpointError, match=r"a label of mnist is outside 0 ... 9"):
        load("mnist", path=tmp_path, split="val")


# ---- CIFAR ----


class UncheckedCIFAR10(datasets.CIFAR10):
    """torchvision's reader without the checksums of the real files."""

    train_list = tuple((name, None) for name, _ in datasets.CIFAR10.train_list)
    test_list = tuple((name, None) for name, _ in datasets.CIFAR10.test_list)

    def _load_meta(self):
        """Skip the class names, which have a checksum too."""


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("place", [".", "cifar-10-batches-py"])
def test_cifar10_reads_as_torchvision_reads_it(tmp_path, split, place):
    put_cifar10(tmp_path)
    data = load("cifar10", path=tmp_path / place, split=split)
    theirs = UncheckedCIFAR10(tmp_path, train=split == "train")
    np.testing.assert_array_equal(data.images.permute(0, 2, 3, 1), theirs.data)
    assert data.labels.tolist() == theirs.targets
    assert data.augment == (split == "train")


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("key", [str, str.encode], ids=["text-keys", "bytes-keys"])
@pytest.mark.parametrize("layout", [np.ascontiguousarray, np.asfortranarray])
def test_cifar100_as_python3_pickles_it(tmp_path, protocol, key, layout):
    images, labels = random_bytes(5, 3072), [99, 0, 3, 7, 50]
    content = {key("data"): layout(images), key("fine_labels"): labels, key("coarse_labels"): [0]}
    put(tmp_path / "train", pickle.dumps(content, protocol))
    data = load("cifar100", path=tmp_path)
    np.testing.assert_array_equal(data.images.flatten(1), images)
    assert data.labels.tolist() == labels
    assert [data.classes[label] for label in (99, 0)] == ["worm", "apple"]


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_pickle_with_a_payload_runs_nothing(tmp_path):
    content = {"data": Payload(tmp_path / "ran"), "fine_labels": [0]}
    put(tmp_path / "train", pickle.dumps(content))
    with pytest.raises(CheckpointError, match="is it one of CIFAR's python batches"):
        load("cifar100", path=tmp_path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "content",
    [
        pytest.param([1, 2], id="no-dictionary"),
        pytest.param({"fine_labels": [0]}, id="no-images"),
        pytest.param({"data": random_bytes(1, 3072)}, id="no-labels"),
        pytest.param({"data": random_bytes(1, 3071), "labels": [0]}, id="images-of-another-size"),
        pytest.param({"data": np.zeros((1, 3072)), "labels": [0]}, id="images-of-floats"),
        pytest.param({"data": random_bytes(1, 3072), "labels": ["cat"]}, id="labels-of-text"),
        pytest.param({"data": random_bytes(1, 3072), "labels": [1 << 80]}, id="label-beyond-int64"),
    ],
)
def test_a_pickle_that_is_no_batch(tmp_path, content):
    put(tmp_path / "test", pickle.dumps(content))
    with pytest.raises(CheckpointError, match=r"test: holds no images .* CIFAR's python batches"):
        load("cifar100", path=tmp_path, split="val")


# ---- SVHN ----


def mat(images, labels, **options):
    file = io.BytesIO()
    savemat(file, {"X": images.transpose(2, 3, 1, 0), "y": labels[:, None]}, **options)
    return file.getvalue()


@pytest.mark.parametrize("do_compression", [True, False], ids=["compressed", "plain"])
def test_svhn_has_the_digit_0_under_the_label_10(tmp_path, do_compression):
    images, labels = random_bytes(6, 3, 32, 32), np.array([10, 1, 2, 9, 10, 5], dtype=np.uint8)
    put(tmp_path / "test_32x32.mat", mat(images, labels, do_compression=do_compression))
    data = load("svhn", path=tmp_path, split="val")
    np.testing.assert_array_equal(data.images, images)
    assert data.labels.tolist() == [0, 1, 2, 9, 0, 5]


def element(kind, content):
    return struct.pack("<II", kind, len(content)) + content + bytes(-len(content) % 8)


def compressed(content):
    packed = zlib.compress(content)
    return struct.pack("<II", 15, len(packed)) + packed


def mat_array(shape, content, kind=2):
    flags, sizes = struct.pack("<II", 9, 0), struct.pack(f"<{len(shape)}i", *shape)
    return element(
        14, element(6, flags) + element(5, sizes) + element(1, b"X") + element(kind, content)
    )


MAT_HEADER = b"MATLAB 5.0 MAT-file".ljust(124) + b"\0\1IM"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(b"", "its header is another", id="empty"),
        pytest.param(b"no matlab" * 40, "its header is another", id="text"),
        pytest.param(MAT_HEADER, "wants bytes X .* but holds neither", id="no-arrays"),
        pytest.param(
            mat(np.zeros((6, 3, 32, 32)), np.zeros(6)),
            r"holds 'X' \(float64 \(32, 32, 3, 6\)\), 'y' \(",
            id="images-of-floats",
        ),
        pytest.param(MAT_HEADER + bytes(4), "ends inside an element", id="cut"),
        pytest.param(MAT_HEADER + bytes(800), "has the type 0, which is no array", id="zeros"),
        pytest.param(
            MAT_HEADER + struct.pack("<II", 14, 1 << 31), "ends behind what holds it", id="longer"
        ),
        pytest.param(
            MAT_HEADER + mat_array([1 << 30, 1 << 30], b"x"), "has 1 bytes", id="shape-that-lies"
        ),
        pytest.param(
            MAT_HEADER + mat_array([-1, -1], b"x"), r"has the shape \(-1, -1\)", id="negative"
        ),
        pytest.param(MAT_HEADER + mat_array([1], b"x", kind=8), "the type 8", id="unknown-type"),
        pytest.param(
            MAT_HEADER + compressed(mat_array([1], b"x"))[:-3], "ends behind", id="compressed-cut"
        ),
        pytest.param(
            MAT_HEADER + struct.pack("<II", 15, 4) + b"spam", "incorrect header", id="no-zlib"
        ),
    ],
)
def test_svhn_file_that_is_not_what_it_claims(tmp_path, content, message):
    put(tmp_path / "train_32x32.mat", content)
    with pytest.raises(CheckpointError, match=f"train_32x32.mat: .*{message}"):
        load("svhn", path=tmp_path)


@pytest.mark.parametrize("label", [float("nan"), float("inf"), -1.0, 1e300, 0.5])
def test_svhn_labels_that_number_no_class_are_refused(tmp_path, label):
    arrays = {"X": np.zeros((32, 32, 3, 2), np.uint8), "y": np.array([[1.0], [label]])}
    savemat(tmp_path / "train_32x32.mat", arrays)
    with pytest.raises(CheckpointError, match="has labels y that number no class"):
        datafiles.read_svhn([tmp_path / "train_32x32.mat"])


def test_svhn_file_that_inflates_beyond_reason(tmp_path, monkeypatch):
    monkeypatch.setattr(matfiles, "BOMB_BYTES", 1 << 20)  # the real limit takes a second to reach
    put(tmp_path / "train_32x32.mat", MAT_HEADER + compressed(bytes(2 << 20)))
    with pytest.raises(CheckpointError, match="inflates beyond reason"):
        load("svhn", path=tmp_path)


# ---- damage anywhere ----

SOUND = {
    "mnist": ("t10k-images-idx3-ubyte", gzip.compress(GOOD)),
    "cifar100": ("test", python2_batch(random_bytes(2, 3072), [1, 2], b"fine_labels")),
    "svhn": ("test_32x32.mat", mat(random_bytes(2, 3, 32, 32), np.array([1, 2], dtype=np.uint8))),
}


@pytest.mark.parametrize("name", SOUND)
@given(cut=st.floats(0, 1), at=st.floats(0, 1, exclude_max=True), value=st.integers(0, 255))
@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_a_damaged_file_gives_data_or_one_sentence(tmp_path, name, cut, at, value):
    file, content = SOUND[name]
    put_mnist(tmp_path)
    damaged = bytearray(content)
    # Headers are where damage tells; the first 400 bytes hold them.
    damaged[int(at * min(len(damaged), 400))] = value
    put(tmp_path / file, bytes(damaged[: max(1, int(cut * len(damaged)))]))
    try:
        load(name, path=tmp_path, split="val")
    except PlanescopeError as exc:
        assert "\n" not in str(exc)  # noqa: PT017 -- sound data are as good an outcome


# ---- downloads ----


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    """Serve a folder on this machine in place of torchvision's mirrors."""
    folder = tmp_path / "mirror"
    put_mnist(folder, prefix="t10k", pack=gzip.compress, suffix=".gz")
    put_mnist(folder, prefix="train", pack=gzip.compress, suffix=".gz")
    handler = partial(SimpleHTTPRequestHandler, directory=folder)
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(datasets.MNIST, "mirrors", [f"http://127.0.0.1:{server.server_port}/"])
    unchecked = [(name, None) for name, _ in datasets.MNIST.resources]
    monkeypatch.setattr(datasets.MNIST, "resources", unchecked)
    yield folder
    server.shutdown()
    server.server_close()


def test_what_is_missing_is_downloaded_when_asked_for(tmp_path, mirror, capfd):
    data = load("mnist", path=tmp_path / "data", split="val", download=True)
    assert len(data.labels) == 12
    assert (tmp_path / "data" / "MNIST" / "raw" / "t10k-images-idx3-ubyte.gz").is_file()
    assert not capfd.readouterr().out


def test_a_download_that_fails_says_which_files_to_put_where(tmp_path, mirror):
    (mirror / "train-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(
        CheckpointError,
        match=r"its download failed \(.*\); put train-images-idx3-ubyte and "
        r"train-labels-idx1-ubyte \(or .gz\) into .*MNIST",
    ) as caught:
        load("mnist", path=tmp_path / "data", download=True)
    assert "\n" not in str(caught.value)


# ---- folders ----


@pytest.mark.parametrize("by_name", [True, False], ids=["imagenet", "folder:PATH"])
def test_images_in_class_folders(tmp_path, by_name):
    put_folder(tmp_path)
    name = "imagenet" if by_name else f"folder:{tmp_path}"
    data = load(name, path=tmp_path if by_name else None)
    theirs = datasets.ImageFolder(tmp_path / "train")
    assert isinstance(data, Files)
    assert list(zip(data.paths, data.labels.tolist(), strict=True)) == theirs.samples
    assert data.classes == ("ant", "bee", "cat")
    assert data.augment


def test_one_split_of_a_folder_is_enough_for_that_split(tmp_path):
    put_folder(tmp_path, splits=["val"])
    assert len(load(f"folder:{tmp_path}", split="val").paths) == 9
    with pytest.raises(CheckpointError, match=r"has no folder train/; images lie in train/CLASS/"):
        load(f"folder:{tmp_path}")


def test_folder_whose_classes_cannot_be_used(tmp_path):
    put_folder(tmp_path / "differ")
    put_folder(tmp_path / "differ", splits=["val"], classes=["dog"])
    with pytest.raises(CheckpointError, match="different classes, 'dog' is in one of them alone"):
        load(f"folder:{tmp_path / 'differ'}")
    put_folder(tmp_path / "empty")
    (tmp_path / "empty" / "train" / "elk").mkdir()
    with pytest.raises(CheckpointError, match="no valid file for the classes elk"):
        load(f"folder:{tmp_path / 'empty'}")
    (tmp_path / "flat" / "val").mkdir(parents=True)
    with pytest.raises(CheckpointError, match="any class folder"):
        load(f"folder:{tmp_path / 'flat'}", split="val")


# ---- one's own ----

PIXELS = torch.from_numpy(random_bytes(60, 2, 6, 5))
LABELS = torch.arange(60) % 4


def arrays():
    return (PIXELS[:40], LABELS[:40]), (PIXELS[40:].numpy(), LABELS[40:].numpy())


def torch_datasets():
    data = torch.utils.data.TensorDataset(PIXELS, LABELS)
    return [torch.utils.data.Subset(data, range(40)), torch.utils.data.Subset(data, range(40, 60))]


def pictures():
    rows = [(Image.fromarray(random_bytes(8, 8, 3, seed=n)), n % 2) for n in range(4)]
    return rows, rows[:2]


def one_part():
    return (PIXELS,)


def floats():
    return (PIXELS / 255, LABELS), (PIXELS, LABELS)


def sizes():
    return [(PIXELS[0], 0), (PIXELS[0, :, 1:], 1)], [(PIXELS[0], 0)]


@pytest.mark.parametrize("function", [arrays, torch_datasets])
def test_data_from_a_callable(function):
    name = f"{__name__}:{function.__name__}"
    train, val = load(name), load(name, split="val")
    assert torch.equal(torch.cat([train.images, val.images]), PIXELS)
    assert torch.equal(torch.cat([train.labels, val.labels]), LABELS)
    assert train.classes == val.classes == ("0", "1", "2", "3")
    # Moments of the training images, in both splits.
    scaled = PIXELS[:40].double() / 255
    torch.testing.assert_close(torch.tensor(val.mean).double(), scaled.mean((0, 2, 3)))
    torch.testing.assert_close(torch.tensor(val.std).double(), scaled.std((0, 2, 3), correction=0))


def test_pictures_from_a_callable():
    assert load(f"{__name__}:pictures").images.shape == (4, 3, 8, 8)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cifar11", "unknown data 'cifar11'; the nearest are cifar10, cifar100"),
        ("folder:", "unknown data 'folder:'"),
        ("noise:digits", "give noise:NAME, NAME being mnist, fashion-mnist, cifar10"),
        ("no.such:thing", r"no module 'no\.such' can be imported"),
        (f"{__name__}:nothing", "test_data has no callable 'nothing'"),
        (f"{__name__}:one_part", "must return two parts"),
        (f"{__name__}:floats", r"wants images as bytes .* got torch.float32 \(60, 2, 6, 5\)"),
        (f"{__name__}:sizes", "wants images of one size"),
    ],
)
def test_data_that_there_are_not(name, message):
    with pytest.raises(UsageError, match=message):
        load(name)


# ---- options ----

OWN = f"{__name__}:arrays"
seeds = st.integers(0, 2**32)


@given(noise=st.floats(0, 1), seed=seeds)
@settings(deadline=None)
def test_label_noise_replaces_its_exact_share_of_the_training_labels(noise, seed):
    options = DataOptions(label_noise=noise, seed=seed)
    clean, noisy = load(OWN), load(OWN, options=options)
    assert (noisy.labels != clean.labels).sum() == round(noise * 40)
    assert noisy.labels.min() >= 0
    assert noisy.labels.max() <= 3
    assert torch.equal(noisy.labels, load(OWN, options=options).labels)
    assert torch.equal(load(OWN, split="val", options=options).labels, LABELS[40:])
    assert torch.equal(load(OWN).labels, LABELS[:40])  # the caller's own tensor is left alone


def test_label_noise_is_uniform_over_the_other_classes():
    clean, noisy = load("digits"), load("digits", options=DataOptions(label_noise=1))
    steps = ((noisy.labels - clean.labels) % 10).bincount(minlength=10)
    assert steps[0] == 0
    # 4,000 / 9 = 444 each; chi-square with 8 degrees of freedom is below 26.1 in 99.9 %.
    assert ((steps[1:] - 4000 / 9).square() / (4000 / 9)).sum() < 26.1


def test_random_labels_are_drawn_from_all_classes_the_right_one_among_them():
    options = DataOptions(labels=Labels.RANDOM, seed=1)
    clean, drawn = load("digits"), load("digits", options=options)
    steps = ((drawn.labels - clean.labels) % 10).bincount(minlength=10)
    # 4,000 / 10 = 400 each; chi-square with 9 degrees of freedom is below 27.9 in 99.9 %.
    assert ((steps - 400).square() / 400).sum() < 27.9
    assert torch.equal(drawn.images, clean.images)
    assert torch.equal(drawn.labels, load("digits", options=options).labels)
    val = load("digits", split="val", options=options)
    assert torch.equal(val.labels, load("digits", split="val").labels)


def test_noise_has_the_size_and_moments_of_a_data_set_and_labels_of_chance():
    train = load("noise:cifar10", options=DataOptions(examples=4000))
    val = load("noise:cifar10", split="val")
    assert train.images.shape == (4000, 3, 32, 32)
    assert val.images.shape == (10_000, 3, 32, 32)
    assert train.classes == load("noise:cifar10", split="val").classes
    assert not train.augment
    mean, std = (torch.tensor(m) for m in (val.mean, val.std))
    pixels = val.images.float() / 255
    assert torch.allclose(pixels.mean((0, 2, 3)), mean, atol=0.01)
    # Cut off at black and white, which are 2.2 deviations or more away.
    assert torch.allclose(pixels.std((0, 2, 3)), std, atol=0.01)
    counts = val.labels.bincount(minlength=10)
    assert ((counts - 1000).square() / 1000).sum() < 27.9
    assert torch.equal(val.images, load("noise:cifar10", split="val").images)
    assert not torch.equal(val.images[:9], train.images[:9])
    other = load("noise:cifar10", split="val", options=DataOptions(seed=1))
    assert not torch.equal(val.images[:9], other.images[:9])


@given(classes=st.integers(1, 4), seed=seeds)
@settings(deadline=None)
def test_a_subset_of_the_classes_is_the_same_in_both_splits(classes, seed):
    options = DataOptions(classes=classes, seed=seed)
    for split, labels in (("train", LABELS[:40]), ("val", LABELS[40:])):
        data = load(OWN, split=split, options=options)
        kept = torch.isin(labels, torch.tensor(list(map(int, data.classes))))
        assert len(data.classes) == classes
        assert [data.classes[label] for label in data.labels] == [
            str(n) for n in labels[kept].tolist()
        ]
        assert torch.equal(data.images, (PIXELS[:40] if split == "train" else PIXELS[40:])[kept])


def test_the_seed_chooses_the_classes():
    chosen = {load(OWN, options=DataOptions(classes=2, seed=seed)).classes for seed in range(40)}
    assert len(chosen) == 6  # all pairs of 4


@pytest.mark.parametrize("validation", [Validation.RANDOM, Validation.STRATIFIED])
@given(share=st.floats(0.1, 0.9), seed=seeds)
@settings(deadline=None, max_examples=30)
def test_training_examples_held_out_for_validation(validation, share, seed):
    options = DataOptions(validation=validation, validation_share=share, validation_seed=seed)
    train, val = (load(OWN, split=split, options=options) for split in ("train", "val"))
    rows = torch.cat([train.images, val.images]).flatten(1).tolist()
    assert sorted(rows) == sorted(PIXELS[:40].flatten(1).tolist())
    if validation is Validation.RANDOM:
        assert len(val.labels) == round(share * 40)
    else:
        assert val.labels.bincount(minlength=4).tolist() == [round(share * 10)] * 4


def test_validation_from_the_training_set_needs_no_other_files(tmp_path):
    put_mnist(tmp_path, prefix="train", count=50)
    options = DataOptions(validation=Validation.RANDOM)
    assert len(load("mnist", path=tmp_path, split="val", options=options).labels) == 5


@given(examples=st.integers(1, 40), seed=seeds)
@settings(deadline=None, max_examples=30)
def test_a_subset_of_the_examples(examples, seed):
    options = DataOptions(examples=examples, seed=seed)
    rows = load(OWN, options=options).images.flatten(1).tolist()
    everything = PIXELS[:40].flatten(1).tolist()
    assert len(rows) == examples
    assert [row for row in everything if row in rows] == rows
    assert len(load(OWN, split="val", options=options).labels) == 20


@given(seed=seeds)
@settings(deadline=None, max_examples=20)
def test_each_training_image_has_a_pixel_permutation_of_its_own(seed):
    options = DataOptions(shuffle_pixels=True, seed=seed)
    shuffled = load(OWN, options=options).images.flatten(2)
    plain = PIXELS[:40].flatten(2)
    # A pixel's two channels stay together: as pairs, the pixels are the same in another order.
    pairs = [sorted(map(tuple, image.T.tolist())) for image in plain]
    assert [sorted(map(tuple, image.T.tolist())) for image in shuffled] == pairs
    orders = {tuple(row.tolist()) for row in _orders(plain, shuffled)}
    assert len(orders) > 35  # 40 images; equal values may blur a few
    assert torch.equal(shuffled, load(OWN, options=options).images.flatten(2))
    assert torch.equal(load(OWN, split="val", options=options).images, PIXELS[40:])


def _orders(plain, shuffled):
    """Where each pixel of the shuffled image came from, by its pair of values."""
    return (shuffled[:, :, :, None] == plain[:, :, None, :]).all(1).int().argmax(2)


def test_options_draw_from_streams_of_their_own():
    alone = load(OWN, options=DataOptions(label_noise=0.5))
    shuffled = load(OWN, options=DataOptions(label_noise=0.5, shuffle_pixels=True))
    assert torch.equal(alone.labels, shuffled.labels)


def test_folders_take_the_same_options(tmp_path):
    put_folder(tmp_path)
    options = DataOptions(classes=2, examples=4, label_noise=0.5, shuffle_pixels=True, seed=3)
    data = load(f"folder:{tmp_path}", options=options)
    named = [Path(path).parent.name for path in data.paths]
    given_names = [data.classes[label] for label in data.labels]
    assert len(named) == 4
    assert sum(a != b for a, b in zip(named, given_names, strict=True)) == 2
    assert data.shuffle_seed == 3


def test_digits_padded_to_32():
    plain, padded = load("digits"), load("digits", options=DataOptions(resize=Resize.PAD_32))
    assert padded.input_shape == (1, 32, 32)
    assert torch.equal(padded.images[:, :, 2:30, 2:30], plain.images)
    assert padded.images.sum() == plain.images.sum()
    assert (padded.mean, padded.std) == (plain.mean, plain.std)


def test_moments_of_resized_images(tmp_path):
    put_cifar10(tmp_path)
    for resize, std in ((Resize.UPSCALE_224, 0.1953), (Resize.PAD_224, 0.2367)):
        data = load("cifar10", path=tmp_path, options=DataOptions(resize=resize))
        assert data.std[0] == std
        assert data.input_shape == (3, 224, 224)
    # A constant m inside zeros on 3/4 of the area: mean m/4, variance m²/4 - m²/16 = 3m²/16.
    padded = load(OWN, options=DataOptions(resize=Resize.PAD_224))
    plain = load(OWN)
    assert padded.mean[0] == pytest.approx(plain.mean[0] / 4)
    variance = (plain.std[0] ** 2) / 4 + 3 * plain.mean[0] ** 2 / 16
    assert padded.std[0] ** 2 == pytest.approx(variance)


def test_without_normalisation_inputs_keep_their_scale():
    data = load("digits", split="val", options=DataOptions(normalise=False))
    assert (data.mean, data.std) == ((0.0,), (1.0,))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label_noise": 1.5}, r"label noise must lie in \[0, 1\], not 1.5"),
        ({"label_noise": float("nan")}, r"label noise must lie in \[0, 1\]"),
        ({"validation_share": 1.0}, r"validation share must lie in \(0, 1\)"),
        ({"classes": 0}, "classes must be 1 or more, not 0"),
        ({"examples": 0}, "examples must be 1 or more, not 0"),
        ({"seed": -1}, "seed must be 0 or more, not -1"),
        ({"std": (1.0, 0.0)}, "std must be above 0"),
        ({"mean": (float("inf"),)}, "mean must be finite"),
        ({"classes": 11}, "digits has 10 classes, fewer than the 11 asked for"),
        ({"examples": 4001}, "digits has 4000 training examples .* fewer than the 4001"),
        ({"classes": 1, "label_noise": 0.5}, "label noise needs a second class"),
        ({"labels": Labels.RANDOM, "label_noise": 0.5}, "random labels have no right ones"),
        ({"augment": True}, "digits is not augmented"),
        (
            {"validation": Validation.STRATIFIED, "validation_share": 0.999},
            "leave no examples in the train split",
        ),
    ],
)
def test_options_that_do_not_fit(options, message):
    with pytest.raises(UsageError, match=message):
        load("digits", options=DataOptions(**options))


def test_sizes_that_do_not_fit(tmp_path):
    put_folder(tmp_path)
    with pytest.raises(UsageError, match="cropped to 224 × 224, not resized"):
        load(f"folder:{tmp_path}", options=DataOptions(resize=Resize.UPSCALE_224))
    put(tmp_path / "t10k-images-idx3-ubyte", idx(random_bytes(2, 33, 4)))
    put(tmp_path / "t10k-labels-idx1-ubyte", idx(np.zeros(2, dtype=np.uint8)))
    options = DataOptions(resize=Resize.PAD_32)
    with pytest.raises(UsageError, match="33 × 4 pixels cannot be padded to 32 × 32"):
        load("mnist", path=tmp_path, split="val", options=options)
