"""A digest of what a network computes: finished work is taken up only by the same network."""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import sys
import types
import uuid
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import fx, nn

from planescope.criticality.resets.targets import digest_of
from planescope.data.load import Images
from planescope.files.results.versions import version
from planescope.networks.graph.trace import trace_graph

if TYPE_CHECKING:
    from planescope.criticality.options import ResetOptions
    from planescope.criticality.resets.engine.answers import Judge
    from planescope.criticality.resets.engine.feed import Feed
    from planescope.criticality.resets.trained import Subject
    from planescope.data.load import Files

# What every module has, or what does not take part in evaluation.
_OF_MODULES = frozenset((*vars(nn.Module()), "training"))
# What every class has, and says nothing of what it does.
_OF_CLASSES = frozenset(
    ("__module__", "__qualname__", "__doc__", "__dict__", "__weakref__", "__annotations__",
     "__parameters__", "__orig_bases__", "__abstractmethods__", "_abc_impl", "__firstlineno__",
     "__static_attributes__", "__slots__")
)  # fmt: skip


class _DoubtError(Exception):
    """Something of which nobody can tell whether it is the same."""


def code_digest(module: nn.Module, graph: fx.Graph | None, /) -> str:
    """Return the digest of all that decides what a network computes, but for its weights.

    The graph of its forward where there is one, the classes of its modules, the files that define
    those that are not torch's, and their plain attributes. Where there is no graph also what their
    code takes from around it, as it is now: constants, functions and classes of modules of the
    user's own. Where something cannot be told, as a class that was typed in, or an object of
    somebody's own, the digest is one that never comes again.

    Parameters
    ----------
    module : torch.nn.Module
    graph : torch.fx.Graph or None
        Of its forward.
    """
    digest = hashlib.sha256(f"{torch.__version__}\n{graph}\n".encode())
    try:
        for part in _parts(module, is_traced=graph is not None):
            digest.update(part.encode(errors="surrogatepass"))
            digest.update(b"\0")
    except (_DoubtError, RecursionError):
        digest.update(uuid.uuid4().bytes)
    return digest.hexdigest()


def value_digest(value: Any, /) -> str:
    """Return the digest of a function or another value.

    One that never comes again where that is in doubt.
    """
    try:
        return hashlib.sha256(_told(value, set()).encode(errors="surrogatepass")).hexdigest()
    except (_DoubtError, RecursionError):
        return uuid.uuid4().hex


def _parts(module: nn.Module, *, is_traced: bool) -> Iterator[str]:
    files: set[str] = set()
    seen: set[int] = set()
    for name, part in module.named_modules():
        kind = type(part)
        yield f"{name} {kind.__module__}.{kind.__qualname__}"
        own = [base for base in kind.__mro__ if not _is_known(base.__module__)]
        files.update(base.__module__ for base in own)
        for attribute, value in sorted(vars(part).items()):
            if attribute not in _OF_MODULES:
                yield f"{attribute}={_told(value, seen)}"
        # What its graph does not show stands in its classes, which may have been changed since.
        for base in own if not is_traced else ():
            if _is_own(base.__module__):
                yield _class(base, seen)
    yield from _sources(files)


def _is_known(name: str | None) -> bool:
    """Return whether a module's code changes with the version of torch, or of Python, alone."""
    return (name or "").partition(".")[0] in ("torch", "builtins", "abc", "typing", "collections")


def _is_own(name: str) -> bool:
    """Return whether a module is a user's own: neither installed nor of Python."""
    file = getattr(sys.modules.get(name), "__file__", None) or ""
    return name not in sys.stdlib_module_names and "site-packages" not in Path(file).parts


def _sources(names: Iterable[str]) -> Iterator[str]:
    for name in sorted(names):
        try:
            yield inspect.getsource(sys.modules[name])
        except (KeyError, OSError, TypeError) as exc:
            raise _DoubtError from exc


def _told(value: Any, seen: set[int]) -> str:
    """Return a value as text that is the same for equal values alone."""
    if value is None or isinstance(value, (bool, int, float, complex, str, bytes)):
        return repr(value)
    if isinstance(value, (torch.dtype, torch.device, torch.Size)):
        return str(value)
    if isinstance(value, torch.Tensor):
        held = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        return f"{value.dtype}{tuple(value.shape)}{hashlib.sha256(held).hexdigest()}"
    if isinstance(value, (list, tuple)):
        return f"{type(value).__name__}({','.join(_told(each, seen) for each in value)})"
    if isinstance(value, (set, frozenset)):
        return f"{type(value).__name__}({','.join(sorted(_told(each, seen) for each in value))})"
    if isinstance(value, Mapping):
        pairs = (f"{_told(key, seen)}:{_told(held, seen)}" for key, held in value.items())
        return f"{{{','.join(pairs)}}}"
    if isinstance(value, type):
        return f"{value.__module__}.{value.__qualname__}"
    if isinstance(value, types.FunctionType):
        return _function(value, seen)
    if isinstance(value, types.BuiltinFunctionType):
        return f"{value.__module__}.{value.__qualname__}"
    raise _DoubtError


def _class(kind: type, seen: set[int]) -> str:
    """Return what a class holds itself: its functions as they are now, and its values."""
    if id(kind) in seen:
        return kind.__qualname__
    seen.add(id(kind))
    told = []
    for name, value in sorted(vars(kind).items()):
        if name in _OF_CLASSES:
            continue
        if isinstance(value, (staticmethod, classmethod)):
            value = value.__func__
        elif isinstance(value, property):
            value = (value.fget, value.fset)
        told.append(f"{name}={_told(value, seen)}")
    return f"{kind.__qualname__}({','.join(told)})"


def _function(function: types.FunctionType, seen: set[int]) -> str:
    """Return the code of a function, and all that it takes from around it."""
    name = f"{function.__module__}.{function.__qualname__}"
    if _is_known(function.__module__) or id(function) in seen:
        return name
    seen.add(id(function))
    cells = [cell.cell_contents for cell in function.__closure__ or ()]
    held = [
        _outer(function.__globals__[each], seen)
        for each in sorted(_names(function.__code__))
        if each in function.__globals__
    ]
    told = _told([cells, function.__defaults__, function.__kwdefaults__], seen)
    return f"{_code(function.__code__)}{told}{held}"


def _outer(value: Any, seen: set[int]) -> str:
    """Return what a function takes from its module: of modules and classes, what they are now."""
    if isinstance(value, types.ModuleType):
        name = value.__name__
        if _is_known(name) or not _is_own(name) or id(value) in seen:
            return f"{name} {getattr(value, '__version__', '')}"
        seen.add(id(value))
        held = vars(value).items()
        plain = {k: v for k, v in held if not k.startswith("__") and _is_plain(v, name)}
        return _told(plain, seen)
    if isinstance(value, type) and _is_own(value.__module__):
        return _class(value, seen)
    return _told(value, seen)


def _is_plain(value: Any, module: str) -> bool:
    """Return whether it is of a module itself: one of its functions, or a plain value."""
    kinds = (bool, int, float, complex, str, bytes, torch.Tensor, list, tuple, dict)
    is_function = isinstance(value, types.FunctionType) and value.__module__ == module
    return is_function or isinstance(value, kinds)


def _names(code: types.CodeType) -> set[str]:
    """Return the names that a code takes from outside, and those of codes within it."""
    within = (each for each in code.co_consts if isinstance(each, types.CodeType))
    return set(code.co_names).union(*map(_names, within))


def _code(code: types.CodeType) -> str:
    constants = [_code(c) if isinstance(c, types.CodeType) else repr(c) for c in code.co_consts]
    return f"{code.co_code.hex()} {code.co_names} {constants}"


def protocol_digest(
    subject: Subject, data: Images | Files, judge: Judge, options: ResetOptions, feed: Feed
) -> str:
    """Return the digest of what decides what a tally must be, but for the cell's own weights."""
    if subject.keep is None:
        return ""
    examples = (
        digest_of({"images": data.images, "labels": data.labels, str(data.resize): None})
        if isinstance(data, Images)
        else digest_of({"labels": data.labels, **dict.fromkeys(map(_as_it_is, data.paths))})
    )
    try:
        graph, _ = trace_graph(subject.module)
    except Exception:  # forward is anybody's code, and does anything when it is given symbols
        graph = None
    settled = [
        version(), code_digest(subject.module, graph), value_digest((judge.metric, judge.pick)),
        subject.network, digest_of(subject.module.state_dict()), examples, data.mean, data.std,
        options.with_norm, options.devices, options.precision, options.tolerance, feed.batch,
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(settled).encode()).hexdigest()


def _as_it_is(path: str | os.PathLike[str]) -> str:
    """Return a file with what changes when it is written."""
    about = Path(path).stat()
    return f"{os.fspath(path)} {about.st_size} {about.st_mtime_ns}"
