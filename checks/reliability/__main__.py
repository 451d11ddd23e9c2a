"""``python -m checks.reliability kills``, ``together``, ``odd`` and ``hostile``: see ``--help``."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

from checks.reliability import disks, odd
from checks.reliability import hostile as attacks
from checks.reliability.kills import kill
from checks.reliability.odd import prepared_run
from checks.reliability.together import TASKS, together
from checks.reliability.trials import TRIALS

ODD = odd.SWEEPS | disks.SWEEPS


def main() -> None:
    """Parse, run, print; status 1 where something was lost."""
    parser = argparse.ArgumentParser(prog="python -m checks.reliability")
    tasks = parser.add_subparsers(dest="task", required=True)
    kills = tasks.add_parser("kills", help="SIGKILL, look at every file, go on, compare")
    kills.add_argument("--command", choices=TRIALS, action="append", help="default: all")
    kills.add_argument("--at", choices=["moments", "operations"], default="moments")
    kills.add_argument("--moments", type=int, default=100)
    kills.add_argument("--cold", action="store_true", help="imports included, as a user's process")
    kills.add_argument("--seed", type=int, default=0)
    kills.add_argument("--folder", type=Path, help="default: a temporary one")
    several = tasks.add_parser("together", help="several processes at once")
    # Of no argument Python 3.11 asks whether [] is one of the choices.
    several.add_argument("what", choices=[*TASKS, []], nargs="*", help=f"{', '.join(TASKS)}")
    several.add_argument("--folder", type=Path, help="default: a temporary one")
    strange = tasks.add_parser("odd", help="full disks, rights, pipes and the like")
    strange.add_argument("what", choices=[*ODD, []], nargs="*", help="default: all")
    strange.add_argument("--quick", action="store_true", help="some cases of each")
    attacked = tasks.add_parser("hostile", help="folders, names and signals of an attacker")
    attacked.add_argument(
        "what", choices=[*attacks.SWEEPS, []], nargs="*", help=f"{', '.join(attacks.SWEEPS)}"
    )
    attacked.add_argument("--quick", action="store_true", help="some cases of each")
    attacked.add_argument(
        "--share", type=float, default=1, help="of records and links, so many of the cases, drawn"
    )
    args = parser.parse_args()
    done = {"kills": _kills, "together": _together, "odd": _odd, "hostile": _hostile}
    raise SystemExit(done[args.task](args))


def _use_one_thread() -> None:
    """Begin anew, where NumPy was imported, as it is by now, with more threads than one."""
    if os.environ.get("OMP_NUM_THREADS") != "1":
        os.environ["OMP_NUM_THREADS"] = "1"
        os.execv(sys.executable, [sys.executable, "-m", "checks.reliability", *sys.argv[1:]])  # noqa: S606


def _hostile(args: argparse.Namespace) -> bool:
    _use_one_thread()
    fell = False
    for name, tally in attacks.hostile(
        args.what or list(attacks.SWEEPS), quick=args.quick, share=args.share
    ):
        summary = f"{name}: {tally.cases} cases, {len(tally.fallen)} fell"
        print(summary, *tally.fallen, sep="\n  ", flush=True)
        fell |= bool(tally.fallen)
    return fell


def _odd(args: argparse.Namespace) -> bool:
    _use_one_thread()
    fell = False
    with prepared_run() as prepared:
        for name in args.what or ODD:
            if name in disks.SWEEPS and not disks.can_mount():
                print(
                    f"{name}: left out, as nothing may be mounted here; unshare -rm makes it "
                    "possible"
                )
                continue
            tally = ODD[name](prepared, quick=args.quick)
            summary = f"{name}: {tally.cases} cases, {len(tally.fallen)} fell"
            print(summary, *tally.fallen, sep="\n  ", flush=True)
            fell |= bool(tally.fallen)
    return fell


def _together(args: argparse.Namespace) -> bool:
    lost = False
    for what in args.what or TASKS:
        with tempfile.TemporaryDirectory(prefix="together-") as temporary:
            outcome = together(what, (args.folder or Path(temporary)) / what)
        print(outcome, flush=True)
        lost |= bool(outcome.problems)
    return lost


def _kills(args: argparse.Namespace) -> bool:
    lost = False
    for command in args.command or TRIALS:
        outcome = kill(
            command,
            at=args.at,
            moments=args.moments,
            is_cold=args.cold,
            seed=args.seed,
            folder=args.folder,
        )
        print(outcome, flush=True)
        lost |= bool(outcome.problems)
    return lost


if __name__ == "__main__":
    main()
