"""Tensors of all of torch's kinds as plain ones: quantised, sparse, shared out, packed."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from planescope.files.errors import UsageError


def dtype_name(tensor: torch.Tensor, /) -> str:
    """Name of the type, as NumPy and ml_dtypes have it."""
    return str(tensor.dtype).removeprefix("torch.")


def is_plain(tensor: torch.Tensor, /) -> bool:
    """Tell dense tensors with values, on any device, from all others."""
    return (
        type(tensor) in (torch.Tensor, nn.Parameter)
        and tensor.layout is torch.strided
        and not (tensor.is_meta or tensor.is_quantized)
    )


def plain(name: str, tensor: torch.Tensor, /) -> torch.Tensor:
    """Make a tensor a plain one; what is shared out among processes is put together by all of them.

    Raises
    ------
    UsageError
        If it has no values, or torch cannot make it plain; the sentence has its name.
    """
    if is_plain(tensor):
        return tensor
    if is_drawn_nowhere(tensor):
        raise UsageError(f"{name} is on the meta device and has no values; load the weights first")
    try:
        with torch.no_grad():
            dense = _dense(tensor.detach())
    except Exception as exc:  # tensor classes of others raise what they like
        raise UsageError(
            f"{name} is a {_kind(tensor)}, whose values cannot be had "
            f"({type(exc).__name__}: {str(exc).partition(chr(10))[0]}); "
            "measure the network before it is made so"
        ) from exc
    if not is_plain(dense):
        raise UsageError(
            f"{name} is a {_kind(tensor)}, which has no plain values; "
            "measure the network before it is made so"
        )
    return dense


def is_drawn_nowhere(tensor: torch.Tensor, /) -> bool:
    """Return whether a tensor has no values: on the meta device, or a fake one."""
    from torch._subclasses.fake_tensor import FakeTensor

    return bool(tensor.is_meta or isinstance(tensor, FakeTensor))


def _dense(tensor: Any) -> torch.Tensor:
    """Return the values as torch gives them, one wrapping after the other."""
    while not is_plain(tensor):
        if hasattr(tensor, "full_tensor"):  # DTensor, of FSDP2 and tensor parallelism
            tensor = tensor.full_tensor()
        elif tensor.is_quantized:
            tensor = tensor.dequantize()
        elif tensor.layout is not torch.strided:  # sparse of all kinds, and mkldnn's
            tensor = tensor.to_dense()
        elif type(tensor).__torch_function__ is not torch.Tensor.__torch_function__ or hasattr(
            type(tensor), "__torch_dispatch__"
        ):
            tensor = _unpacked(tensor)
        else:
            tensor = tensor.as_subclass(torch.Tensor)
    result: torch.Tensor = tensor
    return result


def _unpacked(tensor: Any) -> Any:
    """Return the values of a tensor class of others': those that it computes with."""
    own = type(tensor)
    if own.dequantize is not torch.Tensor.dequantize or hasattr(own, "__torch_dispatch__"):
        for way in ("dequantize", "to_dense", "get_original_weight"):
            if hasattr(tensor, way):
                try:
                    made = getattr(tensor, way)()
                except Exception:  # noqa: S112 - another way may do
                    continue
                if type(made) is not own:
                    return made
    return tensor.as_subclass(torch.Tensor)


def _kind(tensor: torch.Tensor) -> str:
    if type(tensor) in (torch.Tensor, nn.Parameter):
        return f"tensor of layout {tensor.layout}"
    return type(tensor).__name__
