"""Fuzz some targets, or all: ``python -m checks.fuzz TARGET... --cases N --seed S``."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

# Before anything imports the libraries that start threads.
for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "ARROW_IO_THREADS"):
    os.environ[variable] = "1"
# Arrow's other pools reserve addresses that the limit on memory would count.
os.environ["ARROW_DEFAULT_MEMORY_POOL"] = "system"

from checks.fuzz import campaign  # noqa: E402
from checks.fuzz.campaign import Outcome  # noqa: E402
from checks.fuzz.targets import TARGETS, preload  # noqa: E402


def main() -> int:
    """Fuzz, print a line a target, and give 1 if there was a fault."""
    parser = argparse.ArgumentParser(prog="python -m checks.fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(TARGETS)}")
    parser.add_argument("--cases", type=int, default=100_000, help="for each target")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--case", type=int, help="this case alone")
    parser.add_argument("--input", type=Path, help="a folder of files to read as a case")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path, default=Path("fuzz-failures"))
    parser.add_argument("--places", action="store_true", help="show which lines refused how often")
    options = parser.parse_args()
    targets = options.targets or list(TARGETS)
    if unknown := set(targets) - TARGETS.keys():
        parser.error(f"no such target: {', '.join(sorted(unknown))}")
    preload()
    clean = True
    with tempfile.TemporaryDirectory() as folder:
        campaign.make_seeds(Path(folder), targets)
        for target in targets:
            outcome = _fuzz(target, Path(folder) / target, options)
            clean &= not outcome.counts
    return 0 if clean else 1


def _fuzz(target: str, folder: Path, options: argparse.Namespace) -> Outcome:
    seeds = campaign.load_seeds(folder)
    cases = range(options.cases) if options.case is None else [options.case]
    given = None
    if options.input is not None:
        given, cases = campaign.load_seeds(options.input.parent)[options.input.name], [0]
    began = time.perf_counter()
    outcome = campaign.run(
        target,
        TARGETS[target],
        seeds,
        cases=cases,
        seed=options.seed,
        workers=options.workers,
        files=None if given is None else lambda _: given,
        on_progress=_progress if sys.stderr.isatty() else None,
    )
    print(_summary(outcome, time.perf_counter() - began), flush=True)
    for fault in outcome.faults:
        command = f"python -m checks.fuzz {target} --seed {options.seed} --case {fault.case}"
        about = f"{fault.kind}\n{command}\n\n{fault.detail}"
        kept = options.out / f"{target}-{options.seed}-{fault.case}"
        if given is None:
            files = campaign.case_files(target, seeds, options.seed, fault.case)
            campaign.save_case(kept, files, about)
        print(f"  {fault.kind}\n    {command}    # or --input {kept}")
        if options.case is not None or given is not None:
            print(fault.detail)
    for kind, count in outcome.counts.items():
        print(f"  {count} cases: {kind}")
    if options.places:
        print(json.dumps(dict(outcome.refusals.most_common()), indent=2))
    return outcome


def _progress(outcome: Outcome) -> None:
    print(f"\r{outcome.target}: {outcome.cases} cases ", end="", file=sys.stderr, flush=True)


def _summary(outcome: Outcome, wall: float) -> str:
    slowest, at = outcome.slowest
    memory, heaviest = outcome.memory
    return (
        f"{outcome.target}: {outcome.cases} cases, {outcome.results} results, "
        f"{sum(outcome.refusals.values())} refusals at {len(outcome.refusals)} places, "
        f"{sum(outcome.counts.values())} faults; {outcome.seconds:.0f} s of processor time "
        f"({outcome.cases / max(outcome.seconds, 1e-9):.0f} a second), {wall:.0f} s in all; "
        f"slowest {slowest:.2f} s (case {at}), most memory {memory / 2**20:.0f} MiB "
        f"(case {heaviest})"
    )


if __name__ == "__main__":
    sys.exit(main())
