"""Formats taken apart, changed in one part, and put together again so that the rest holds."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import pickletools
import random
import re
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from planescope.checkpoints.tensorflow.saved.table import FOOTER_BYTES, MAGIC, crc32c, parse_table

Change = Callable[[bytes], bytes]

# What means something to one of the readers.
WORDS = (
    b"../../../../etc/passwd", b"/etc/passwd", b"/dev/zero", b"C:\\x", b"NaN", b"Infinity", b"null",
    b"-1", b"1e999", b"\0", b"\n", b"\xff\xfe", b"\xed\xa0\x80", b"\\ud800", b'"', b"[" * 2000,
    b"{" * 2000, b"(" * 2000, b"((((", b"&a ", b"*a", b"<<: *a\n", b"? ", b"!!python/object:os.x ",
    b"!!binary ", b"!!set ", b"!!timestamp ", b"a: &b [*b]\n", b"2001-13-45", b"0x1f", b"1:2:3",
    b"\xe2\x80\xae", b"| ", b"'", b"GCOL", b"OHDR", b"TREE", b"SNOD", b"HEAP", b"FRHP", b"BTHD",
    b"PK\x01\x02", b"PK\x05\x06", b"\x89HDF\r\n\x1a\n", b"\x93NUMPY", b"PAR1", b"\x80\x02", b".",
    b"cos\nsystem\n", b"(", b"t", b"R", b"b", b"\x93", b"\x81", b"\x92", b"q\0", b"h\0", b"\x94",
    b"__metadata__", b"weight_map", b"weight", b"bias", b"|O", b"<f4", b">f8", b"V16", b"BF16",
    b"F8_E8M0", b"'shape': (0,)", b"True", b"9" * 5000,
)  # fmt: skip


def boundary(rng: random.Random, bits: int, was: int, size: int) -> int:
    """A number of so many bits at which something may break."""
    top = 1 << bits
    value = rng.choice(
        (
            0, 1, 2, 3, 4, 7, 8, 16, 255, 256, 65535, 65536, top - 1, top - 2, top >> 1,
            (top >> 1) - 1, 1 << 31, (1 << 31) - 1, 1 << 32, 1 << 20, 1 << 28, 1 << 40,
            size, size - 1, size + 1, size // 2, was + 1, was - 1, was * 2, was // 2, was + 8,
            was - 8, was ^ (1 << rng.randrange(bits)), rng.getrandbits(bits),
            rng.randrange(size + 1),
        )
    )  # fmt: skip
    return value % top


@functools.lru_cache(maxsize=64)
def pointers(data: bytes) -> tuple[int, ...]:
    """Find the places of eight bytes that may be an address within the file."""
    found: list[int] = []
    for shift in (0, 4) if len(data) >= 12 else ():
        words = np.frombuffer(data, "<u8", (len(data) - shift) // 8, shift)
        (at,) = np.nonzero((words > 0) & (words < len(data)))
        found += (8 * at + shift).tolist()
    return tuple(found)


@functools.lru_cache(maxsize=64)
def decimals(data: bytes) -> tuple[tuple[int, int], ...]:
    """Find the places of decimal numbers; none in a file that is not mostly text."""
    if b"\0" in data[:64]:
        return ()
    return tuple(match.span() for match in re.finditer(rb"\d+", data[: 1 << 16]))


def changed(rng: random.Random, data: bytes, change: Change) -> bytes | None:
    """Change a part of a file whose format is known; None where none is, or it is too damaged.

    Parameters
    ----------
    change : callable
        For parts that are files themselves.
    """
    for recognises, changer in _FORMATS:
        if recognises(data):
            try:
                return changer(rng, data, change)
            except Exception:  # an earlier change of the same case broke it
                return None
    return None


# --- zip archives ---------------------------------------------------------------------------------


@functools.lru_cache(maxsize=64)
def _members(data: bytes) -> tuple[tuple[str, bytes, int], ...]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return tuple((i.filename, archive.read(i), i.compress_type) for i in archive.infolist())


def _zip(rng: random.Random, data: bytes, change: Change) -> bytes:
    """A sound archive of changed members."""
    members = list(_members(data))
    at = rng.randrange(len(members))
    # Descriptions are small and tell all; the others are mostly numbers.
    telling = [i for i, (name, *_) in enumerate(members) if re.search(r"\.(pkl|json|h5)$", name)]
    if telling and rng.random() < 0.7:
        at = rng.choice(telling)
    name, content, method = members[at]
    match rng.randrange(12):
        case 0:
            del members[at]
        case 1:
            members.insert(rng.randrange(len(members)), (name, content, method))
        case 2:
            members[at] = (change(name.encode()).decode("latin1")[:100] or "x", content, method)
        case 3:
            members[at] = (rng.choice(members)[0], content, method)
        case 4:
            members[at] = (name, content, zipfile.ZIP_STORED ^ zipfile.ZIP_DEFLATED ^ method)
        case _:
            members[at] = (name, change(content), method)
    return zipped(members)


def zipped(members: list[tuple[str, bytes, int]]) -> bytes:
    """Write a zip archive, whatever its members are called."""
    out, directory = io.BytesIO(), []
    for name, content, method in members:
        label, crc = name.encode("utf-8", "surrogateescape"), zlib.crc32(content)
        body = content
        if method == zipfile.ZIP_DEFLATED:
            packer = zlib.compressobj(1, zlib.DEFLATED, -zlib.MAX_WBITS)
            body = packer.compress(content) + packer.flush()
        fixed = struct.pack(
            "<4HIIIHH", 0x800, method, 0, 33, crc, len(body), len(content), len(label), 0
        )
        directory.append(
            b"PK\x01\x02" + struct.pack("<HH", 20, 20) + fixed
            + struct.pack("<HHHII", 0, 0, 0, 0, out.tell()) + label
        )  # fmt: skip
        out.write(b"PK\x03\x04" + struct.pack("<H", 20) + fixed + label + body)
    begin = out.tell()
    whole = b"".join(directory)
    ends = struct.pack("<4HIIH", 0, 0, len(members), len(members), len(whole), begin, 0)
    return out.getvalue() + whole + b"PK\x05\x06" + ends


# --- JSON, also at the head of safetensors --------------------------------------------------------

_VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**53 + 1, 2**63 - 1, 2**63, 2**64, 10**400, -(10**400),
    0.5, -0.0, 1e308, 1e-320, float("nan"), float("inf"), "", "a", "\ud800", "\0", "x\ny",
    "../../x", "/etc/passwd", "F64", "conv", "relu", "0", [], {}, [[]], [{}], {"": 0}, [0] * 100,
)  # fmt: skip


def _json(rng: random.Random, data: bytes, _: Change) -> bytes:
    root = json.loads(data)
    text = json.dumps(_changed_tree(rng, root), ensure_ascii=rng.random() < 0.9)
    if rng.random() < 0.03:
        text = text.replace("null", "[" * 3000, 1)
    return text.encode("utf-8", "surrogatepass")


def _changed_tree(rng: random.Random, root: Any) -> Any:
    """Change one node of a tree, each level as likely as the next."""
    path: list[tuple[Any, Any]] = []
    node = root
    while isinstance(node, (dict, list)) and node and (not path or rng.random() < 0.75):
        key = rng.choice(list(node)) if isinstance(node, dict) else rng.randrange(len(node))
        path.append((node, key))
        node = node[key]
    if not path:
        return rng.choice(_VALUES)
    parent, key = path[-1]
    match rng.randrange(10):
        case 0:
            del parent[key]
        case 1 if isinstance(parent, dict):
            parent[str(rng.choice(_VALUES))] = parent.pop(key)
        case 1:
            parent.insert(key, node)
        case 2:
            parent[key] = rng.choice(path)[0].copy()
        case 3:
            parent[key] = [node]
        case 4 if isinstance(node, str):
            parent[key] = node[: rng.randrange(len(node) + 1)] + rng.choice("\0\n/.é\ud800\u202e")
        case 4 | 5 if type(node) is int:
            parent[key] = boundary(rng, 64, abs(node), 1000) * rng.choice((1, 1, 1, -1))
        case 6 if isinstance(parent, list):
            parent.extend([node] * rng.choice((1, 10, 1000)))
        case 6:
            parent[str(rng.random())] = node
        case _:
            parent[key] = rng.choice(_VALUES)
    return root


def _safetensors(rng: random.Random, data: bytes, change: Change) -> bytes:
    length = int.from_bytes(data[:8], "little")
    header = _json(rng, data[8 : 8 + length], change)
    return len(header).to_bytes(8, "little") + header + data[8 + length :]


def _is_safetensors(data: bytes) -> bool:
    return data[8:9] == b"{" and 2 <= int.from_bytes(data[:8], "little") <= len(data) - 8


# --- pickles, one or several in a row -------------------------------------------------------------

_FRAGMENTS = (
    b"N", b")", b"]", b"}", b"(", b"t", b"0", b"1", b"2", b"e", b"u", b"s", b"a", b"b", b"R", b"o",
    b"Q", b".", b"\x85", b"\x86", b"\x87", b"\x88", b"\x8f", b"\x90", b"\x91", b"\x92", b"\x93",
    b"\x94", b"\x97", b"\x98", b"cos\nsystem\n", b"ios\nsystem\n", b"\x82\x01", b"Pa\n",
    b"K\0", b"K\x01", b"K\xff", b"J\xff\xff\xff\xff", b"J\xff\xff\xff\x7f", b"X\x01\0\0\0a",
    b"Ia\n", b"\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f", b"\x8a\x09\0\0\0\0\0\0\0\0\x01",
    b"G" + b"\x7f" * 8,
    b"q\0", b"h\0", b"h\x01", b"r\0\0\1\0", b"F nan\n", b"L1L\n", b"V\\ud800\n", b"S'a'\n",
    b"C\x01a",
    b"\x95\0\0\0\0\0\0\0\0", b"\x8c\x06weight", b"ctorch._utils\n_rebuild_tensor_v2\n",
    b"ctorch.nn.modules.conv\nConv2d\n", b"ccollections\nOrderedDict\n", b"ctorch\nFloatStorage\n",
)  # fmt: skip


@functools.lru_cache(maxsize=64)
def _operations(data: bytes) -> tuple[tuple[bytes, ...], int]:
    """The instructions of the pickles at the beginning of a file, and where they end."""
    found: list[bytes] = []
    end = 0
    while data[end : end + 1] == b"\x80":
        stream = io.BytesIO(data[end:])
        starts = [at for _, _, at in pickletools.genops(stream)]
        stops = [*starts[1:], stream.tell()]
        found += [data[end + a : end + b] for a, b in zip(starts, stops, strict=True)]
        end += stream.tell()
    return tuple(found), end


def _pickle(rng: random.Random, data: bytes, change: Change) -> bytes:
    cached, end = _operations(data)
    operations = list(cached)
    at, other = rng.randrange(len(operations)), rng.randrange(len(operations))
    until = at + rng.choice((1, 1, 1, 2, 5, 20))
    match rng.randrange(8):
        case 0:
            del operations[at:until]
        case 1:
            operations[at:at] = operations[other : other + until - at]
        case 2:
            operations[at], operations[other] = operations[other], operations[at]
        case 3:
            operations.insert(at, rng.choice(_FRAGMENTS))
        case 4:
            operations[at] = rng.choice(_FRAGMENTS)
        case 5:
            operations[at:at] = operations[at:until] * rng.choice((1, 10, 1000))
        case _:
            operations[at] = operations[at][:1] + change(operations[at][1:])
    return b"".join(operations) + data[end:]


# --- protocol buffers (ONNX) ----------------------------------------------------------------------

_Field = tuple[int, int, Any]  # number, wire type, and a number, bytes or fields


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at


def _written(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def _fields(data: bytes, depth: int = 0) -> list[_Field]:
    """Fields of a message; bytes that could be a message are taken for one."""
    fields: list[_Field] = []
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, at = _varint(data, at)
            fields.append((number, wire, value))
            continue
        if wire == 2:
            length, at = _varint(data, at)
        else:
            length = {1: 8, 5: 4}[wire]
        content: Any = data[at : at + length]
        at += length
        if number == 0 or at > len(data):
            raise ValueError
        if wire == 2 and depth < 8 and len(content) > 2:
            with contextlib.suppress(ValueError, IndexError, KeyError):
                content = _fields(content, depth + 1)
        fields.append((number, wire, content))
    return fields


def _message(fields: list[_Field]) -> bytes:
    out = []
    for number, wire, value in fields:
        out.append(_written(number << 3 | wire))
        if wire == 0:
            out.append(_written(value))
            continue
        content = _message(value) if isinstance(value, list) else value
        if wire == 2:
            out.append(_written(len(content)))
        out.append(content)
    return b"".join(out)


_parsed = functools.lru_cache(maxsize=16)(_fields)


def _protobuf(rng: random.Random, data: bytes, change: Change) -> bytes:
    return _message(_changed_fields(rng, _parsed(data), change))


def _changed_fields(rng: random.Random, fields: list[_Field], change: Change) -> list[_Field]:
    """Copy the fields, with a change in one; those beside the way to it are shared."""
    fields = list(fields)
    at = rng.randrange(len(fields))
    number, wire, value = fields[at]
    if isinstance(value, list) and value and rng.random() < 0.85:
        fields[at] = (number, wire, _changed_fields(rng, value, change))
        return fields
    match rng.randrange(8):
        case 0:
            del fields[at]
        case 1:
            fields[at:at] = [fields[at]] * rng.choice((1, 2, 100))
        case 2:
            fields[at] = (rng.choice((1, 2, 4, 5, 7, 8, 9, 14, 1 << 28)), wire, value)
        case 3:
            fields.append(fields[rng.randrange(len(fields))])
            fields[at], fields[-1] = fields[-1], fields[at]
        case 4 if wire == 2:
            fields[at] = (number, 0, boundary(rng, 64, 0, 100))
        case _ if wire == 0:
            fields[at] = (number, wire, boundary(rng, 64, value, 1000))
        case _:
            content = _message(value) if isinstance(value, list) else value
            fields[at] = (number, wire, change(content) if wire == 2 else content[::-1])
    return fields


# --- tables (TensorFlow's checkpoints) ------------------------------------------------------------


def _table(rng: random.Random, data: bytes, change: Change) -> bytes:
    """An index whose checksums are right, with one key or value changed."""
    entries = list(_entries(data))
    at = rng.randrange(len(entries))
    key, value = entries[at]
    match rng.randrange(8):
        case 0:
            del entries[at]
        case 1:
            entries.insert(at, rng.choice(entries))
        case 2:
            entries[at] = (change(key), value)
        case 3:
            entries[at] = (key, rng.choice(entries)[1])
        case 4:
            fields = b"\x08\x01" + bytes([rng.choice((0x20, 0x28, 0x18, 0x10))])
            entries[at] = (key, value + fields + _written(boundary(rng, 40, 0, len(data))))
        case _:
            entries[at] = (key, _protobuf(rng, value, change) if value else change(value))
    return table(entries)


@functools.lru_cache(maxsize=16)
def _entries(data: bytes) -> tuple[tuple[bytes, bytes], ...]:
    return tuple(parse_table(Path("index"), data).items())


def table(entries: list[tuple[bytes, bytes]]) -> bytes:
    """Write a table of one block that holds these keys and values."""
    out = bytearray()

    def put(pairs: list[tuple[bytes, bytes]]) -> bytes:
        listed = [_written(0) + _written(len(k)) + _written(len(v)) + k + v for k, v in pairs]
        block = b"".join(listed) + struct.pack("<II", 0, 1) + b"\0"
        begin, crc = len(out), crc32c(block)
        out.extend(block + struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF))
        return _written(begin) + _written(len(block) - 1)

    place = put(entries)
    footer = put([]) + put([(b"~", place)])
    return bytes(out) + footer.ljust(FOOTER_BYTES - len(MAGIC), b"\0") + MAGIC


# --- text by lines (YAML, CSV) --------------------------------------------------------------------


def _lines(rng: random.Random, data: bytes, _: Change) -> bytes:
    lines = data.split(b"\n")
    at, other = rng.randrange(len(lines)), rng.randrange(len(lines))
    match rng.randrange(7):
        case 0:
            del lines[at]
        case 1:
            lines.insert(at, lines[other])
        case 2:
            lines[at], lines[other] = lines[other], lines[at]
        case 3:
            lines[at] = b"  " * rng.choice((1, 2, 500)) + lines[at]
        case 4:
            lines[at] = lines[at].partition(b":")[0] + b": " + rng.choice(WORDS)
        case 5:
            cells = lines[at].split(b",")
            cells[rng.randrange(len(cells))] = rng.choice(
                (*WORDS, str(rng.choice(_VALUES)).encode("utf-8", "replace"))
            )
            lines[at] = b",".join(cells)
        case _:
            # Each names the one before twice: small as text, without end unfolded.
            bomb = [
                b"b0: &b0 [x, x]",
                *(b"b%d: &b%d [*b%d, *b%d]" % (i, i, i - 1, i - 1) for i in range(1, 30)),
            ]
            lines[at:at] = bomb
    return b"\n".join(lines)


def _is_text(data: bytes) -> bool:
    return (
        b"\0" not in data[:512]
        and b"\n" in data[:512]
        and data[:1].isascii()
        and data[:1].isalpha()
    )


# --- gzip (data sets) -----------------------------------------------------------------------------


def _gzip(_: random.Random, data: bytes, change: Change) -> bytes:
    inner = zlib.decompressobj(31).decompress(data, 1 << 20)
    packer = zlib.compressobj(1, zlib.DEFLATED, 31)
    return packer.compress(change(inner)) + packer.flush()


# --- Parquet: the results keep their JSON in its metadata -----------------------------------------


def _parquet(rng: random.Random, data: bytes, change: Change) -> bytes:
    """Change the footer, and keep its length right."""
    length = int.from_bytes(data[-8:-4], "little")
    begin = len(data) - 8 - length
    footer = data[begin:-8]
    at = footer.find(b'{"schema"')
    if at > 0 and rng.random() < 0.7:
        # JSON behind its length, a varint of two or three bytes.
        for width in (3, 2, 1):
            size, after = _varint(footer, at - width)
            if after == at:
                break
        text = _json(rng, footer[at : at + size], change)
        footer = footer[: at - width] + _written(len(text)) + text + footer[at + size :]
    else:
        footer = change(footer)
    return data[:begin] + footer + len(footer).to_bytes(4, "little") + b"PAR1"


_FORMATS: tuple[
    tuple[Callable[[bytes], bool], Callable[[random.Random, bytes, Change], bytes]], ...
]
_FORMATS = (
    (lambda data: data.startswith(b"PK\x03\x04"), _zip),
    (_is_safetensors, _safetensors),
    (lambda data: data.startswith((b"{", b"[")), _json),
    (lambda data: data.startswith(b"\x80"), _pickle),
    (lambda data: data.endswith(MAGIC), _table),
    (lambda data: data.startswith((b"\x08", b"\n")), _protobuf),
    (lambda data: data.startswith(b"\x1f\x8b"), _gzip),
    (lambda data: data.startswith(b"PAR1") and data.endswith(b"PAR1"), _parquet),
    (_is_text, _lines),
)
