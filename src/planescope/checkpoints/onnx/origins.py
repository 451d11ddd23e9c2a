"""Modules that nodes of an ONNX graph were exported from, as names and annotations tell of them."""

from __future__ import annotations

import re
from collections.abc import Iterator

from planescope.checkpoints.onnx.constants.values import Constants
from planescope.checkpoints.onnx.nodes import Node
from planescope.networks.state import exclusions

# What torch's exporter writes beside each node: its modules by path and by class, the outermost
# first and the operation last; and that operation with the names of its parameters.
_SCOPES = "pkg.torch.onnx.name_scopes"
_CLASSES = "pkg.torch.onnx.class_hierarchy"
_OPERATION = "pkg.torch.onnx.fx_node"
_LISTED = re.compile(r"'([^']*)'")
_PARAMETER = re.compile(r"%p_(\w+)")
_OF_ATTENTION = re.compile(r"(^|_)(in|[qkv])_proj_weight$")
_MOST_PARTS = 64

_ADAPTED = "peft.tuners."
_RECURRENT = "torch.nn.modules.rnn."
_ATTENTION = "torch.nn.modules.activation.MultiheadAttention"
_BILINEAR = "torch.nn.modules.linear.Bilinear"
# Of Keras' layers in TensorFlow's names, which have the path of the operation in front.
_CELL = re.compile(r"/(lstm|gru|simple_rnn)_cell(_\d+)?(?=/)")


def module_of(node: Node) -> str:
    """Name the module that a node was exported from; "" where nothing tells."""
    scopes = _listed(node, _SCOPES)
    return scopes[-2] if len(scopes) > 1 else ""


def adapted_by(node: Node) -> str:
    """Name the module whose wrapper of peft's a node was exported from; "" where there is none."""
    scopes, classes = _listed(node, _SCOPES), _listed(node, _CLASSES)
    wrapped = (s for s, c in zip(scopes, classes, strict=False) if c.startswith(_ADAPTED))
    return next(wrapped, "")


def no_layer(constants: Constants, node: Node, parts: tuple[Node, ...]) -> tuple[str, str] | None:
    """Say of what module a product with a weight is a part, and why that is no linear layer.

    Parameters
    ----------
    parts : tuple of Node
        Nodes behind it that hold its bias.

    Returns
    -------
    tuple of str, or None
        Name of the module, "" where nothing tells it, and the reason. None where the product may
        be a layer.
    """
    module, classes = module_of(node), _listed(node, _CLASSES)[:-1]
    if any(name.startswith(_RECURRENT) for name in classes):
        return module, exclusions.RECURRENT_LAYER
    if _BILINEAR in classes:
        return module, exclusions.BILINEAR
    if _ATTENTION in classes and any(
        _OF_ATTENTION.search(name) for name in _PARAMETER.findall(node.annotation(_OPERATION))
    ):
        return module, exclusions.ATTENTION
    for name in _names(constants, (node, *parts)):
        if cell := _CELL.search(name):
            return name[: cell.end()].strip("/"), exclusions.RECURRENT_LAYER
        if reason := exclusions.of_part(name):
            return module or name.rpartition(".")[0], reason
    return None


def _names(constants: Constants, nodes: tuple[Node, ...]) -> Iterator[str]:
    """Yield the names of the constants that nodes read, and of what these are made of."""
    for node in nodes:
        for name in node.inputs:
            found = constants.of(name)
            if found is not None:
                yield from found.names


def _listed(node: Node, key: str) -> list[str]:
    return _LISTED.findall(node.annotation(key))[:_MOST_PARTS]
