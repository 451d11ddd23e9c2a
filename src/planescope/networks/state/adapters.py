"""Adapters (LoRA and its kin) that are not merged: the layers that they change, and their parts."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence

from planescope.hyperplanes.layer import Layer
from planescope.networks.state.exclusions import INACTIVE, split

_PARTS = (
    re.compile(
        r"(^|[._/])(lora_(A|B|down|up|embedding_[AB]|magnitude_vector|layer|mid)\b|hada_w\d|"
        r"lokr_w\d|b?oft_[A-Za-z]+|vera_(lambda_\w+|[AB])|ia3_l|dora_scale)"
    ),
    # As kohya's trainer and LyCORIS write them: the path of the module in one word.
    re.compile(r"^(?P<module>(lora|lycoris)_[^./]+)[./]"),
    re.compile(r"(^|[._/])lora\d*[._]"),
)
# Any of what begins a part of an adapter, to tell at once that a name has none.
_HINT = re.compile("lora|lycoris_|hada_w|lokr_w|oft_|vera_|ia3_l|dora_scale|[.]base_layer[.]")
# The layer that peft wraps, and what else stands in the wrapper under the name of an adapter.
_BASE = ".base_layer"
_WRAPPED = f"{_BASE}.weight"
_IN_WRAPPER = re.compile(r"(?P<module>.+)\.[^.]+\.(?!(weight|bias|running_\w+|num_\w+)$)[^.]+$")
# In front of every name of a PeftModel; what stands beside the model is shared by the wrappers.
_PEFT = "base_model.model."
_SHARED = re.compile(r"base_model\.(?!model\.)\w+\..+")
# What peft's ways of adapting have in front of the names of their parts.
_WAYS = re.compile(
    r"(adamss|beft|boft|bone|c3a|deft|delora|fourierft|frod|glora|gralora|hada|hira|hra|ia3|lily|"
    r"ln_tuning|lokr|lora|miss|oft|osf|peanut|poly|psoft|pvera|randlora|road|shadow|shira|"
    r"supertuning|tinylora|trainable_tokens|unilora|vblora|vera|waveft)_"
)
# The part of an adapter that was saved alone, without the adapter's name.
_ALONE = re.compile(rf"{_WAYS.pattern}(\w+|[A-Z0-9]\w{{0,2}}\.weight)")
# Beside this one stand the halves of a ControlNet's changes, as up and down.
_HALVES, _HALF = "lora_controlnet", re.compile(r"(?P<module>.+)\.(up|down)")
_COPIES = re.compile(
    r"(?P<module>.*)\.(original_module|modules_to_save\.(?P<copy>[^.]+))(\..*)?", re.DOTALL
)

ADAPTED = "an adapter (LoRA or its kin) that is not merged changes its weight; merge it first"
OF_ADAPTER = "a part of an adapter (LoRA or its kin) beside {}, whose weight it changes"
OF_SHARED = "a part of an adapter (LoRA or its kin), shared by the layers that it changes"
ADAPTER_ALONE = "an adapter (LoRA or its kin) without the weight that it changes; merge it first"


def adapted(names: Iterable[str], /) -> tuple[dict[str, str], list[str]]:
    """Return the tensors of adapters, each with the module that it changes.

    Returns
    -------
    parts : dict of str to str
        Module by the name of the tensor; "" where several modules share it.
    modules : list of str
        All modules that are changed.
    """
    parts = {}
    held = list(names)
    for name in filter(_HINT.search, held):
        match = next((m for p in _PARTS if (m := p.search(name)) is not None), None)
        if match is not None and name != _HALVES:
            own = match.groupdict().get("module")
            module = own or name[: match.start()].removesuffix(_BASE)
            parts[name] = module.replace(".processor.", ".")  # of diffusers' attention
    parts |= _of_wrappers(held) or _alone(held)
    return parts, [module for module in dict.fromkeys(parts.values()) if module or not _any(held)]


def _alone(names: Collection[str]) -> dict[str, str]:
    """Return parts of adapters that nothing stands beside of what they change."""
    found: dict[str, str] = {}
    for name in names:
        if name.startswith(_PEFT):
            pieces = name.split(".")
            part = ".".join(pieces[-2:] if pieces[-1] == "weight" else pieces[-1:])
            if _ALONE.fullmatch(part):
                found[name] = name.removesuffix(f".{part}")
        elif _HALVES in names and (match := _HALF.fullmatch(name)):
            found[name] = match["module"]
    return found


def _any(names: Iterable[str]) -> bool:
    """Tell whether a layer stands in a wrapper of peft's."""
    return any(name.endswith(_WRAPPED) for name in names)


def _of_wrappers(names: Collection[str]) -> dict[str, str]:
    """Return what stands beside a layer in the wrapper that peft puts round it, whatever its way.

    Its parts are called PART.ADAPTER there, and never weight or bias.
    """
    wrappers = {name.removesuffix(_WRAPPED) for name in names if name.endswith(_WRAPPED)}
    if not wrappers:
        return {}
    outside = [name for name in names if f"{_BASE}." not in name]
    found = ((name, _IN_WRAPPER.fullmatch(name)) for name in outside)
    parts = {
        name: match["module"]
        for name, match in found
        if match is not None and match["module"] in wrappers
    }
    if any(name.startswith(_PEFT) for name in names):
        parts |= {name: "" for name in outside if _SHARED.fullmatch(name)}
    return parts | _modules_in(wrappers, outside)


def _modules_in(wrappers: Collection[str], names: Iterable[str]) -> dict[str, str]:
    """Return the tensors of modules that stand in a wrapper, as PART.ADAPTER.TENSOR.

    A network may call a layer `base_layer` too: each part in a wrapper of peft's has the same
    adapters, and these are no numbers.
    """
    beneath: defaultdict[str, list[tuple[str, list[str]]]] = defaultdict(list)
    for name in names:
        pieces = name.split(".")
        for end in range(1, len(pieces)):
            if (module := ".".join(pieces[:end])) in wrappers:
                beneath[module].append((name, pieces[end:]))
                break
    found: dict[str, str] = {}
    for module, held in beneath.items():
        adapters: defaultdict[str, set[str]] = defaultdict(set)
        for _, (part, *rest) in held:
            adapters[part].add(rest[0] if rest else "")
        first, *others = adapters.values()
        is_even = all(each == first for each in others)
        known = module.startswith(_PEFT) or first == {"default"} or all(map(_WAYS.match, adapters))
        if (
            is_even
            and known
            and not any(x.isdecimal() or x in ("", "weight", "bias") for x in first)
        ):
            found |= {name: module for name, _ in held}
    return found


def of_adapters(changed: Iterable[str], modules: Iterable[str], /) -> dict[str, str]:
    """Say why modules that adapters lie in are no layers, or in a wrapper those at their side.

    Parameters
    ----------
    changed : iterable of str
        Modules that parts of adapters lie in.
    modules : iterable of str
        Modules that have a weight.
    """
    held = list(modules)
    below: defaultdict[str, list[str]] = defaultdict(list)
    for module in held:
        below[split(module)[0]].append(module)
    known = set(held)
    reasons: dict[str, str] = {}
    for name in changed:
        layers = [name] if name in known else below[name]
        reasons |= dict.fromkeys(layers, ADAPTED) if layers else {name or "lora": ADAPTER_ALONE}
    return reasons


def of_copies(modules: Iterable[str], /) -> dict[str, str]:
    """Say which modules do not act where peft keeps whole copies of a module beside it.

    Of several copies the first is measured.
    """
    held = [(name, match) for name in modules if (match := _COPIES.fullmatch(name))]
    first: dict[str, str] = {}
    for _, match in held:
        if match["copy"] is not None:
            first.setdefault(match["module"], match["copy"])
    reasons = {}
    for name, match in held:
        acts = first.get(match["module"])
        if acts is None or acts == match["copy"]:
            continue
        reasons[name] = (
            INACTIVE if match["copy"] is None
            else f"another copy of it, {acts}, is measured; which of them acts is not told"
        )  # fmt: skip
    return reasons


def of_adapted(
    layers: Sequence[Layer], read: Iterable[str], beside: Iterable[str] = (), /
) -> dict[str, str]:
    """Say which layers of a graph an adapter changes, and which are parts of one.

    Not every exporter keeps the names of the parts: in peft's wrapper a layer without a bias that
    has the inputs or the filters of the layer that is wrapped is one. A layer whose weight has
    kept its own name is none: networks call a layer `base_layer` too.

    Parameters
    ----------
    read : iterable of str
        Names of the stored tensors that the graph reads.
    beside : iterable of str
        Modules in which values without a name are joined to what runs.
    """
    known = {layer.name: layer for layer in layers}
    named = dict.fromkeys(sorted(read))
    met = (name for name in known if f"{name}{_BASE}" not in known)
    parts, changed = adapted([*named, *(f"{name}.weight" for name in met)])
    found = {
        name: module
        for part, module in parts.items()
        for name in (part, part.removesuffix(".weight"), split(part)[0])
        if name in known and name != module and not name.endswith(_BASE)
    }
    is_peft = any(name.startswith(_PEFT) for name in named)
    scopes = list(beside)
    for wrapper, base in known.items():
        module = wrapper.removesuffix(_BASE)
        if module == wrapper:
            continue
        ends = _endings(module)
        for name, layer in known.items():
            fits = layer.weight.shape[:1] == base.weight.shape[:1] or (
                layer.weight.shape[1:] == base.weight.shape[1:]
            )
            is_nameless = name != wrapper and f"{name}.weight" not in named
            if is_nameless and _inside(name, ends) and (is_peft or (layer.bias is None and fits)):
                found.setdefault(name, module)
        if any(scope in ends or (is_peft and _inside(scope, ends)) for scope in scopes):
            changed.append(module)
    reasons = {n: OF_ADAPTER.format(m) if m else OF_SHARED for n, m in found.items()}
    for module in dict.fromkeys((*found.values(), *changed)):
        for name in (module, f"{module}{_BASE}"):
            if name in known and name not in found:
                reasons[name] = ADAPTED
    return reasons


def _inside(name: str, ends: Iterable[str]) -> bool:
    """Tell whether a name is a module's or of something within it, the layer it wraps excepted."""
    return any(
        name == end or (name.startswith((f"{end}.", f"{end}_")) and name != f"{end}{_BASE}")
        for end in ends
    )


def _endings(module: str) -> list[str]:
    """Return a name, and what is left of it where an exporter forgot its first parts."""
    parts = module.split(".")
    return [".".join(parts[at:]) for at in range(max(1, len(parts) - 1))]
