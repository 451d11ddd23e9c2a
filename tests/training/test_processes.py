"""Trackers of several processes: a failure of one is told on all, none waits, no training changes.

Two processes of gloo run every case, one after the other: to start them takes longer than that.
"""

import json
import warnings

import pytest
import torch
from test_tracker import START, examples, network
from torch import nn

import planescope as ps

# FSDP2 asks the CPU for streams, which torch has from 2.7 on.
SHARDED = (*(["fully_shard"] if hasattr(torch.cpu.Stream, "record_event") else []), "flat")
STEPS, BROKEN = 3, 1


def shared(kind):
    """A network, of each part of which either process has a half; `ddp` has copies."""
    model = network()
    if kind == "ddp":
        return nn.parallel.DistributedDataParallel(model)
    if kind == "flat":
        from torch.distributed.fsdp import FullyShardedDataParallel

        return FullyShardedDataParallel(model, device_id=torch.device("cpu"), use_orig_params=True)
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (2,))
    fully_shard(model[4], mesh=mesh)
    return fully_shard(model, mesh=mesh)


def parts(model):
    root = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
    return root._modules.get("_fsdp_wrapped_module", root)


# --- what breaks on one of them, and how it is mended


def a_forward_in_the_middle(model):
    def fails(module, _):
        if not module.training:
            raise ArithmeticError("in the middle")

    return model, parts(model)[4].register_forward_pre_hook(fails).remove


def a_layer_that_is_gone(model):
    held, layer = parts(model), parts(model)[4]
    held[4] = nn.Identity()
    return model, lambda: held.__setitem__(4, layer)


def another_network(model):
    return nn.Sequential(nn.ReLU()), lambda: None


def inputs_that_cannot_be_had(model):
    UNPACK["fails"] = True
    return model, lambda: UNPACK.update(fails=False)


UNPACK = {"fails": False}


def unpack(batch):
    if UNPACK["fails"]:
        raise MemoryError("no room")
    return batch["pixels"], None


BREAKS = (
    a_forward_in_the_middle,
    a_layer_that_is_gone,
    another_network,
    inputs_that_cannot_be_had,
)


def trained(rank, kind, tracker=None, break_it=None):
    """Train, with updates between the gradients and the step; give the loss and what was told."""
    model = shared(kind)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    images, labels = (part[rank::2] for part in examples())
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for step in range(STEPS):
            optimiser.zero_grad()
            loss = nn.functional.cross_entropy(model(images), labels)
            loss.backward()
            measured, mend = model, lambda: None
            if break_it is not None and step == BROKEN:
                measured, mend = break_it(model)
            if tracker is not None:
                tracker.update(measured, step)
            mend()
            optimiser.step()
    return loss.item(), [str(each.message) for each in told if "planescope" in str(each.message)]


def data():
    return [{"pixels": examples()[0]}]


def found(tracker):
    return [
        (step, m.layers[0].negative_mass, m.layers[0].activation_rate, list(m.notes))
        for step, m in tracker.measurements
    ]


# --- the cases


def untouched(rank, kind):
    tracker = ps.Tracker(every=1, data=data(), unpack=unpack)
    return {
        "alone": trained(rank, kind)[0],
        "tracked": trained(rank, kind, tracker)[0],
        "rows": found(tracker),
    }


def broken(rank, kind, break_it, on):
    tracker = ps.Tracker(every=1, data=data(), unpack=unpack)
    loss, told = trained(rank, kind, tracker, break_it if rank == on else None)
    return {"loss": loss, "told": told, "rows": found(tracker)}


def other_numbers_of_batches(rank, kind):
    tracker = ps.Tracker(every=1, data=data() * (1 + rank), unpack=unpack)
    try:
        tracker.update(shared(kind), 0)
    except ps.UsageError as exc:
        return {"said": str(exc)}
    return {"rows": found(tracker)}


def strict(rank, kind):
    tracker = ps.Tracker(every=1, data=data(), unpack=unpack, errors="raise")
    try:
        trained(rank, kind, tracker, a_forward_in_the_middle if rank == 1 else None)
    except ps.UsageError as exc:
        return {"said": str(exc)}
    return {}


class Gathers(nn.Module):
    """A network whose forward takes all processes, as contrastive losses do."""

    def __init__(self):
        super().__init__()
        self.inner = network()

    def forward(self, images):
        out = self.inner(images)
        torch.distributed.all_reduce(out)
        return out


def a_forward_that_takes_all(rank, _):
    tracker = ps.Tracker(every=1, data=examples()[0])
    try:
        tracker.update(nn.parallel.DistributedDataParallel(Gathers()), 0)
    except ps.UsageError as exc:
        return {"said": str(exc)}
    return {}


def cases():
    for kind in (*SHARDED, "ddp"):
        yield f"untouched {kind}", untouched, (kind,)
        for break_it in BREAKS:
            for on in (0, 1):
                yield f"{break_it.__name__} {kind} {on}", broken, (kind, break_it, on)
        if kind != "ddp":
            yield f"strict {kind}", strict, (kind,)
    if "fully_shard" in SHARDED:
        yield "batches", other_numbers_of_batches, ("fully_shard",)
    yield "talks", a_forward_that_takes_all, ("ddp",)


def _run(rank, folder):
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder / 'rendezvous'}", rank=rank, world_size=2
    )
    given = {}
    for name, case, args in cases():
        given[name] = case(rank, *args)
        torch.distributed.barrier()
    (folder / f"{rank}.json").write_text(json.dumps(given), encoding="utf-8")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """What each process got of each case."""
    folder = tmp_path_factory.mktemp("processes")
    torch.multiprocessing.start_processes(_run, (folder,), nprocs=2, start_method=START)
    return [json.loads((folder / f"{rank}.json").read_text(encoding="utf-8")) for rank in (0, 1)]


@pytest.mark.slow
@pytest.mark.parametrize("kind", [*SHARDED, "ddp"])
def test_a_training_with_inputs_ends_at_the_same_bits_as_without(given, kind):
    for own in given:
        assert own[f"untouched {kind}"]["tracked"] == own[f"untouched {kind}"]["alone"]
    rows, others = (own[f"untouched {kind}"]["rows"] for own in given)
    assert others == []
    assert [step for step, *_ in rows] == list(range(STEPS))
    alone = given[0]["untouched ddp"]["rows"]
    for (_, mass, rate, notes), (_, mass_alone, rate_alone, _) in zip(rows, alone, strict=True):
        assert (mass, rate) == (mass_alone, pytest.approx(rate_alone, abs=1e-3))
        assert not any("hooks" in note for note in notes)  # those that share out change nothing


@pytest.mark.slow
@pytest.mark.parametrize("on", [0, 1])
@pytest.mark.parametrize("break_it", BREAKS)
@pytest.mark.parametrize("kind", SHARDED)
def test_a_failure_of_one_process_is_a_row_of_nulls_and_ends_nothing(given, kind, break_it, on):
    name = f"{break_it.__name__} {kind} {on}"
    first, second = (own[name] for own in given)
    for own in given:
        assert own[name]["loss"] == own[f"untouched {kind}"]["alone"]
    nulls = [(step, mass is None, rate is None) for step, mass, rate, _ in first["rows"]]
    assert nulls == [(step, step == BROKEN, step == BROKEN) for step in range(STEPS)]
    (told,) = first["told"]
    assert f"could not measure at step {BROKEN}, and goes on: " in told
    assert on == 0 or "on the process of rank 1: " in told or "went different ways" in told
    assert second == {"loss": second["loss"], "told": [], "rows": []}


@pytest.mark.slow
@pytest.mark.parametrize("on", [0, 1])
@pytest.mark.parametrize("break_it", BREAKS)
def test_of_copies_only_a_failure_where_they_are_measured_costs_a_row(given, break_it, on):
    name = f"{break_it.__name__} ddp {on}"
    for own in given:
        assert own[name]["loss"] == own["untouched ddp"]["alone"]
    nulls = [(step, mass is None) for step, mass, _, _ in given[0][name]["rows"]]
    if break_it is a_layer_that_is_gone and on == 0:  # what is left of it does not take the data
        assert nulls == [(0, False), (1, True), (2, False)]
    else:
        assert nulls == [(step, on == 0 and step == BROKEN) for step in range(STEPS)]
    assert given[1][name]["rows"] == []


@pytest.mark.slow
@pytest.mark.parametrize("kind", SHARDED)
def test_with_errors_raise_all_processes_raise(given, kind):
    for own in given:
        assert "ArithmeticError: in the middle" in own[f"strict {kind}"]["said"]


@pytest.mark.slow
@pytest.mark.skipif("fully_shard" not in SHARDED, reason="as FSDP2 does")
def test_processes_with_other_numbers_of_batches_are_told_so(given):
    for own in given:
        assert "the processes went different ways: " in own["batches"]["said"]


@pytest.mark.slow
def test_a_forward_that_takes_all_processes_is_refused_and_not_waited_for(given):
    assert "its forward takes all processes; leave data= out" in given[0]["talks"]["said"]
    assert given[1]["talks"] == {}
