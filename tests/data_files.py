"""Files of data sets in their true forms, filled with noise."""

from __future__ import annotations

import struct

import numpy as np
from PIL import Image


def random_bytes(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def idx(array):
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def put(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def put_mnist(folder, count=12, prefix="t10k", pack=lambda content: content, suffix=""):
    images, labels = random_bytes(count, 28, 28), np.arange(count, dtype=np.uint8) % 10
    put(folder / f"{prefix}-images-idx3-ubyte{suffix}", pack(idx(images)))
    put(folder / f"{prefix}-labels-idx1-ubyte{suffix}", pack(idx(labels)))
    return images, labels


def python2_batch(images, labels, name=b"labels"):
    """One of CIFAR's batches in the form that cPickle of Python 2 gave them, protocol 2."""

    def text(value):
        return b"U" + bytes([len(value)]) + value

    def array(values):
        raw = values.tobytes()
        return (
            b"cnumpy.core.multiarray\n_reconstruct\nq\x01"
            + b"cnumpy\nndarray\nq\x02K\0\x85U\x01b\x87Rq\x03"
            + (b"(K\x01" + b"M" + struct.pack("<H", len(values)) + b"M\x00\x0c\x86")
            + b"cnumpy\ndtype\nq\x04U\x02u1K\0K\x01\x87Rq\x05"
            + b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb"
            + (b"\x89T" + struct.pack("<I", len(raw)) + raw + b"tb")
        )

    listed = b"](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
    entries = text(b"batch_label") + text(b"training batch 1 of 5") + text(name) + listed
    return b"\x80\x02}q\0(" + entries + text(b"data") + array(images) + b"u."


def put_cifar10(root, count=4):
    for number, name in enumerate([f"data_batch_{n}" for n in range(1, 6)] + ["test_batch"]):
        batch = python2_batch(
            random_bytes(count, 3072, seed=number), [(number + n) % 10 for n in range(count)]
        )
        put(root / "cifar-10-batches-py" / name, batch)


def put_folder(root, splits=("train", "val"), classes=("ant", "bee", "cat"), each=3):
    for split in splits:
        for number, name in enumerate(classes):
            for index in range(each):
                pixels = random_bytes(40 + number, 50, 3, seed=index)
                path = root / split / name / f"{index}.{'png' if index % 2 else 'jpg'}"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(path)
