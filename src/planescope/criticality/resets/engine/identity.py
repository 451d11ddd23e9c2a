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


class _DoubtError(Exception):
    """Something of which nobody can tell whether it is the same."""


def code_digest(module: nn.Module, graph: fx.Graph | None, /) -> str:
    """Return the digest of all that decides what a network computes, but for its weights.

    The graph of its forward where there is one, the classes of its modules, the files that define
    those that are not torch's, and their plain attributes. Where something cannot be told, as a
    class that was typed in, or an object of somebody's own, the digest is one that never comes
    again.

    Parameters
    ----------
    module : torch.nn.Module
    graph : torch.fx.Graph or None
        Of its forward.
    """
    digest = hashlib.sha256(f"{torch.__version__}\n{graph}\n".encode())
    try:
        for part in _parts(module):
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
        return hashlib.sha256(_told(value).encode(errors="surrogatepass")).hexdigest()
    except (_DoubtError, RecursionError):
        return uuid.uuid4().hex


def _parts(module: nn.Module) -> Iterator[str]:
    files: set[str] = set()
    for name, part in module.named_modules():
        kind = type(part)
        yield f"{name} {kind.__module__}.{kind.__qualname__}"
        files.update(base.__module__ for base in kind.__mro__ if not _is_known(base.__module__))
        for attribute, value in sorted(vars(part).items()):
            if attribute not in _OF_MODULES:
                yield f"{attribute}={_told(value)}"
    yield from _sources(files)


def _is_known(name: str) -> bool:
    """Return whether a module's code changes with the version of torch, or of Python, alone."""
    return name.partition(".")[0] in ("torch", "builtins", "abc", "typing", "collections")


def _sources(names: Iterable[str]) -> Iterator[str]:
    for name in sorted(names):
        try:
            yield inspect.getsource(sys.modules[name])
        except (KeyError, OSError, TypeError) as exc:
            raise _DoubtError from exc


def _told(value: Any) -> str:
    """Return a value as text that is the same for equal values alone."""
    if value is None or isinstance(value, (bool, int, float, complex, str, bytes)):
        return repr(value)
    if isinstance(value, (torch.dtype, torch.device, torch.Size)):
        return str(value)
    if isinstance(value, torch.Tensor):
        held = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        return f"{value.dtype}{tuple(value.shape)}{hashlib.sha256(held).hexdigest()}"
    if isinstance(value, (list, tuple)):
        return f"{type(value).__name__}({','.join(map(_told, value))})"
    if isinstance(value, (set, frozenset)):
        return f"{type(value).__name__}({','.join(sorted(map(_told, value)))})"
    if isinstance(value, Mapping):
        return f"{{{','.join(f'{_told(k)}:{_told(v)}' for k, v in value.items())}}}"
    if isinstance(value, type):
        return f"{value.__module__}.{value.__qualname__}"
    if isinstance(value, types.FunctionType):
        return _function(value)
    if isinstance(value, types.BuiltinFunctionType):
        return f"{value.__module__}.{value.__qualname__}"
    raise _DoubtError


def _function(function: types.FunctionType) -> str:
    if _is_known(function.__module__):
        return f"{function.__module__}.{function.__qualname__}"
    held = [cell.cell_contents for cell in function.__closure__ or ()]
    return f"{_code(function.__code__)}{_told(held)}{_told(function.__defaults__)}"


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
