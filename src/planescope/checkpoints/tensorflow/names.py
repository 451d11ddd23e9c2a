"""Names of the modules that the operations of a TensorFlow graph stand for."""

from __future__ import annotations

import re

from planescope.checkpoints.tensorflow.operations import Operation

# The last part of a name that only tells the operation.
_WORDS = (
    "convolution", "conv1d", "conv2d_transpose", "conv3d_transpose", "depthwise",
    "separable_conv2d", "MatMul", "BiasAdd",
)  # fmt: skip
# As variables that hold weights are called.
_VARIABLE = re.compile(
    r"(?P<module>.+)/(((depthwise|pointwise)_)?(kernel|weights)|weight|W|w|filters?)(_\d+)?"
)
# Parts of a name that a call adds.
_CALL = re.compile(r"(Stateful)?PartitionedCall(_\d+)?")
# What converters append to the name of an operation for that of its weights.
_STORED = re.compile(r"(/(ReadVariableOp|Cast|merged_input)(_\d+)?(/.*)?|_(weights|merged_input))$")


def maker(value: str) -> str:
    """Name of the operation that gives a value."""
    return value.partition(":")[0]


def variable_module(root: str) -> str | None:
    """Name the module of a variable that holds weights, where its name tells."""
    match = _VARIABLE.fullmatch(root)
    return match["module"] if match else None


def readable(operation: Operation) -> str:
    """Name the module that an operation stands for; fused, it has the name of what came last."""
    name = operation.name
    if operation.op.startswith(("_Fused", "Fused")) and len(operation.inputs) > 1:
        name = _STORED.sub("", operation.inputs[1])
    return shortened(name, operation.op.lstrip("_").removeprefix("Fused"))


def shortened(name: str, word: str) -> str:
    """Name of the module that an operation stands for: a/conv of a/conv/Conv2D."""
    parts = [part for part in name.split("/") if not _CALL.fullmatch(part)]
    if len(parts) > 1 and parts[-1].startswith((word, *_WORDS)):
        parts.pop()
    return "/".join(parts) or name
