"""A pickle is read as data: all of it comes out, and nothing in it runs."""

from __future__ import annotations

import contextlib
import pickle
import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planescope.files import pickles
from planescope.files.errors import CheckpointError
from planescope.files.pickles import Call, Global, Key, Persistent, machine

ANY_PROTOCOL = st.integers(0, pickle.HIGHEST_PROTOCOL)

keys = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False),
    st.text(),
    st.binary(),
    st.tuples(st.integers(), st.text()),
)
plain_data = st.recursive(
    keys | st.floats(width=64) | st.frozensets(keys) | st.sets(keys),
    lambda inside: (
        st.lists(inside) | st.tuples(inside, inside) | st.dictionaries(keys, inside, max_size=5)
    ),
    max_leaves=20,
)


def read(data: bytes) -> object:
    return pickles.read_pickle(data, where="a.pkl").value


def rebuilt(value: object) -> object:
    """Plain data again: keys unwrapped, and what old protocols write as calls of built-ins."""
    match value:
        case Key(inside):
            return rebuilt(inside)
        case Call(Global(name="encode"), args=(str(text), "latin1")):
            return text.encode("latin1")
        case Call(Global(name="bytes"), args=()):
            return b""
        case Call(Global(name="set"), args=([*elements],)):
            return set(map(rebuilt, elements))
        case Call(Global(name="frozenset"), args=([*elements],)):
            return frozenset(map(rebuilt, elements))
        case list() | tuple() | set() | frozenset():
            return type(value)(map(rebuilt, value))
        case dict():
            return {rebuilt(key): rebuilt(entry) for key, entry in value.items()}
    return value


def as_text(value: object) -> str:
    """As text: NaN is not equal to itself, and 1 is equal to True. Sets have no order."""
    match value:
        case list() | tuple():
            return f"{type(value).__name__}({', '.join(map(as_text, value))})"
        case set() | frozenset():
            return f"{type(value).__name__}({', '.join(sorted(map(as_text, value)))})"
        case dict():
            return f"dict({', '.join(f'{as_text(k)}: {as_text(v)}' for k, v in value.items())})"
    return repr(value)


@given(plain_data, ANY_PROTOCOL)
def test_plain_data_comes_back_from_every_protocol(data, protocol):
    assert as_text(rebuilt(read(pickle.dumps(data, protocol)))) == as_text(data)


@pytest.mark.parametrize(
    ("stream", "value"),
    [
        pytest.param(b"I-7\n.", -7, id="decimal-line"),
        pytest.param(b"I01\n.", True, id="boolean-of-protocol-0"),
        pytest.param(b"L-70L\n.", -70, id="decimal-long"),
        pytest.param(b"J\xff\xff\xff\xff.", -1, id="signed-four-bytes"),
        pytest.param(b"\x8b\x02\0\0\0\x00\xff.", -256, id="long-with-a-length-of-four-bytes"),
        pytest.param(b"S'it\\'s \\x41\\n'\n.", "it's A\n", id="quoted-string-of-python-2"),
        pytest.param(b"U\x02ab.", "ab", id="short-string-of-python-2"),
        pytest.param(b"T\x01\0\0\0\xff.", "\\xff", id="bytes-of-python-2-as-escapes"),
        pytest.param(b"Vx\\u00e9\n.", "x\u00e9", id="unicode-line"),
        pytest.param(b"X\x03\0\0\0\xed\xa0\x80.", r"\xed\xa0\x80", id="surrogate-as-escapes"),
        pytest.param(b"\x96\x01\0\0\0\0\0\0\0a.", b"a", id="bytearray"),
        pytest.param(b"]2a0](K\x01K\x02e.", [1, 2], id="dup-and-pop"),
        pytest.param(b"K\x01(K\x021.", 1, id="pop-to-mark"),
        pytest.param(b"K\x01(0.", 1, id="pop-of-a-mark"),
        pytest.param(b"(K\x01l(K\x01t\x86.", ([1], (1,)), id="lists-and-tuples-from-a-mark"),
        pytest.param(b"(VA\nK\x01d.", {"A": 1}, id="dict-from-a-mark"),
        pytest.param(b"\x80\x07\x95\0\0\0\0\0\0\0\x09N.", None, id="unknown-protocol-and-frame"),
        pytest.param(b"Np5\n0g5\n.", None, id="memo-by-line"),
        pytest.param(b"Nr\0\x01\0\x000j\0\x01\0\0.", None, id="memo-by-four-bytes"),
        pytest.param(b"C\x01a\x98.", b"a", id="read-only-buffer"),
    ],
)
def test_an_instruction_that_python_3_does_not_write_is_read(stream, value):
    assert read(stream) == value


def test_the_offset_behind_the_stream_is_told():
    data = b"junk" + pickle.dumps([1]) + pickle.dumps("two")
    first = pickles.read_pickle(data, 4, where="a.pkl")
    assert first.value == [1]
    assert pickles.read_pickle(data, first.end, where="a.pkl").value == "two"


def test_a_list_may_hold_itself():
    value: list[object] = []
    value.append(value)
    found = read(pickle.dumps(value))
    assert isinstance(found, list)
    assert found[0] is found


def test_persistent_objects_are_collected_in_order():
    found = pickles.read_pickle(b"Pone\n0K\x02Q.", where="a.pkl")
    assert [each.id for each in found.persistent] == ["one", 2]
    assert isinstance(found.value, Persistent)


def test_what_would_be_made_is_recorded():
    found = read(b"cshop\nMaker\nK\x01\x85R}VA\nK\x02sb(VB\nK\x03u](K\x04e\x86.")
    assert isinstance(found, tuple)
    call = found[0]
    assert (str(call.function), call.args) == ("shop.Maker", (1,))
    assert (call.state, call.items) == ({"A": 2}, {"B": 3})


class Armed:
    """Makes a folder whenever unpickling touches it."""

    def __new__(cls, path: str | None = None, **_: object) -> Armed:
        self = super().__new__(cls)
        return self.fire(path) if path else self

    def fire(self, path: str) -> Armed:
        Path(path).mkdir()
        return self

    __setstate__ = append = add = fire

    def extend(self, paths: list[str]) -> None:
        self.fire(*paths)

    def __setitem__(self, key: str, path: str) -> None:
        self.fire(path)


ARMED = f"c{__name__}\nArmed\n".encode()


@pytest.mark.parametrize(
    "template",
    [
        pytest.param(b"cos\nmkdir\n(PATHtR.", id="reduce"),
        pytest.param(b"cos\nsystem\n(Vmkdir CANARY\ntR.", id="reduce-a-shell-command"),
        pytest.param(b"cbuiltins\neval\n(V__import__('os').mkdir('CANARY')\ntR.", id="eval"),
        pytest.param(b"(PATHios\nmkdir\n.", id="inst"),
        pytest.param(b"(cos\nmkdir\nPATHo.", id="obj"),
        pytest.param(b"Vos\nVmkdir\n\x93PATH\x85R.", id="stack-global"),
        pytest.param(ARMED + b"PATH\x85\x81.", id="newobj"),
        pytest.param(ARMED + b")}Vpath\nPATHs\x92.", id="newobj-with-keywords"),
        pytest.param(ARMED + b")\x81PATHb.", id="build-with-setstate"),
        pytest.param(ARMED + b")\x81PATHa.", id="append"),
        pytest.param(ARMED + b")\x81(PATHe.", id="appends"),
        pytest.param(ARMED + b")\x81VA\nPATHs.", id="setitem"),
        pytest.param(ARMED + b")\x81(PATH\x90.", id="additems"),
        pytest.param(b"cos\nmkdir\nPATH\x85RQ.", id="as-persistent-id"),
        pytest.param(b"}cos\nmkdir\nPATH\x85RNs.", id="as-dictionary-key"),
        pytest.param(b"cos\nmkdir\nPATH\x85R0N.", id="thrown-away"),
        pytest.param(b"(cos\nmkdir\nPATH\x85R1N.", id="thrown-away-with-its-mark"),
        pytest.param(b"cos\nmkdir\nPATH\x85Rcut off", id="damaged-behind-it"),
        pytest.param(
            b"cfunctools\npartial\n(cos\nmkdir\nPATHtR)R.", id="through-a-harmless-function"
        ),
    ],
)
def test_no_payload_runs(tmp_path, template):
    canary = tmp_path / "canary"
    path = canary.as_posix().encode()
    payload = b"\x80\x04" + template.replace(b"PATH", b"V" + path + b"\n").replace(b"CANARY", path)
    with contextlib.suppress(Exception):
        pickle.loads(payload)
    assert canary.exists(), "Python's own unpickler runs it, so the payload is live"
    canary.rmdir()
    with contextlib.suppress(CheckpointError):
        read(payload)
    assert not canary.exists()


@pytest.mark.parametrize(
    ("stream", "sentence"),
    [
        pytest.param(b"", "ends without a stop instruction", id="empty"),
        pytest.param(b"N", "ends without a stop instruction", id="no-stop"),
        pytest.param(b".", "takes from an empty stack", id="nothing-to-return"),
        pytest.param(b"K\x01a.", "takes from an empty stack", id="append-to-nothing"),
        pytest.param(b"(o.", "takes from an empty stack", id="object-without-class"),
        pytest.param(b"K\x01(\x85.", "takes from an empty stack", id="beyond-the-mark"),
        pytest.param(b"t.", "wants a mark that was never set", id="no-mark"),
        pytest.param(b"0.", "wants a mark that was never set", id="pop-of-nothing"),
        pytest.param(b"h\x07.", "recalls object 7, which it never", id="missing-memo"),
        pytest.param(b"\xff.", "unknown instruction 0xff", id="unknown-instruction"),
        pytest.param(b"K\x01K\x02a.", "appends to a int", id="append-to-a-number"),
        pytest.param(b"NVA\nNs.", "stores items in a NoneType", id="item-of-none"),
        pytest.param(b"}(VA\nu.", "key without a value", id="odd-items"),
        pytest.param(b"NNb.", "sets the state of a NoneType", id="state-of-none"),
        pytest.param(b"NN\x93.", "names a global by something other", id="global-of-none"),
        pytest.param(b"I12", "line without an end", id="endless-line"),
        pytest.param(b"Ione\n.", "number that cannot be read", id="text-for-a-number"),
        pytest.param(b"Fone\n.", "number that cannot be read", id="text-for-a-float"),
        pytest.param(b"I" + b"9" * 5000 + b"\n.", "number of 5000 digits", id="endless-number"),
        pytest.param(b"V\\u12\n.", "broken escape", id="broken-escape"),
        pytest.param(b"Sabc\n.", "string without quotes", id="no-quotes"),
        pytest.param(b"S'\n.", "string without quotes", id="half-a-quote"),
        pytest.param(b"X\x05\0\0\0abc.", "wants 5 bytes where 4 are left", id="short-text"),
        pytest.param(b"T\xff\xff\xff\xffa.", "wants 4294967295 bytes", id="negative-length"),
        pytest.param(b"\x8e" + b"\xff" * 8 + b".", "wants 18446744073709551615", id="bytes-bomb"),
        pytest.param(b"\x96" + b"\0" * 7 + b"\x7f.", "wants 9151314442816", id="bytearray-bomb"),
        pytest.param(b"\x8b\xff\xff\xff\x7f.", "integer of 2147483647 bytes", id="integer-bomb"),
        pytest.param(b"Nr\xff\xff\xff\xff.", "remembers object 4294967295", id="memo-bomb"),
        pytest.param(b"Np-9\n.", "remembers object -9", id="negative-memo"),
        pytest.param(b"\x82\x01.", "extension registry", id="extension-1"),
        pytest.param(b"\x83\x01\x01.", "extension registry", id="extension-2"),
        pytest.param(b"\x84\x01\x01\x01\x01.", "extension registry", id="extension-4"),
        pytest.param(b"\x97.", "buffers outside the file", id="out-of-band-buffer"),
    ],
)
def test_a_damaged_stream_is_refused_with_the_reason(stream, sentence):
    with pytest.raises(CheckpointError, match=f"^a.pkl: the pickle .*{sentence}"):
        read(stream)


def test_a_stream_of_too_many_instructions_is_refused(monkeypatch):
    monkeypatch.setattr(machine, "MAX_INSTRUCTIONS", 1000)
    with pytest.raises(CheckpointError, match="more than 1000 instructions"):
        read(b"]" * 1000 + b".")


def test_a_stream_is_read_as_far_as_a_pickle_may_reach(monkeypatch):
    monkeypatch.setattr(machine, "MAX_BYTES", 10)
    with pytest.raises(CheckpointError, match="wants 20 bytes where 8 are left"):
        read(b"U\x14" + b"a" * 20 + b".")


@pytest.mark.parametrize(
    "stream",
    [
        pytest.param(b"]" * 300_000 + b"a" * 299_999 + b".", id="lists"),
        pytest.param(b"N" + b"\x85" * 300_000 + b".", id="tuples"),
        pytest.param(b"}N" + b"\x85" * 300_000 + b"Ns.", id="tuples-as-a-key"),
        pytest.param(b"(N" + b"\x85" * 300_000 + b"\x91.", id="tuples-in-a-set"),
        pytest.param(b"ca\nb\n" + b")R" * 300_000 + b".", id="calls"),
        pytest.param(b"N" + b"Q" * 300_000 + b".", id="persistent-ids"),
    ],
)
def test_deep_nesting_is_read_and_let_go_without_recursion(stream):
    read(stream)


def test_numbers_as_keys_cannot_be_made_to_collide():
    # Multiples of 2^61 - 1 all hash to 0.
    colliding = b"".join(
        b"\x8a\x0a" + (n * (2**61 - 1)).to_bytes(10, "little") + b"N" for n in range(100_000)
    )
    found = read(b"}(" + colliding + b"u.")
    assert isinstance(found, dict)
    assert len(found) == 100_000


def test_shared_objects_are_not_multiplied():
    """Each of 60 lists holds the one before twice: 2^60 paths, 60 lists."""
    found = read(b"]" + b"".join(b"q%c0](h%ch%ce" % (n, n, n) for n in range(60)) + b".")
    assert isinstance(found, list)
    assert found[0] is found[1]


@settings(max_examples=300)
@given(st.binary(max_size=200))
def test_any_bytes_give_a_value_or_our_error(data):
    with contextlib.suppress(CheckpointError):
        read(data)


@settings(max_examples=300)
@given(plain_data, ANY_PROTOCOL, st.data())
def test_a_changed_pickle_gives_a_value_or_our_error(value, protocol, data):
    stream = bytearray(pickle.dumps((value, value, ValueError("x")), protocol))
    for _ in range(data.draw(st.integers(1, 4))):
        stream[data.draw(st.integers(0, len(stream) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(CheckpointError):
        read(bytes(stream))


@given(plain_data, ANY_PROTOCOL)
def test_a_pickle_that_is_cut_short_is_refused(value, protocol):
    stream = pickle.dumps([value, struct.pack("<d", 1.5)], protocol)
    for length in range(0, len(stream), max(len(stream) // 20, 1)):
        with pytest.raises(CheckpointError, match="is the download complete"):
            read(stream[:length])
