"""Layers to the table of a network: measured one at a time, then corrected and pooled together."""

from __future__ import annotations

import dataclasses
import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from planescope.files.errors import CheckpointError, NoLayersError
from planescope.hyperplanes import chance, geometry
from planescope.hyperplanes.distances import distances
from planescope.hyperplanes.layer import Array, Layer, Norm, Pairing, Skipped, View
from planescope.hyperplanes.statistics import Filters, cosine_law, summarise
from planescope.measurement.record import LayerMeasurement, Measurement, PoolMeasurement, Source

if TYPE_CHECKING:
    from planescope.hyperplanes.arrays import Floats


class Observed(Protocol):
    """The activations of a layer on data; each array float64 of shape (filters,)."""

    @property
    def centre(self) -> Floats:
        """Return the mean of z_i in its standard deviations; NaN for a filter that never varies."""

    @property
    def rate(self) -> Floats:
        """Return P(z_i > 0); NaN for a filter that gave what is not finite."""


def measure_layers(
    layers: Sequence[Layer],
    /,
    *,
    source: Source,
    view: View = View.RAW,
    initial: Mapping[str, Layer] | None = None,
    observed: Mapping[str, Observed] | None = None,
    skipped: Sequence[Skipped] = (),
    notes: Sequence[str] = (),
    on_layer: Callable[[int, int, str], None] | None = None,
) -> Measurement:
    """Measure layers one at a time.

    Parameters
    ----------
    layers : sequence of Layer
        Each is read, measured and let go before the next is read.
    initial : mapping of str to Layer, optional
        The layers at initialisation by name; gives `l2` and `linf`.
    observed : mapping of str to Observed, optional
        What data told about layers; its centre is taken instead of the norm's.
    on_layer : callable, optional
        Called with (layers done, layers in all, name of the next one), to show progress.

    Raises
    ------
    CheckpointError
        If a layer cannot be read, or `initial` lacks it or has another shape.
    NoLayersError
        If there is no layer.
    """
    measured = []
    # Filters that are left out may overflow or divide by 0; they are counted, and not used.
    with np.errstate(all="ignore"):
        for done, layer in enumerate(layers):
            if on_layer is not None:
                on_layer(done, len(layers), layer.name)
            seen = None if observed is None else observed.get(layer.name)
            measured.append(_measure_layer(layer, view, initial, seen))
    return assemble(measured, source=source, view=view, skipped=skipped, notes=notes)


def assemble(
    measured: Sequence[LayerMeasurement],
    /,
    *,
    source: Source,
    view: View,
    skipped: Sequence[Skipped] = (),
    notes: Sequence[str] = (),
) -> Measurement:
    """Put measured layers together: corrected p-values, stages, and the pool.

    Raises
    ------
    NoLayersError
        If `measured` is empty.
    """
    if not measured:
        raise NoLayersError(f"{source.path}: no layer to measure")
    layers = _corrected(measured)
    by_stage: dict[int, list[LayerMeasurement]] = defaultdict(list)
    for layer in layers:
        if layer.stage is not None:
            by_stage[layer.stage].append(layer)
    return Measurement(
        source=source,
        view=view,
        layers=layers,
        stages=tuple(_pool(by_stage[stage], stage) for stage in sorted(by_stage)),
        network=_pool(layers, None),
        skipped=tuple(skipped),
        notes=tuple(notes),
    )


def _measure_layer(
    layer: Layer,
    view: View,
    initial: Mapping[str, Layer] | None,
    observed: Observed | None,
) -> LayerMeasurement:
    rows = _rows(layer)
    bias = None if layer.bias is None else layer.bias.read()
    raw = geometry.arrangement(rows, bias, eps=layer.weight.eps)
    planes, kappa = in_view(layer, raw, view)
    l2, linf = (None, None) if initial is None else _distances(layer, rows, initial)
    values = filters_on_host(planes, kappa, observed)
    return layer_measurement(layer, values, l2=l2, linf=linf)


def in_view(
    layer: Layer, raw: geometry.Hyperplanes, view: View, /
) -> tuple[geometry.Hyperplanes, Array | None]:
    """Return the hyperplanes of a layer as a view has them, and its centres.

    Nothing waits for the device.

    Parameters
    ----------
    raw : Hyperplanes
        Of the layer's own weights and bias.
    view : View

    Returns
    -------
    planes : Hyperplanes
        Of the view. Their arrays share no memory with the network's.
    centre : array, shape (filters,), or None
        kappa_i; None where no batch norm with gamma and beta follows.
    """
    if layer.norm is None:
        return raw, None
    gamma, beta, mean, variance = _read_norm(layer.norm)
    kappa = None if gamma is None or beta is None else geometry.centre(gamma, beta)
    if view is View.EFFECTIVE:
        raw = geometry.effective(raw, gamma, beta, mean, variance, layer.norm.eps)
    return raw, kappa


def scale_in_view(layer: Layer, view: View, /) -> Array | None:
    """Return what a view multiplies each filter's weights by, shape (filters,); None is 1.

    It is ``gamma / sqrt(variance + eps)`` of the norm behind the layer (METHOD, section 4).
    """
    import numpy as np

    if view is View.RAW or layer.norm is None:
        return None
    gamma, _, _, variance = _read_norm(layer.norm)
    deviation = np.sqrt(_host(variance) + layer.norm.eps)
    return (1.0 if gamma is None else _host(gamma)) / deviation


def layer_measurement(
    layer: Layer, values: Filters, /, *, l2: float | None, linf: float | None
) -> LayerMeasurement:
    """Return the statistics of one layer from the values of its filters."""
    # Kept for the pools of the layer's stage and network: it is half of a layer's statistics.
    values = dataclasses.replace(values, law=cosine_law(values, layer.fan_in))
    statistics = summarise(values, layer.fan_in)
    return LayerMeasurement(
        **vars(statistics),
        name=layer.name,
        kind=layer.kind,
        stage=layer.stage,
        input=layer.input,
        fan_in=layer.fan_in,
        kernel=layer.kernel,
        groups=layer.groups,
        activation_rate=_mean_rate(values),
        norm=None if layer.norm is None else layer.norm.name,
        pairing=None if layer.norm is None else layer.pairing or Pairing.GRAPH,
        aliases=layer.aliases,
        l2=l2,
        linf=linf,
        values=values,
    )


def _mean_rate(values: Filters) -> float | None:
    if values.rate is None:
        return None
    told = values.rate[values.usable & np.isfinite(values.rate)]
    return float(told.mean()) if len(told) else None


def filters_on_host(
    planes: geometry.Hyperplanes, centre: Array | None, observed: Observed | None = None, /
) -> Filters:
    """Bring the values of a layer's filters to the host as float64; waits for the device.

    What was observed on data takes the place of `centre`.
    """
    projection, norm, cosine = map(_host, (planes.projection, planes.norm, planes.cosine))
    bias = np.zeros_like(norm) if planes.bias is None else _host(planes.bias)
    lost = None if planes.sideless is None else _host(planes.sideless) != 0
    with np.errstate(all="ignore"):
        return Filters(
            projection=projection,
            norm=norm,
            cosine=cosine,
            bias=bias,
            crossing=geometry.crossing(projection, bias),
            offset=geometry.offset(norm, bias),
            centre=observed.centre if observed else None if centre is None else _host(centre),
            rate=None if observed is None else observed.rate,
            sideless=lost,
        )


def _host(values: Array) -> Any:
    # torch tensors on an accelerator do not convert by themselves.
    on_cpu = values.cpu() if hasattr(values, "cpu") else values
    return np.asarray(on_cpu, dtype=np.float64)


def _read_norm(norm: Norm) -> tuple[Array | None, Array | None, Array, Array]:
    """Return the gamma, beta, mean and variance."""
    gamma, beta = (None if t is None else t.read() for t in (norm.gamma, norm.beta))
    return gamma, beta, norm.mean.read(), norm.variance.read()


def _distances(
    layer: Layer, rows: Array, initial: Mapping[str, Layer]
) -> tuple[float | None, float | None]:
    if layer.name not in initial:
        raise CheckpointError(f"the initial checkpoint has no layer {layer.name!r}; give its own")
    began = initial[layer.name]
    if began.weight.shape != layer.weight.shape:
        raise CheckpointError(
            f"layer {layer.name!r} has shape {size_of(layer)}, but {size_of(began)} in the initial "
            "checkpoint; give the same network's"
        )
    start = _rows(began)
    if type(start) is not type(rows):  # a live module against a file
        rows, start = (a.cpu() if hasattr(a, "cpu") else a for a in (rows, start))
    l2, linf = distances(rows, start)
    return finite(l2), finite(linf)


def _rows(layer: Layer) -> Array:
    """Read a layer's weight as (filters, fan_in).

    Where filters lie last (Keras, Flax), a plain reshape reads with strides, in four times the
    time: these lines take a sixth off the whole command on a VGG19 of Keras.
    """
    weight = layer.weight.read()
    # Of one channel, or one tap, reshape gives a view, whose sums have other last bits.
    copies = weight.ndim > 2 and weight.shape[1] > 1 and math.prod(weight.shape[2:]) > 1
    if copies and isinstance(weight, np.ndarray) and not weight.flags.c_contiguous:
        view, weight = weight, np.empty(weight.shape, weight.dtype)
        for channel in range(view.shape[1]):
            weight[:, channel] = view[:, channel]
    return weight.reshape(layer.filters, layer.fan_in)


def size_of(layer: Layer, /) -> str:
    """Return the shape of a layer's weight in words."""
    return "×".join(map(str, layer.weight.shape))


def finite(value: Any, /) -> float | None:
    """Return a number that files can hold; None for a NaN or an infinity."""
    number = float(value)
    return number if math.isfinite(number) else None


def _corrected(layers: Sequence[LayerMeasurement]) -> tuple[LayerMeasurement, ...]:
    """Fill in the corrected p-values, over all layers given."""
    columns = (
        chance.benjamini_hochberg([getattr(layer, p) for layer in layers])
        for p in ("p_mass", "p_cosine", "p_centre")
    )
    return tuple(
        dataclasses.replace(
            layer,
            q_mass=q_mass,
            q_cosine=q_cosine,
            q_centre=q_centre,
            biased=None if q_mass is None else q_mass < chance.LEVEL,
        )
        for layer, q_mass, q_cosine, q_centre in zip(layers, *columns, strict=True)
    )


def _pool(layers: Sequence[LayerMeasurement], stage: int | None) -> PoolMeasurement:
    values = [layer.values for layer in layers if layer.values is not None]
    # A layer without a norm has no centre; among others it counts as filters that tell nothing.
    centres = [np.full(v.norm.shape, np.nan) if v.centre is None else v.centre for v in values]
    pooled = Filters(
        **{
            name: np.concatenate([getattr(v, name) for v in values])
            for name in ("projection", "norm", "cosine", "bias", "crossing", "offset")
        },
        centre=np.concatenate(centres),
        sideless=np.concatenate([~v.sided for v in values]),
        law=np.concatenate([v.law for v in values if v.law is not None]),
    )
    fan_in = np.repeat([layer.fan_in for layer in layers], [layer.filters for layer in layers])
    return PoolMeasurement(
        **vars(summarise(pooled, fan_in)),
        stage=stage,
        layers=len(layers),
        biased_layers=sum(bool(layer.biased) for layer in layers),
    )
