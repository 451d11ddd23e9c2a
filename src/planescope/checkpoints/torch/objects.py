"""From the inert records of what torch pickled to a state dict.

Both layouts of a torch file hold a pickle of the saved object and, beside it, the storages of its
tensors. This module finds the state dict or module in the object; `tensors` knows tensors,
`modules` modules, and the layouts say where a storage lies.
"""

from __future__ import annotations

import re
from collections import deque
from dataclasses import replace
from typing import TYPE_CHECKING

from planescope.checkpoints.arrays.ndarrays import is_matrix
from planescope.checkpoints.probe import ZIP_MAGIC
from planescope.checkpoints.torch.modules import (
    Found,
    Names,
    class_of,
    entries,
    epsilon,
    is_module,
    of_own_class,
    place,
    quantised,
    walk,
)
from planescope.checkpoints.torch.tensors import (
    Storage,
    StorageId,
    Storages,
    called,
    read_tensor,
    rebuild,
    storage_id,
)
from planescope.files.errors import CheckpointError, UsageError
from planescope.files.pickles import Call
from planescope.hyperplanes.layer import Place, Skipped, StateDict, Tensor
from planescope.networks.state.parametrisations import NOT_TOLD, WEIGHT_OR_PARTS, untold_step

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

__all__ = ["Storage", "StorageId", "Storages", "holds_tensors", "state_dict", "storage_id"]

# Where people keep a state dict or a module, the likeliest first.
_ENTRIES = (
    *("model_state_dict", "state_dict", "model_state", "model", "net", "network", "module"),
    *("params", "params_ema", "ema", "model_ema", "ema_state_dict", "state_dict_ema", "ema_model"),
    *("student", "teacher", "weights"),
)
_OPTIMIZER = re.compile(r"optimi[sz]er|(?:^|_)optims?(?:_|$)", re.IGNORECASE)
_MAX_DEPTH = 4
_MAX_LISTED = 1024  # entries of a list that are looked into
_HOLDERS = (dict, Call, list, tuple)

_COMPILED = re.compile(r"(?:^|(?<=\.))_orig_mod\.")
_SHOWN = 5
_OF_NUMPY = "a NumPy array among tensors, which is not read; save it as a tensor"


def state_dict(value: object, storages: Storages, entry: str | None = None) -> StateDict:
    """Find the state dict or module in what a torch file holds.

    A dictionary or module at the top comes first, then what lies under a customary name
    (``model_state_dict``), then the dictionary with the most tensors; never an optimizer's state.
    The prefixes of `torch.nn.DataParallel` and `torch.compile` are taken off the names.

    Parameters
    ----------
    entry : str, optional
        Where in the file to look instead: keys with dots between, or the last of them. Of an entry
        that is no dictionary of its own the whole is given, for its names to be chosen from.

    Raises
    ------
    CheckpointError
        If there is no state dict, or a tensor of it does not fit its storage.
    UsageError
        If several lie under `entry`.
    """
    all_found = _find(value, storages.path)
    found = _named(all_found, entry, storages.path) if entry else None
    of_names = (each for each in all_found if each.has_names)
    found = found or min(of_names, key=_preference, default=None)
    if found is None and called(value).startswith("__torch__."):
        raise CheckpointError(
            f"{storages.path}: is a TorchScript module without tensors by name, as "
            "torch.jit.freeze and optimize_for_inference leave it; save the scripted module "
            "before these, or model.state_dict()"
        )
    if found is None:
        instead = _write_out(_held_files(value)) or "save model.state_dict() instead"
        raise CheckpointError(
            f"{storages.path}: holds {_outline(value)}, and no tensors by name; {instead}"
        )
    tensors = {name: read_tensor(raw, name, storages) for name, raw in found.tensors.items()}
    clean = _without_prefixes(tensors)
    places: dict[str, Place] = {}
    reasons: dict[str, str] = {}
    norm_eps: dict[str, float] = {}
    for at, module in found.modules:
        constants = {} if storages.constants is None else storages.constants(called(module))
        held = (tensors.get(f"{at}{part}") for part in WEIGHT_OR_PARTS)
        # Of spectral norm `weight_v` is a vector.
        weight = next((one for one in held if one is not None and len(one.shape) > 1), None)
        told = place(module, weight, constants)
        name = clean(at)[:-1]
        if isinstance(told, Place):
            places[name] = told
        elif told is not None:
            reasons[name or "weight"] = told
        elif (reason := quantised(module)) is not None and not _is_unpacked(at, tensors):
            reasons[name] = reason
        if (untold := untold_step(at[:-1], class_of(module))) is not None:
            layer, attribute = untold
            reasons[clean(layer)] = NOT_TOLD.format(f"its {attribute}")
        if (eps := epsilon(module, constants)) is not None:
            norm_eps[name] = eps
    reasons |= {clean(name): why for name, why in _of_own_classes(found, tensors).items()}
    return StateDict(
        tensors={clean(name): tensor for name, tensor in tensors.items()},
        places=places,
        entry=".".join(found.path),
        notes=(*_others(all_found, found), *filter(None, [_write_out(_held_files(value))])),
        skipped=_left_out(found.unread),
        reasons=reasons,
        norm_eps=norm_eps,
    )


def _left_out(unread: Mapping[str, str]) -> tuple[Skipped, ...]:
    """List what cannot be read, but for the bias of what is listed."""
    return tuple(
        Skipped(name=_layer_of(name), reason=reason)
        for name, reason in unread.items()
        if f"{name.removesuffix('bias')}weight" not in unread
    )


def _of_own_classes(found: Found, tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Say why parameters are no layers where none has the name of a layer's weight.

    Names alone would make layers of them; a class that is not torch's may do anything with them.
    """
    owners = dict(found.modules)
    if any(n.rpartition(".")[2] == "weight" and len(t.shape) > 1 for n, t in tensors.items()):
        return {}
    held = {
        name: owners.get(name[: name.rfind(".") + 1])
        for name, tensor in tensors.items()
        if len(tensor.shape) > 1
    }
    return {
        name: of_own_class(module)
        for name, module in held.items()
        if module is not None and not class_of(module).startswith("torch.")
    }


def holds_tensors(value: object, path: Path) -> bool:
    """Tell whether there is a state dict or module of torch's."""
    return any(each.has_names for each in _find(value, path))


def _is_unpacked(at: str, tensors: Mapping[str, Tensor]) -> bool:
    """Tell whether the weight of a quantised layer, or of one whose parts it holds, is there."""
    return f"{at.removesuffix('_packed_params.')}weight" in tensors


def _named(found: Sequence[Found], entry: str, path: Path) -> Found | None:
    """Find what lies under the name that a user gives."""
    wanted = tuple(entry.split("."))
    matches = [each for each in found if each.path == wanted] or [
        each for each in found if each.path[-len(wanted) :] == wanted
    ]
    if len(matches) > 1:
        places = ", ".join(".".join(each.path) for each in matches)
        raise UsageError(f"{path}: --entry {entry} stands for several, {places}; give one of them")
    return matches[0] if matches else None


def _others(all_found: Sequence[Found], chosen: Found) -> tuple[str, ...]:
    """Say what else the file holds that may be a network's."""
    names = [
        ".".join(each.path) or "the top of the file"
        for each in all_found
        if each is not chosen
        and (not each.tensors or any(_rank(call) > 1 for call in each.tensors.values()))
    ]
    if not names:
        return ()
    shown = ", ".join(repr(name) for name in names[:_SHOWN])
    rest = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return (
        f"the file also holds tensors at {shown}{rest}, which were not measured (--entry NAME)",
    )


def _rank(call: Call) -> int:
    match call.args:
        case (_, _, tuple(shape), *_):
            return len(shape)
    return 2


def _layer_of(name: str) -> str:
    return re.sub(r"(\.weight|\._packed_params(\._packed_params)?)$", "", name)


def _preference(found: Found) -> tuple[int, ...]:
    """Sort key: the least is taken."""
    if not found.tensors:
        return (3, -len(found.unread))
    held = len(found.tensors) + len(found.unread)
    if not found.path and (found.modules or held > found.others):
        return (0,)
    if found.path and found.path[-1] in _ENTRIES:
        return (1, len(found.path), _ENTRIES.index(found.path[-1]))
    return (2, -len(found.tensors))


def _find(value: object, path: Path) -> list[Found]:
    """Return all dictionaries and modules with tensors, but for those of optimizers."""
    found = []
    names = Names(path)
    seen: set[int] = set()
    queue: deque[tuple[tuple[str, ...], object]] = deque([((), value)])
    while queue:
        where, value = queue.popleft()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if is_module(value):
            found.append(walk(value, where, names))
            continue
        if isinstance(value, list | tuple):  # networks are kept in these too; tensors need a name
            if len(where) < _MAX_DEPTH:
                found.append(_of_list(where, value))
                queue.extend(
                    ((*where, str(at)), entry)
                    for at, entry in enumerate(value[:_MAX_LISTED])
                    if type(entry) in _HOLDERS and rebuild(entry) is None
                )
            continue
        held = {key: entry for key, entry in entries(value).items() if type(key) is str}
        if "param_groups" in held:  # an optimizer's state
            continue
        here = Found(where, {})
        others = {key: entry for key, entry in held.items() if not here.take(key, entry)}
        if here.tensors:
            here.unread.update(
                {key: _OF_NUMPY for key, entry in others.items() if is_matrix(entry)}
            )
        found.append(replace(here, others=len(others)))
        if len(where) < _MAX_DEPTH:
            queue.extend(
                ((*where, key), entry)
                for key, entry in others.items()
                if type(entry) in _HOLDERS and not _OPTIMIZER.search(key)
            )
    return [each for each in found if each.tensors or each.unread]


def _of_list(where: tuple[str, ...], values: Sequence[object]) -> Found:
    """Return the tensors of a list, which have no names: they are read where a user asks for them.

    Pictures and histories are kept in lists too.
    """
    made = {str(at): rebuild(entry) for at, entry in enumerate(values[:_MAX_LISTED])}
    tensors = {name: call for name, call in made.items() if call is not None}
    is_any = any(_rank(call) > 1 for call in tensors.values())
    return Found(where, tensors if is_any else {}, has_names=False)


def _held_files(value: object) -> list[str]:
    """Keys at the top under which the bytes of another file lie, as those of TorchScript."""
    held = entries(value).items() if type(value) is dict else ()
    return [key for key, each in held if type(key) is str and _is_file(each)]


def _is_file(value: object) -> bool:
    """Tell bytes, as they are or in a stream, that begin as an archive of torch's does."""
    if called(value) == "_io.BytesIO" and type(value) is Call:
        value = value.state
        value = value[0] if type(value) is tuple and value else None
    if called(value) == "_codecs.encode" and type(value) is Call:
        value = next(iter(value.args), None) if type(value.args) is tuple else None
    begin = value[:4] if isinstance(value, bytes | str) else b""
    return begin in (ZIP_MAGIC, ZIP_MAGIC.decode("latin-1"))


def _write_out(keys: Sequence[str]) -> str:
    if not keys:
        return ""
    shown = ", ".join(repr(key[:40]) for key in keys[:_SHOWN])
    return f"another file lies within it at {shown}: write its bytes into a file and measure that"


def _without_prefixes(names: Iterable[str]) -> Callable[[str], str]:
    """Take off what `torch.compile` (anywhere) and `DataParallel` (on all names) put before names.

    Names stay as they are where two of them would become one.
    """
    names = list(names)
    parallel = all(_COMPILED.sub("", name).startswith("module.") for name in names)

    def clean(name: str) -> str:
        return _COMPILED.sub("", name).removeprefix("module." if parallel else "")

    return clean if len({clean(name) for name in names}) == len(names) else str


def _outline(value: object) -> str:
    """Say in a few words what a file without a state dict holds."""
    if rebuild(value):
        return "a single tensor"
    if type(value) is dict:
        keys = [repr(key[:40]) for key in value if type(key) is str]
        return "a dictionary of " + (", ".join(keys[:5]) or "nothing that has a name")
    if type(value) is Call:
        return f"an object of {called(value)[:100] or 'no known class'}"
    return f"a {type(value).__name__}"
