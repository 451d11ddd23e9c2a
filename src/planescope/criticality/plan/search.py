"""Plan a smaller network: rival allocations at one size, each repaired, and the nearest taken."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from planescope.criticality.options import EXAMPLES, Task
from planescope.criticality.plan.allocation import check_way
from planescope.criticality.plan.planned import Plan, PlanCost, PlannedLayer
from planescope.files.bounds import check_seed
from planescope.files.errors import UsageError
from planescope.files.optional import required

if TYPE_CHECKING:
    from torch import nn

    from planescope.criticality.resets.engine.answers import Pick
    from planescope.data.options import DataOptions
    from planescope.data.roles import Unpack
    from planescope.training.run import Run

# (tries done, tries in all, what is tried)
OnTry = Callable[[int, int, str], None]


def plan(
    model: nn.Module | Run | str | os.PathLike[str],
    *,
    way: str = "prune",
    size: float | None = None,
    bits: float | None = None,
    budget: float | None = None,
    to: Any = None,
    data: Any = None,
    labelled: bool = True,
    repair: bool = True,
    keep: Collection[str] = (),
    curve: Sequence[float] = (),
    examples: int = EXAMPLES,
    seed: int = 0,
    network: str | nn.Module | None = None,
    unpack: Unpack | None = None,
    output: Pick | None = None,
    task: Task | None = None,
    data_path: str | os.PathLike[str] | None = None,
    data_options: DataOptions | None = None,
    input_shape: Sequence[int] | None = None,
    mean: Sequence[float] = (0.0,),
    std: Sequence[float] = (1.0,),
    trust: bool | str | Collection[str] = False,
    dry_run: bool = False,
    on_try: OnTry | None = None,
) -> Plan | PlanCost:
    """Make a smaller network out of a trained one, and tell what it costs. Nothing is trained.

    The size is shared out among the layers in the ways that others use; each is repaired by least
    squares, and the one nearest to the whole network on examples kept back is the plan; of pruned
    ones global magnitude, unless another is nearer beyond chance. The table compares them on
    examples that chose nothing, where there are enough.

    Parameters
    ----------
    model : torch.nn.Module, Run or path
        Trained; of a run the last snapshot; of a checkpoint with `network`; ONNX files tell
        theirs. It is left as it is.
    way : {"prune", "filters", "rank", "bits", "reset", "freeze"}
        METHOD, section 7. Whole filters go where their channels belong to one layer alone; layers
        that are reset or frozen are put back to the state `to`.
    size : float
        Share of the weights of the planned layers that stays: of a rank, in two factors; of filters
        and layers put back, at most.
    bits : float
        Of ``way="bits"`` in place of a size: mean over weights.
    budget : float
        In place of either: the smallest network, found by halves, whose loss on the examples of the
        table is no more (METHOD, section 7: measured with labels, else expected).
    to : module, state dict, path or int
        Of ``"reset"`` and ``"freeze"``: the initialisation, or an early snapshot; of a run an
        epoch, by default its first snapshot.
    data : as for `planescope.repair`
        By default synthetic pictures.
    labelled : bool
        Whether labels of `data`, where there are any, measure the loss.
    repair : bool
        False compares the allocations as they are. Layers that are put back are not repaired, those
        about them are.
    keep : collection of str
        Layers that stay whole.
    curve : sequence of float
        Other sizes, or bits, to tell the cost of.
    examples : int
        For repairing; as many more for the table.
    seed, unpack, output, task, data_path, data_options, input_shape, mean, std, trust
        As for `planescope.repair`.
    network : str or torch.nn.Module, optional
        Of a file.
    dry_run : bool
        Tell what it would take, and do nothing else.
    on_try : callable, optional
        Called with (tries done, tries in all, name), to show progress.

    Returns
    -------
    Plan, or PlanCost where `dry_run`

    Raises
    ------
    UsageError
        If no setting reaches the size or budget, a name in `keep` is not there, or the inputs do
        not fit.
    CheckpointError
        If the file is missing, damaged or of another network.
    """
    asked = _asked(way, size, bits, budget)
    torch = required("torch")
    from planescope.criticality.plan.bench import Bench
    from planescope.criticality.plan.cuts import knife_of
    from planescope.criticality.plan.divergence import is_less
    from planescope.criticality.plan.examples import synthetic
    from planescope.criticality.plan.forms.opening import acting, check_finite, filled, opened
    from planescope.criticality.plan.sizes import at, cost, within
    from planescope.criticality.resets.engine.borrow import borrowed, unheeded_hooks
    from planescope.data.loaders import generators_of
    from planescope.networks.live.copies import same_random_states

    if examples < 2:
        raise UsageError(f"examples={examples}: give two or more, some to check against")
    check_seed(seed)
    given = opened(model, network, "network", trust=trust)
    with same_random_states(*generators_of(data)), torch.no_grad():
        whole, unheeded = borrowed(given.module, whole=False), unheeded_hooks(given.module)
        check_finite(acting(whole), f"{given.source}:")
        knife = knife_of(way, whole, to, given)
        notes: list[str] = []
        inputs = data
        if data is None:
            inputs, notes = synthetic(
                whole, input_shape or given.input_shape, most=2 * examples, seed=seed, pick=output,
                task=task, mean=mean, std=std,
            )  # fmt: skip
        bench = Bench.of(
            whole, inputs, knife, keep=keep, examples=examples, seed=seed, labelled=labelled,
            unpack=unpack, output=output, task=task, architecture=given.architecture,
            data_path=data_path, data_options=data_options,
        )  # fmt: skip
        if dry_run:
            return cost(bench, way, asked, curve, repair=repair)
        if asked is None:
            assert budget is not None  # noqa: S101
            tries, others = within(bench, budget, repair=repair, on_try=on_try)
        else:
            tries, others = at(bench, asked, curve, repair=repair, on_try=on_try)
        best = bench.best(tries)
        layers = bench.layers(best.settings)
        notes += _bits_note(best.asked, layers) if way == "bits" else []
        module, lacks = filled(given.module, best.module)
    return Plan(
        source=given.source,
        way=way,
        asked=float(best.asked),
        method="synthetic" if data is None else bench.method,
        inputs="synthetic pictures" if data is None else bench.taken.name,
        fitted=bench.taken.fitted,
        checked=bench.taken.checked,
        examples=sum(batch.size for batch in bench.table.batches),
        measure=bench.table.name,
        accuracy=bench.accuracy,
        chosen=best.rival,
        rivals=tuple(
            replace(one.rival, better=one is not best and is_less(one.told, best.told))
            for one in tries
        ),
        layers=layers,
        curve=tuple(one.rival for one in others),
        skipped=tuple(bench.skipped),
        notes=tuple(
            filter(
                None,
                (*notes, *unheeded, *bench.notes, *bench.taken.notes, *bench.table.notes, lacks),
            )
        ),
        module=module,
    )


def _bits_note(asked: float, layers: Sequence[PlannedLayer], /) -> list[str]:
    """Say what mean whole layers of so many bits have, where it is not what was asked for."""
    mean = sum(one.setting * one.parameters for one in layers) / sum(
        one.parameters for one in layers
    )
    if abs(mean - asked) < 0.005:  # as two places show it
        return []
    return [f"a mean of {mean:.2f} bits is reached: each layer has one number of bits"]


def _asked(way: str, size: float | None, bits: float | None, budget: float | None) -> float | None:
    """Return the size or bits; None where a budget is given."""
    check_way(way)
    if [size, bits, budget].count(None) != 2:
        raise UsageError("give one of size, bits and budget")
    if (bits is not None) != (way == "bits") and budget is None:
        raise UsageError("bits= goes with the way bits, size= with the others")
    if budget is not None and not 0 < budget < 1:
        raise UsageError(f"a budget of {budget:g}: give a loss between 0 and 1")
    return size if bits is None else bits
