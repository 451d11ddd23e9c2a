"""Several processes at once: on one file, on one run, and training one network together."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from checks.reliability.kills import a_place, import_imports_of, renew
from checks.reliability.starting import FORK, Place, Started, import_all, in_child, warm
from checks.reliability.trials import MEASURE, TRAIN, network_file
from checks.reliability.whole import damaged, differences, drafts

# Both are to be a run's own; with another rate the bits are others.
RATES = ("0.02", "0.01")
EXISTS = "exists; go on with --resume"
TRAINS = "another process is training this run"
NONE = "there is no run to resume"
ENDED = ""  # the second came when the first had ended, and had nothing to do


@dataclass
class Outcome:
    """A trial, as a sentence, and all that was not as it should be."""

    tried: str = ""
    problems: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lost = f"{len(self.problems)} PROBLEMS" if self.problems else "nothing lost"
        return "\n".join([*self.problems, f"{self.tried}; {lost}"])


def measures(folder: Path, *, count: int = 50, forms: Sequence[str] = ("json",)) -> Outcome:
    """Start `measure` many times at once, of one file and with one target for all.

    The target is read all the while: it must be absent or whole.
    """
    outcome, looks = Outcome(), 0
    place = a_place(folder)
    network_file(place)
    for form in forms:
        args = [*MEASURE, "--json", "--out", f"table.{form}"]
        quiet = _finished([_measure(args, place)])[0]
        target = place.work / f"table.{form}"
        whole = target.read_bytes()
        target.unlink()
        processes = [_measure(args, place) for _ in range(count)]
        while any(process.poll() is None for process in processes):
            looks += 1
            if target.exists() and target.read_bytes() != whole:
                outcome.problems.append(f"{target.name}: is not whole")
            time.sleep(0.002)
        for found in _finished(processes):
            if found != quiet:
                outcome.problems.append(f"a process differs: {found}")
        if target.read_bytes() != whole or drafts(place.work):
            outcome.problems.append(f"{target.name}: {drafts(place.work)}")
    outcome.tried = (
        f"{count} processes of measure at once, --out {' and '.join(forms)}: the target was read "
        f"{looks} times meanwhile"
    )
    return outcome


def _measure(args: Sequence[str], place: Place) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "planescope", *args],
        cwd=place.work,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _finished(processes: Sequence[subprocess.Popen[str]]) -> list[tuple[int, str, str]]:
    talk = [process.communicate() for process in processes]
    return [
        (process.returncode, out, err) for process, (out, err) in zip(processes, talk, strict=True)
    ]


def trainings(folder: Path, *, rounds: int = 12, seed: int = 0) -> Outcome:
    """Start two trainings on one folder, the second some moment after the first.

    They have different learning rates, or the second has --resume. One must train as if it were
    alone, and the other be refused with a sentence.
    """
    outcome = Outcome()
    here = a_place(folder / "here")
    template = a_place(folder / "template")
    import_imports_of([TRAIN], here, template)
    quiet = {}
    for rate in RATES:
        renew(here, template)
        began = time.monotonic()
        if _train(rate, here).wait():
            raise RuntimeError(here.complained)
        seconds = time.monotonic() - began
        quiet[rate] = Place(here.path.rename(folder / f"quiet-{rate}"))
    refused = dict.fromkeys((EXISTS, TRAINS, NONE, ENDED), 0)
    rng = random.Random(seed)  # noqa: S311
    for number in range(rounds):
        renew(here, template)
        other = a_place(folder / "other")
        is_resumed = bool(number % 2)
        first = _train(RATES[0], here)
        # To be the first on a new folder is settled in the first half second.
        time.sleep(rng.uniform(0, seconds if is_resumed else 0.5))
        second = _train(RATES[0 if is_resumed else 1], here, other, resume=is_resumed)
        statuses = [first.wait(), second.wait()]
        problem, sentence = _settled(statuses, here, other, quiet, is_resumed=is_resumed)
        if problem:
            outcome.problems.append(f"round {number}: {problem}")
        else:
            refused[sentence] += 1
    told = ", ".join(
        f"{count} times {sentence or 'nothing was left to do'!r}"
        for sentence, count in refused.items()
    )
    outcome.tried = f"two trainings on one folder, {rounds} rounds: {told}"
    return outcome


def _train(rate: str, place: Place, other: Place | None = None, *, resume: bool = False) -> Started:
    """Start a training in a place; what it prints goes to another one, if it is the second."""
    args = (*TRAIN, "--epochs", "20", "--learning-rate", rate, *(["--resume"] if resume else []))
    return warm(args, place, printed=other)


def _settled(
    statuses: Sequence[int | None],
    here: Place,
    other: Place,
    quiet: Mapping[str, Place],
    *,
    is_resumed: bool,
) -> tuple[str, str]:
    """Say what is wrong after two trainings, and with which sentence one was refused, if it was."""
    talk = [here.complained, other.complained]
    if statuses == [0, 0] and is_resumed and talk == ["", ""]:
        winner, sentence = 0, ENDED
    else:
        if sorted(statuses, key=str) != [0, 2]:
            return f"they ended with {statuses}: {talk}", ""
        winner = statuses.index(0)
        said = talk[1 - winner]
        sentence = next((each for each in (EXISTS, TRAINS, NONE) if each in said), ENDED)
        if talk[winner] or said.count("\n") != 1 or sentence == ENDED:
            return f"they said {talk}", ""
    rate = RATES[winner if not is_resumed else 0]
    problems = in_child(damaged, here.work) + in_child(differences, quiet[rate].work, here.work)
    problems += map(str, drafts(here.work))
    return "; ".join(problems), sentence


def trackers(folder: Path, *, processes: int = 4) -> Outcome:
    """Track one network that several processes train together, over gloo.

    The table of the first is to be, to the bit, that of one process that sees the same weights;
    and nearly that of one process which trains alone, with all batches together.
    """
    a_place(folder)
    import_all(["planescope", "planescope.training.tracker.tracker", "torch.nn.parallel", "pandas"])
    workers = [
        FORK.Process(target=_join, args=(folder, rank, processes)) for rank in range(processes)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    outcome = Outcome()
    outcome.problems += [
        f"process {rank} ended with {worker.exitcode}"
        for rank, worker in enumerate(workers)
        if worker.exitcode
    ]
    updates = 0
    if not outcome.problems:
        updates, outcome.problems = in_child(_replayed, folder)
    outcome.tried = (
        f"a tracker in {processes} processes over gloo, {updates} updates: its table against that "
        "of one process, to the bit with the same weights, to 1e-4 where that trained alone"
    )
    return outcome


STEPS, SHARE = 6, 4


def _network() -> Any:
    import torch
    from torch import nn

    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 4),
    )


def _tracked(
    model: Any,
    share: Callable[[Any], Any],
    batch: int,
    after: Callable[[int], None] = lambda _: None,
) -> Any:
    """Train, each process with its share of a batch, and track each step."""
    import torch

    import planescope as ps

    generator = torch.Generator().manual_seed(0)
    images = torch.randn(STEPS * batch, 3, 8, 8, generator=generator).split(batch)
    labels = (torch.arange(STEPS * batch) % 4).split(batch)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    tracker = ps.Tracker(every=1, kinds="all")
    tracker.update(model, 0)
    after(0)
    for step, (inputs, wanted) in enumerate(zip(images, labels, strict=True), start=1):
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(model(share(inputs)), share(wanted)).backward()
        optimiser.step()
        tracker.update(model, step)
        after(step)
    return tracker


def _join(folder: Path, rank: int, processes: int) -> None:
    import torch

    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder / 'rendezvous'}",
        rank=rank,
        world_size=processes,
    )
    model = _network()

    def keep(step: int) -> None:
        if rank == 0:
            torch.save(model.state_dict(), folder / f"{step}.pt")

    tracker = _tracked(
        torch.nn.parallel.DistributedDataParallel(model),
        lambda whole: whole[rank::processes],
        SHARE * processes,
        keep,
    )
    if rank == 0:
        tracker.save(folder / "table.csv")
        (folder / "processes").write_text(json.dumps(processes))
    assert bool(tracker.measurements) == (rank == 0)
    torch.distributed.destroy_process_group()


def _replayed(folder: Path) -> tuple[int, list[str]]:
    """Count the updates, and say what differs from one process's."""
    import pandas as pd
    import torch

    import planescope as ps

    torch.set_num_threads(1)
    problems = []
    replay, model = ps.Tracker(every=1, kinds="all"), _network()
    for step in range(STEPS + 1):
        model.load_state_dict(torch.load(folder / f"{step}.pt", weights_only=True))
        replay.update(model, step)
    replay.save(folder / "replay.csv")
    if (folder / "replay.csv").read_bytes() != (folder / "table.csv").read_bytes():
        problems.append("the table is not that of one process that sees the same weights")
    processes = json.loads((folder / "processes").read_text())
    alone = _tracked(_network(), lambda whole: whole, SHARE * processes)
    alone.save(folder / "alone.csv")
    mine, its = (pd.read_csv(folder / f"{name}.csv") for name in ("table", "alone"))
    problems += [
        f"{name} is not that of one process that trains alone"
        for name in ("negative_mass", "mean_cosine", "l2", "linf")
        if not np.allclose(mine[name], its[name], rtol=1e-4, atol=1e-6, equal_nan=True)
    ]
    return mine["step"].nunique(), problems


def together(task: str, folder: Path) -> Outcome:
    """One of `TASKS`, with what it needs at full length."""
    shutil.rmtree(folder, ignore_errors=True)
    return TASKS[task](folder)


TASKS: Mapping[str, Callable[[Path], Outcome]] = {
    "measures": lambda folder: measures(folder, forms=("json", "csv", "parquet")),
    "trainings": trainings,
    "trackers": trackers,
}
