"""The measurement of a network: its layers opened, chosen, measured and put into a table."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from planescope.files.errors import CheckpointError, PlanescopeError, UsageError, one_line
from planescope.hyperplanes.layer import Kind, Layer, Structure, View
from planescope.measurement.activations import measure_activations
from planescope.measurement.assemble import Observed, measure_layers
from planescope.measurement.choice import DEFAULT_KINDS, Choice, hints_of, select
from planescope.measurement.record import Measurement, Source
from planescope.measurement.source import find, open_source

if TYPE_CHECKING:
    import torch

    from planescope.data.roles import Unpack

# A small file may repeat or pack weights, but not claim more filters than this.
MAX_FILTERS = 1 << 22


def measure(
    x: Any,
    /,
    *,
    view: View | str = View.RAW,
    kinds: Iterable[Kind | str] | str = DEFAULT_KINDS,
    layers: str | None = None,
    transposed: str | None = None,
    layout: str | Sequence[str] = (),
    norms: Mapping[str, str | None] | Sequence[str] = (),
    eps: float | None = None,
    entry: str | None = None,
    network: str | Structure | None = None,
    init: Any = None,
    data: Any = None,
    data_path: str | os.PathLike[str] | None = None,
    unpack: Unpack | None = None,
    on_layer: Callable[[int, int, str], None] | None = None,
) -> Measurement:
    """Measure the hyperplanes of a network.

    Parameters
    ----------
    x : path, str, torch.nn.Module, keras.Model, or mapping of str to arrays
        A checkpoint file, a folder with one model, ``hf:OWNER/NAME[@REVISION][/FILE]``,
        ``torchvision:NAME``, ``timm:NAME``, a live module or Keras model (on any backend), a state
        dict, or named arrays, one mapping within another too (Flax's variables, a loaded
        checkpoint), which are read as a file of the same.
        A module is left exactly as it is.
    view : {"raw", "effective"}
        The convolutions' own hyperplanes, as in the paper, or those that convolution and batch norm
        cut together (METHOD, section 4).
    kinds : iterable of {"conv", "pointwise", "transposed", "linear"}, or "all"
        Which layers; by default convolutions with a kernel larger than 1, as in the paper.
    layers : str, optional
        Regular expression; only layers in whose name it is found.
    transposed : str, optional
        Regular expression of the layers that are transposed convolutions, where only a state dict
        is known.
    layout : str or sequence of str
        Where the weights of a state dict have their filters, if names, biases, norms and shapes do
        not tell or mislead: ``"filters-first"``, as PyTorch has them, ``"filters-last"``, as Keras
        and Flax, or first with ``"channels-last"``, as MLX; ``"REGEX=filters-last"`` for layers in
        whose name the expression is found.
    norms : mapping of str to str or None, or sequence of "LAYER=NORM"
        The batch norm behind a layer of a state dict, by names; None, or nothing behind the sign,
        is none.
    eps : float, optional
        Epsilon of the batch norms of a state dict, which does not hold it.
    entry : str, optional
        Which of several state dicts in a file or a mapping, as ``"ema"``.
    network : str or Structure, optional
        One of the paper's networks (``lenet``, ``vgg16_bn``, ...), or with torch any that
        `planescope.networks.build.build` takes; it then tells stages, inputs and norms of a
        state dict. Or what a run recorded of them, `planescope.training.run.Run.structure`.
    init : same as `x`, optional
        The network at initialisation; gives the distances `l2` and `linf`.
    data : DataLoader, Dataset, LightningDataModule, tensors, iterable of batches, or str, optional
        Measures centre and activation rate of each layer (METHOD, section 4), on what
        `planescope.reset` takes: batches go to the network exactly as they come, labels play no
        part. Of a data set by name (``digits``, ``cifar10``, ...) the validation examples are
        taken. Needs torch, and a module or `network`. Layers that no batch reaches are named.
    data_path : path, optional
        Where the files of the data set lie.
    unpack : callable, optional
        Gives inputs and labels (or None) of a batch of another kind.
    on_layer : callable, optional
        Called with (layers done, layers in all, name of the next one), to show progress.

    Returns
    -------
    Measurement

    Raises
    ------
    UsageError
        If an option is invalid.
    CheckpointError
        If the checkpoint cannot be read, or does not match `network` or `init`.
    NoLayersError
        If no layer is left to measure; the message says which kinds there are.
    MissingDependencyError
        If an optional package is needed; the message says which.
    """
    choice = Choice.of(kinds, layers, view)
    hints = hints_of(transposed=transposed, layout=layout, norms=norms, eps=eps)
    opened = open_source(x, network=network, entry=entry)
    found = opened.found(hints)
    measured, left_out = select(found, choice)
    refuse_claims(found.source, measured)
    initial = None
    if init is not None:
        began = find(init, hints=hints, network=network)
        initial = {name: layer for layer in began.layers for name in (*layer.aliases, layer.name)}
    notes = [*found.notes, *norm_notes(measured, choice.view)]
    observed = None
    if data is not None:
        observed = _observe(opened.runnable(), measured, data, data_path, unpack)
        notes += data_notes([layer.name for layer in measured], observed)
        notes += lost_notes(observed)
    return measure_layers(
        measured,
        source=found.source,
        view=choice.view,
        initial=initial,
        observed=observed,
        skipped=(*left_out, *found.skipped),
        notes=notes,
        on_layer=on_layer,
    )


def _observe(
    module: torch.nn.Module,
    layers: Sequence[Layer],
    data: Any,
    path: str | os.PathLike[str] | None,
    unpack: Unpack | None,
) -> Mapping[str, Observed]:
    from planescope.data.loaders import generators_of
    from planescope.networks.live.copies import same_random_states

    # z is what enters the ReLU: the norm's output where there is a norm.
    names = {layer.name: layer.name if layer.norm is None else layer.norm.name for layer in layers}
    with same_random_states(*generators_of(data)):
        batches = _batches(data, path)
        try:
            return measure_activations(module, batches, names, unpack=unpack)
        except (RuntimeError, TypeError, ValueError) as exc:  # forward is anybody's code
            if isinstance(exc, PlanescopeError):
                raise
            raise UsageError(f"data= do not fit the network: {one_line(exc)}") from exc


def _batches(data: Any, path: str | os.PathLike[str] | None) -> Iterable[Any]:
    """Return what a user handed over, as batches."""
    from planescope.data.batches import validation
    from planescope.data.loaders import call_loader, open_loader

    if isinstance(data, str):
        called = call_loader(data, "val")
        if called is None:
            return validation(data, None if path is None else Path(path), batch_size=100)
        data = called
    if _are_two_batches(data):
        raise UsageError(
            "data= is a tuple of two tensors of one shape: it is not plain whether they are inputs "
            "and labels or two batches; give a list of batches, or the inputs alone"
        )
    return open_loader(data).source


def _are_two_batches(data: Any) -> bool:
    if not isinstance(data, tuple) or len(data) != 2:
        return False
    shapes = [tuple(getattr(part, "shape", ()))[1:] for part in data]
    return len(shapes[0]) > 1 and shapes[0] == shapes[1]


def data_notes(layers: Sequence[str], observed: Mapping[str, Observed], /) -> list[str]:
    """Say what was measured from data, and which layers no batch reached."""
    unseen = [name for name in layers if name not in observed]
    notes = ["centre and activation rate were measured from data"]
    if unseen:
        notes.append(
            f"data did not come through {', '.join(unseen)}: no activation rate, and a centre only "
            "from the parameters of a norm"
        )
    return notes


def lost_notes(observed: Mapping[str, Observed], /) -> list[str]:
    """Say which layers gave values on data that are not finite, of how many of their filters."""
    lost = {name: int((~np.isfinite(seen.rate)).sum()) for name, seen in observed.items()}
    return [
        f"{count} of {len(observed[name].rate)} filters of {name} gave a NaN or an infinity on the "
        "data: they have no activation rate, and no centre of the data"
        for name, count in lost.items()
        if count
    ]


def refuse_claims(source: Source, layers: Sequence[Layer], /) -> None:
    """Refuse more filters than a file has bytes; what is kept of each takes some fifty.

    Raises
    ------
    CheckpointError
        If a file claims them.
    """
    filters = sum(layer.filters for layer in layers)
    if source.bytes is not None and filters > max(MAX_FILTERS, source.bytes):
        raise CheckpointError(
            f"{source.path}: claims {filters} filters in a file of {source.bytes} bytes; refused "
            "as a bomb"
        )


def norm_notes(layers: Sequence[Layer], view: View, /) -> list[str]:
    """Say what had to be assumed of the norms behind layers."""
    notes = []
    if any(layer.norm_assumed for layer in layers):
        notes.append(
            "norms were paired with convolutions by name and order, and convolution, norm, ReLU is "
            "assumed to be their order: a state dict does not tell (--network or ONNX does)"
        )
    assumed = Counter(x.norm.eps for x in layers if x.norm is not None and x.norm.eps_assumed)
    notes += [
        f"an epsilon of {eps:g} is assumed in {count} of the norms, as their framework has it; "
        "--eps sets it"
        for eps, count in sorted(assumed.items())
    ]
    bare = sum(layer.norm is None for layer in layers)
    if view is View.EFFECTIVE and bare:
        notes.append(
            f"{bare} of {len(layers)} layers have no known batch norm and are measured raw"
        )
    return notes
