"""Activations: on which side of a layer's hyperplanes data lie (METHOD, section 4)."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from planescope.files.errors import UsageError, nearest
from planescope.networks.live.module import unwrapped

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    import torch

    from planescope.data.roles import Unpack


@dataclass(frozen=True, kw_only=True, eq=False)
class Activation:
    """Preactivations z of a layer's filters over all inputs and output positions.

    Attributes
    ----------
    mean, std : array, float64, shape (filters,)
        Of z_i; the standard deviation divides by `count`.
    centre : array, float64, shape (filters,)
        ``mean / std``: distance of the data's centre from the hyperplane, in standard deviations.
        NaN for a filter that never varies.
    rate : array, float64, shape (filters,)
        Share of z_i > 0, in [0, 1]: how often the ReLU passes the filter on. NaN where a z_i is
        not finite: no side of a hyperplane is that of a NaN.
    count : int
        Values of z_i: inputs times positions.
    """

    mean: np.ndarray
    std: np.ndarray
    centre: np.ndarray
    rate: np.ndarray
    count: int


def measure_activations(
    module: torch.nn.Module,
    batches: Iterable[Any],
    names: Mapping[str, str],
    /,
    *,
    device: torch.device | str | None = None,
    unpack: Unpack | None = None,
) -> dict[str, Activation]:
    """Measure the preactivations of layers on data, in one pass.

    Parameters
    ----------
    batches : iterable
        Of inputs, of sequences that begin with the inputs, or of dictionaries, whose parts are
        given by name as far as `forward` takes them.
    names : mapping of str to str
        For each layer the name of the module whose output enters the ReLU: the norm behind the
        layer where there is one, else the layer itself.
    device : torch.device, optional
        Where the inputs go; by default where the module's first parameter is.
    unpack : callable, optional
        Gives inputs and labels (or None) of a batch of any other kind.

    Returns
    -------
    dict of str to Activation
        In the order of `names`, without those that no batch reached. A module that is called
        several times in a pass is measured over all of its calls.

    Raises
    ------
    UsageError
        If a module does not exist, none is called by any batch, or a batch is not understood.

    Notes
    -----
    The network is in evaluation mode meanwhile; its modes and buffers are put back. Moments are
    taken in float64, those of batches merged by Chan's update. Nothing waits for the device before
    the end.
    """
    import torch

    from planescope.data.roles import Reader, moved

    # A compiled module would neither run hooks on its parts nor name them alike.
    network = unwrapped(module)
    if isinstance(network, torch.jit.ScriptModule):
        raise UsageError(
            "data cannot be watched on their way through TorchScript; give the module that it was "
            "made of, or leave the data out"
        )
    parts = dict(network.named_modules())
    for name in names.values():
        if name not in parts:
            raise UsageError(f"the network has no module {name!r}; {nearest(name, parts)}")
    if device is None:
        device = next((p.device for p in network.parameters()), torch.device("cpu"))
    device, reader = torch.device(device), Reader(network, unpack)
    moments = {name: _Moments(parts[name]) for name in names.values()}
    with _evaluation(network), _buffers(network), _hooks(parts, moments), torch.no_grad():
        for batch in batches:
            args, kwargs = reader.inputs_of(moved(batch, device))
            network(*args, **kwargs)
    if names and not any(moments[name].count for name in names.values()):
        raise UsageError(
            f"no data came through layer {next(iter(names))!r}; are there batches, is it used?"
        )
    return {layer: moments[name].result() for layer, name in names.items() if moments[name].count}


class _Moments:
    """Running moments of a module's outputs, by filter, on the device of the outputs."""

    def __init__(self, module: torch.nn.Module) -> None:
        import torch

        self.axis = -1 if isinstance(module, torch.nn.Linear) else 1  # that of the filters
        self.count = 0
        # Numbers until the first batch makes them tensors of shape (filters,).
        self.mean: Any = 0.0
        self.squares: Any = 0.0  # sum of squared deviations from the mean
        self.positive: Any = 0

    def add(self, outputs: torch.Tensor) -> None:
        """Merge a batch: T. Chan, G. Golub, R. LeVeque, COMPSTAT 1982."""
        import torch

        count = outputs.numel() // outputs.shape[self.axis]
        if count == 0:
            return
        # Apple's GPUs have no float64.
        wide = torch.float32 if outputs.device.type == "mps" else torch.float64
        values = outputs.to(wide)
        others = [axis for axis in range(values.ndim) if axis != self.axis % values.ndim]
        variance, mean = torch.var_mean(values, others, correction=0)
        step, total = mean - self.mean, self.count + count
        between = step.square() * (self.count * count / total)
        self.squares = self.squares + variance * count + between
        self.mean = self.mean + step * (count / total)
        self.positive = self.positive + (outputs > 0).sum(others)
        self.count = total

    def result(self) -> Activation:
        mean, squares, positive = (
            values.cpu().numpy().astype(np.float64)
            for values in (self.mean, self.squares, self.positive)
        )
        std = np.sqrt(squares / self.count)
        centre = np.divide(mean, std, out=np.full_like(mean, np.nan), where=std > 0)
        rate = np.where(np.isfinite(mean), positive / self.count, np.nan)
        return Activation(mean=mean, std=std, centre=centre, rate=rate, count=self.count)


@contextmanager
def _evaluation(network: torch.nn.Module) -> Iterator[None]:
    """Evaluate within a block; afterwards each module is in the mode that it was in."""
    modes = [(part, part.training) for part in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode


@contextmanager
def _buffers(network: torch.nn.Module) -> Iterator[None]:
    """Put buffers back that a forward writes in evaluation too, as observers of a range do."""
    import torch

    from planescope.networks.live.copies import is_undrawn

    held = [
        (part._buffers, name, buffer, buffer.clone())
        for part in network.modules()
        for name, buffer in part._buffers.items()
        if buffer is not None and not is_undrawn(buffer)
    ]
    try:
        yield
    finally:
        with torch.no_grad():
            for own, name, buffer, before in held:
                own[name] = buffer
                if not torch.equal(buffer, before):  # versions are not counted by all that writes
                    buffer.resize_(before.shape).copy_(before)


@contextmanager
def _hooks(parts: Mapping[str, torch.nn.Module], moments: Mapping[str, _Moments]) -> Iterator[None]:
    def adds(to: _Moments) -> Callable[..., None]:
        return lambda _module, _inputs, outputs: to.add(outputs)

    handles = [parts[name].register_forward_hook(adds(to)) for name, to in moments.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
