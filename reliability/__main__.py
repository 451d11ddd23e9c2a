"""``python -m reliability kills`` and ``together``: see ``--help``."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from reliability.kills import kill
from reliability.together import TASKS, together
from reliability.trials import TRIALS


def main() -> None:
    """Parse, run, print; status 1 where something was lost."""
    parser = argparse.ArgumentParser(prog="python -m reliability")
    tasks = parser.add_subparsers(dest="task", required=True)
    kills = tasks.add_parser("kills", help="SIGKILL, look at every file, go on, compare")
    kills.add_argument("--command", choices=TRIALS, action="append", help="default: all")
    kills.add_argument("--at", choices=["moments", "operations"], default="moments")
    kills.add_argument("--moments", type=int, default=100)
    kills.add_argument("--cold", action="store_true", help="imports included, as a user's process")
    kills.add_argument("--seed", type=int, default=0)
    kills.add_argument("--folder", type=Path, help="default: a temporary one")
    several = tasks.add_parser("together", help="several processes at once")
    several.add_argument("what", choices=[*TASKS, []], nargs="*", help="default: all")
    several.add_argument("--folder", type=Path, help="default: a temporary one")
    args = parser.parse_args()
    raise SystemExit(_kills(args) if args.task == "kills" else _together(args))


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
