"""Layers whose weight is packed, and given on request."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from planescope.hyperplanes.layer import Kind, Place, kind_of_convolution
from planescope.networks.live.affine import Leaf
from planescope.networks.live.entries import Survey, full_name
from planescope.networks.live.mapping import named_tensor
from planescope.networks.live.plain import plain

if TYPE_CHECKING:
    import torch
    from torch import nn


def is_quantised(module: nn.Module) -> bool:
    """Tell whether a class of torch's gives its weight on request."""
    return any(
        callable(vars(base).get(part))
        for base in type(module).__mro__
        for part in ("weight", "_weight_bias")
        if base.__module__.startswith("torch.")
    )


def enter_quantised(found: Survey, name: str, module: Any) -> str:
    """Enter a layer whose weight is packed, and given on request."""
    kind = type(module).__name__

    def parts() -> tuple[torch.Tensor, torch.Tensor | None]:
        if hasattr(module, "_weight_bias"):
            weight, bias = module._weight_bias()
        else:
            weight, bias = module.weight(), module.bias()
        return weight, bias

    if "Linear" not in kind and "Conv" not in kind:
        found.leave_out(name, f"a quantised {kind}: no layer of hyperplanes")
        return name
    try:
        weight, bias = parts()
        weight = plain(full_name(name, "weight"), weight)
    except Exception as exc:  # what engines raise when they cannot unpack
        found.leave_out(name, f"a quantised {kind}, whose weight torch does not give ({exc})")
        return name
    if "Linear" in kind:
        place = Place(kind=Kind.LINEAR, groups=1)
    else:
        is_turned = "ConvTranspose" in kind
        shown = Kind.TRANSPOSED if is_turned else kind_of_convolution(tuple(weight.shape[2:]))
        place = Place(kind=shown, groups=module.groups)
    tensors = [
        named_tensor(full_name(name, part), functools.partial(_part, parts, index))
        for index, part in enumerate(("weight", "bias" if bias is not None else ""))
        if part
    ]
    rectifies = "ReLU" in kind and "LeakyReLU" not in kind
    found.leaves[module] = Leaf(
        place=place, stride=getattr(module, "stride", 1), rectifies=rectifies
    )
    found.add(name, place, tensors[0], tensors[1] if len(tensors) > 1 else None)
    return name


def _part(parts: Callable[[], tuple[Any, Any]], index: int) -> torch.Tensor:
    part: torch.Tensor = parts()[index]
    return part.detach()
