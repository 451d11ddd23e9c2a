"""Repair a network that somebody pruned, quantised, merged or reset: nothing is trained."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any, get_args

from planescope.criticality.options import EXAMPLES, RepairedBy, Task
from planescope.criticality.plan.record import Repair
from planescope.files.bounds import check_seed
from planescope.files.errors import UsageError
from planescope.files.optional import required

if TYPE_CHECKING:
    from torch import nn

    from planescope.criticality.plan.fit.mending import OnLayer
    from planescope.criticality.resets.engine.answers import Pick
    from planescope.data.options import DataOptions
    from planescope.data.roles import Unpack
    from planescope.training.run import Run


def repair(
    network: nn.Module | Run | str | os.PathLike[str],
    reference: nn.Module | Run | str | os.PathLike[str],
    *,
    data: Any = None,
    by: RepairedBy = "least squares",
    examples: int = EXAMPLES,
    seed: int = 0,
    unpack: Unpack | None = None,
    output: Pick | None = None,
    task: Task | None = None,
    architecture: str | nn.Module | None = None,
    data_path: str | os.PathLike[str] | None = None,
    data_options: DataOptions | None = None,
    input_shape: Sequence[int] | None = None,
    mean: Sequence[float] = (0.0,),
    std: Sequence[float] = (1.0,),
    trust: bool | str | Collection[str] = False,
    on_layer: OnLayer | None = None,
) -> Repair:
    """Put each layer of a changed network back to where the data of the whole one lie.

    Layer by layer in forward order, on inputs without labels; nothing is trained, shapes, names and
    zeros stay, as do the number of bits of a quantised filter and the rank of a factored layer. A
    layer is kept as repaired only where that lowers the divergence from the reference, beside the
    repair of the others, on every fourth example, which the repair does not see.

    Parameters
    ----------
    network : torch.nn.Module, Run or path
        The changed network (of a run the last snapshot): pruned (masks of ``torch.nn.utils.prune``
        too), quantised in floating point, factored, merged or reset. It is left as it is.
    reference : torch.nn.Module, Run or path
        The whole network, of the same shapes.
    data : DataLoader, Dataset, tensor, iterable of batches, or str
        Inputs as for `planescope.reset`; labels are not looked at. By default synthetic pictures,
        which stand in for natural images of zero mean and unit variance.
    by : {"least squares", "moments"}
        Fit the weights that stay, or put back mean and deviation of each channel (METHOD, section
        7). Filters of more than 8,192 inputs are repaired by moments.
    examples : int
        At most so many are taken: the first, or of a data set so many drawn at random.
    seed : int
        Of what is drawn.
    unpack, output, task
        As for `planescope.reset`.
    architecture : str or torch.nn.Module, optional
        Of files: a name as for `planescope.networks.build.build`, or a module, which is copied.
    data_path, data_options
        Of a data set by name.
    input_shape, mean, std
        Of synthetic pictures, as for `planescope.sensitivity`.
    trust
        Of runs, as for `planescope.sensitivity`.
    on_layer : callable, optional
        Called with (layers done, layers in all, name), to show progress.

    Returns
    -------
    Repair
        Its `module` is the repaired network.

    Raises
    ------
    UsageError
        If the networks are of other shapes, equal, or hold NaN, or the inputs do not fit.
    CheckpointError
        If a file is missing, damaged or of another network.
    """
    torch = required("torch")
    from planescope.criticality.plan.divergence import Yardstick
    from planescope.criticality.plan.examples import synthetic, take
    from planescope.criticality.plan.fit.mending import Mending
    from planescope.criticality.plan.forms.opening import check_pair, filled, opened
    from planescope.criticality.resets.engine.borrow import borrowed, unheeded_hooks
    from planescope.data.loaders import generators_of
    from planescope.networks.live.copies import same_random_states

    if by not in get_args(RepairedBy):
        raise UsageError(f"by={by!r}: repair by one of {', '.join(get_args(RepairedBy))}")
    if examples < 2:
        raise UsageError(f"examples={examples}: give two or more, some to check against")
    check_seed(seed)
    given = opened(network, architecture, "network", trust=trust)
    whole = opened(reference, architecture, "reference", trust=trust)
    with same_random_states(*generators_of(data)), torch.no_grad():
        own, other = (borrowed(one.module, whole=False) for one in (given, whole))
        check_pair(own, other, names=(given.called("network"), whole.called("reference")))
        device = next((t.device for t in other.parameters()), torch.device("cpu"))
        unheeded = (
            *unheeded_hooks(given.module),
            *unheeded_hooks(whole.module, " of the reference"),
        )
        notes: list[str] = []
        if data is None:
            inputs, notes = synthetic(
                other, input_shape or whole.input_shape or given.input_shape, most=examples,
                seed=seed, pick=output, task=task, mean=mean, std=std,
            )  # fmt: skip
        taken = take(
            inputs if data is None else data,
            other,
            most=examples,
            device=device,
            unpack=unpack,
            seed=seed,
            data_path=data_path,
            data_options=data_options,
        )
        yardstick = Yardstick.of(
            other, taken.check, output, task=task, architecture=whole.architecture
        )
        mended = Mending.of(other, taken, yardstick, by=by, seed=seed)
        before = yardstick.value(own)
        if before == float("inf"):
            raise UsageError(f"{given.source}: gives NaN or an infinity on these inputs")
        layers, after = mended.repair(own, before, on_layer=on_layer)
        module, lacks = filled(given.module, own)
    return Repair(
        source=given.source,
        reference=whole.source,
        by=by,
        inputs="synthetic pictures" if data is None else taken.name,
        fitted=taken.fitted,
        checked=taken.checked,
        measure=yardstick.name,
        before=before,
        after=after,
        layers=layers,
        notes=tuple(filter(None, (*unheeded, *notes, *taken.notes, *yardstick.notes, lacks))),
        module=module,
    )
