"""Plan a smaller network: rival allocations at one size, each repaired, and the nearest taken."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from planescope.criticality.options import EXAMPLES
from planescope.criticality.plan.allocation import PUT_BACK, check_size, check_way, least_share
from planescope.criticality.plan.opening import (
    Opened,
    acting,
    check_finite,
    check_shapes,
    filled,
    load_file,
    opened,
)
from planescope.criticality.plan.planned import Plan, PlanCost
from planescope.files.errors import UsageError
from planescope.files.optional import required

if TYPE_CHECKING:
    import torch
    from torch import nn

    from planescope.criticality.plan.bench import Bench, Try
    from planescope.criticality.plan.cuts import Knife
    from planescope.criticality.resets.engine.answers import Pick
    from planescope.data.load import DataOptions
    from planescope.data.roles import Unpack
    from planescope.training.run import Run

# Sizes, and bits, that are looked at for a budget.
_SIZES = tuple(Fraction(n, 20) for n in range(1, 20))
_BITS = tuple(Fraction(n) for n in range(2, 9))
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
    seed, unpack, output, data_path, data_options, input_shape, mean, std, trust
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
    from planescope.criticality.plan.divergence import is_less
    from planescope.criticality.plan.examples import synthetic
    from planescope.criticality.resets.engine.borrow import borrowed
    from planescope.data.random_states import generators_of, same_random_states

    if examples < 2:
        raise UsageError(f"examples={examples}: give two or more, some to check against")
    given = opened(model, network, "network", trust=trust)
    with same_random_states(*generators_of(data)), torch.no_grad():
        whole = borrowed(given.module, whole=False)
        check_finite(acting(whole), f"{given.source}:")
        knife = _knife(way, whole, to, given)
        notes: list[str] = []
        inputs = data
        if data is None:
            inputs, notes = synthetic(
                whole, input_shape or given.input_shape, most=2 * examples, seed=seed, pick=output,
                mean=mean, std=std,
            )  # fmt: skip
        bench = Bench.of(
            whole, inputs, knife, keep=keep, examples=examples, seed=seed, labelled=labelled,
            unpack=unpack, output=output, data_path=data_path, data_options=data_options,
        )  # fmt: skip
        if dry_run:
            return _cost(bench, way, asked, curve, repair=repair)
        if asked is None:
            assert budget is not None  # noqa: S101
            tries, others = _within(bench, budget, repair=repair, on_try=on_try)
        else:
            tries, others = _at(bench, asked, curve, repair=repair, on_try=on_try)
        best = bench.best(tries)
        layers = bench.layers(best.settings)
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
        notes=(*notes, *bench.notes, *bench.taken.notes),
        module=filled(given.module, best.module),
    )


def _asked(way: str, size: float | None, bits: float | None, budget: float | None) -> float | None:
    """Size or bits; None where a budget is given."""
    check_way(way)
    if [size, bits, budget].count(None) != 2:
        raise UsageError("give one of size, bits and budget")
    if (bits is not None) != (way == "bits") and budget is None:
        raise UsageError("bits= goes with the way bits, size= with the others")
    if budget is not None and not 0 < budget < 1:
        raise UsageError(f"a budget of {budget:g}: give a loss between 0 and 1")
    return size if bits is None else bits


def _knife(way: str, whole: nn.Module, to: Any, given: Opened) -> Knife:
    """Find what a way needs to know of the network."""
    from planescope.criticality.plan.cuts import Knife

    if (to is not None) != (way in PUT_BACK) and not (way in PUT_BACK and _is_run(given)):
        raise UsageError(
            "--to FILE (to=) says to which state layers are reset or frozen: give it with these "
            "ways, and with no other"
        )
    if way in PUT_BACK:
        return Knife(way=way, starts=_starts(to, whole, given))
    if way != "filters":
        return Knife(way=way)
    from planescope.criticality.plan.graphs import GraphNetwork
    from planescope.criticality.sensitivity.network import find_parts

    if isinstance(whole, GraphNetwork):
        return Knife(way=way, parts=whole.parts)
    parts, _ = find_parts(whole, "all", None)
    return Knife(way=way, parts={part.layer.name: part for part in parts})


def _is_run(given: Opened) -> bool:
    return given.file is not None and given.source != given.file


def _starts(to: Any, whole: nn.Module, given: Opened) -> Mapping[str, torch.Tensor]:
    """Tensors of the state that layers are put back to, of the shapes of the network's."""
    from torch import nn

    from planescope.networks.live.copies import deep_copy

    if to is None or (isinstance(to, int) and not isinstance(to, bool)):
        to = _snapshot(to, given)
    if isinstance(to, str | os.PathLike):
        if given.architecture is None and given.file is None:
            start: nn.Module = load_file(to, given.module)
        else:
            start = opened(to, given.architecture, "state to put back to").module
    elif isinstance(to, nn.Module):
        start = opened(to, None, "state to put back to").module
    elif isinstance(to, Mapping):
        start = deep_copy(given.module)
        try:
            start.load_state_dict(dict(to))
        except (RuntimeError, TypeError, ValueError) as exc:
            first = str(exc).partition("\n\t")[2].partition("\n")[0] or str(exc)
            raise UsageError(f"to= is a state dict of another network ({first.strip()})") from exc
    else:
        raise UsageError(f"to= is a {type(to).__name__}; give a module, a state dict or a file")
    own, tensors = acting(whole), acting(start)
    check_shapes(own, tensors, "state to put back to")
    check_finite(tensors, "the state to put back to")
    if all(bool((own[n] == t.to(own[n].device)).all()) for n, t in tensors.items() if t.ndim > 1):
        raise UsageError(
            "every layer is already what it would be put back to; give another --to (to=)"
        )
    return tensors


def _snapshot(epoch: int | None, given: Opened) -> str:
    from planescope.training.run import Run

    if not _is_run(given):
        raise UsageError(f"--to {epoch} (to=): epochs are those of a run; give a module or a file")
    files = Run(given.source).snapshots
    wanted = min(files) if epoch is None else epoch
    if wanted not in files:
        near = min(files, key=lambda one: abs(one - wanted))
        raise UsageError(
            f"{given.source}: has no snapshot of epoch {epoch}; the nearest is of {near}"
        )
    return str(files[wanted])


def _at(
    bench: Bench, asked: float, curve: Sequence[float], *, repair: bool, on_try: OnTry | None
) -> tuple[list[Try], list[Try]]:
    """Try a size, then those of a curve."""
    sizes = [asked, *(one for one in dict.fromkeys(curve) if one != asked)]
    for one in sizes:
        check_size(bench.knife.way, one, bench.weights)
    count = len(bench.allocations) * (1 + repair)
    found: list[list[Try]] = []
    for number, one in enumerate(sizes):
        found.append(
            bench.tries(
                one, repair=repair, on_try=on_try, before=number * count, total=count * len(sizes)
            )
        )
        if bench.stopped:
            break
    return found[0], [each for tries in found[1:] for each in tries]


def _within(
    bench: Bench, budget: float, *, repair: bool, on_try: OnTry | None
) -> tuple[list[Try], list[Try]]:
    """Find by halves the smallest size whose loss is within a budget; with it, what was tried."""
    if not bench.table.of_classes:
        raise UsageError("the network's outputs are no classes: there is no loss to hold a budget")
    sizes = _sizes(bench)
    low, high, best = 0, len(sizes), -1
    tried: dict[int, list[Try]] = {}
    losses: dict[int, float] = {}
    count = len(bench.allocations) * (1 + repair)
    total = count * len(sizes).bit_length()
    while low < high and not bench.stopped:
        middle = (low + high) // 2
        tries = bench.tries(
            float(sizes[middle]), repair=repair, on_try=on_try, before=count * len(tried),
            total=total,
        )  # fmt: skip
        if not tries:
            break
        tried[middle] = tries
        found = bench.best(tries).rival.loss
        losses[middle] = math.inf if found is None else found
        if losses[middle] <= budget:
            high = best = middle
        else:
            low = middle + 1
    if best < 0:
        nearest = min(losses, key=lambda at: losses[at])
        what = "bits" if bench.knife.way == "bits" else "size"
        told = (
            f"the nearest is a loss of {losses[nearest]:.4g}, at {what} {float(sizes[nearest]):g}"
            if math.isfinite(losses[nearest])
            else "the network knows no more than chance on these examples"
        )
        raise UsageError(f"no {what} keeps the loss within {budget:g}; {told}")
    bench.notes.append("the size was chosen by the loss on the examples of the table")
    return tried.pop(best), [one for tries in tried.values() for one in tries]


def _sizes(bench: Bench) -> tuple[Fraction, ...]:
    if bench.knife.way == "bits":
        return _BITS
    least = least_share(bench.knife.way, bench.weights)
    return tuple(one for one in _SIZES if one >= least)


def _cost(
    bench: Bench, way: str, asked: float | None, curve: Sequence[float], *, repair: bool
) -> PlanCost:
    """Count the passes of all tries, and time one."""
    from planescope.criticality.plan.passage import Passage
    from planescope.criticality.resets.engine.devices import seconds_of_a_pass

    layers, every = len(bench.weights), len(bench.mending.anatomy.calls)
    checked, fitted = bench.taken.checked, bench.taken.fitted
    told = sum(batch.size for batch in bench.table.batches)
    sizes = len(_sizes(bench)).bit_length() if asked is None else 1 + len({*curve} - {asked})
    tries = sizes * len(bench.allocations) * (1 + repair)
    repaired = tries // 2 if repair else 0
    first = bench.taken.fit[0]
    goes_on = bool(repaired) and (
        Passage.of(bench.whole, bench.taken.fit, bench.mending.anatomy) is not None
    )
    # To look at inputs and network, and that a graph answers as the network does.
    looks = 2 + 2 * repaired * goes_on
    # A repair is judged as a whole, without each of its layers, and at the end.
    checks = 1 + tries + repaired * (every + 2) + 2 * layers
    if way in PUT_BACK:
        from planescope.criticality.plan.bench import MOST_PASSES

        checks += min(MOST_PASSES, layers * (layers + 1) // 2)
    fits = bench.mending.reconstruction.passes(repaired, goes_on=goes_on)
    examples = looks * first.size + checks * checked + fits * fitted + (1 + tries) * told
    return PlanCost(
        layers=layers,
        tries=tries,
        passes=math.ceil(looks + checks + fits + 1 + tries),
        examples=fitted + checked + told,
        seconds=seconds_of_a_pass(bench.whole, first) / first.size * examples,
    )
