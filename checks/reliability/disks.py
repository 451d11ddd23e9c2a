"""Disks that fill up under every command that writes, and while it works in temporary files.

Of each case is asked what `odd` asks, and that each file named for a result is the old one or
whole; with room again the same command makes its result, and a training that of an undisturbed one.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

from checks.reliability.odd import (
    SMALL,
    Args,
    Ended,
    Tally,
    contents,
    copy_run,
    lost,
    place_to_work,
    problems_of,
    without_privileges,
)
from checks.reliability.starting import Place, in_child, warm
from checks.reliability.trials import STUDY
from checks.reliability.whole import CHECKS

DISK_KB = 12 << 10
FREE_KB = (
    *(0, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 160, 200, 256, 320, 400, 512, 700, 1000, 1500),
    *(3000, 6000),
)
# What takes half a minute a case is tried with every third of these.
SLOW = ("study", "quickstart")
FEW = ("--examples", "8", "--layers", "features.0")


def _writes(prepared: Path) -> dict[str, Args]:
    """A command for each form of a result; what is at hand is read from elsewhere."""
    run = str(prepared / "run")
    good, begun = (
        str(prepared / "run" / "snapshots" / f"epoch-000{epoch}.safetensors") for epoch in (2, 0)
    )
    study = str(prepared / "study")
    ways = ("sensitivity", run, "--inputs", "digits", *FEW, "--ways", "prune:0.9")
    alone = ("predict", run, "--inputs", "digits", *FEW)
    put = ("repair", begun, "--reference", run, "--network", "lenet", "--examples", "8")
    smaller = ("plan", run, "--size", "0.5", "--examples", "8")
    measured = {
        f"measure {option} {suffix}": ("measure", good, option, f"out.{suffix}")
        for option, suffixes in {
            "--out": ("json", "csv", "parquet"),
            "--filters": ("npz", "csv", "parquet"),
            "--figure": ("png", "svg", "pdf"),
            "--card": ("md",),
        }.items()
        for suffix in suffixes
    }
    return measured | {
        "predict": ("predict", good, "--out", "out.json"),
        "predict RUN": (*alone, "--out", "out.csv", "--figure", "out.png"),
        "train": ("train", *SMALL, "--out", "run"),
        "train --loggers": ("train", *SMALL, "--loggers", "csv", "--out", "run"),
        "train --resume": ("train", "--resume", "--out", "run"),
        "reset": ("reset", "run", "--subset", "50"),
        "reset --rand": ("reset", "run", "--subset", "50", "--rand", "--draws", "3"),
        "reset --out": (
            *("reset", "run", "--subset", "50", "--out", "out.csv", "--figure", "out.png"),
        ),
        "relate": ("relate", run, "--draws", "99", "--out", "out.json"),
        "relate --figure": (
            *("relate", run, "--draws", "99", "--out", "out.parquet", "--figure", "out.pdf"),
        ),
        "sensitivity": (*ways, "--out", "out.json", "--figure", "out.svg"),
        "sensitivity --page": (*ways, "--curves", "out.png", "--page", "out.html"),
        "plan": (*smaller, "--out", "out.safetensors", "--table", "out.json"),
        "plan --page": (*smaller, "--out", "out.pt", "--figure", "out.pdf", "--page", "out.html"),
        "repair": (*put, "--out", "out.safetensors", "--table", "out.parquet"),
        "repair, .pth": (*put, "--out", "out.pth", "--table", "out.csv"),
        "diff": ("diff", begun, good, "--out", "out.csv", "--figure", "out.png"),
        "diff --page": ("diff", begun, good, "--out", "out.parquet", "--page", "out.html"),
        "figures": ("figures", good, "--out", "figures"),
        "figures of a study": ("figures", study, "--out", "figures", "--format", "svg"),
        "report": ("report", run, "--out", "out.html"),
        "report of a study": ("report", study, "--out", "out.html"),
        "report --watch": ("report", run, "--watch", "--out", "out.html"),
        "claims": ("claims", study, "--out", "claims"),
        "status": ("status", "run"),
        "study": ("study", "study.yaml", "--out", "study", "--workers", "1"),
        "quickstart": ("quickstart", "--out", "quick", "--epochs", "1"),
    }


# What makes temporary files of its own, or whose libraries do, with nothing but that disk full.
SCRATCH = (
    *("measure --out parquet", "measure --figure pdf", "predict RUN", "train", "reset --rand"),
    *("relate", "sensitivity --page", "plan", "repair", "diff --page", "figures", "report"),
    *("claims", "study"),
)


def disks(prepared: Path, *, quick: bool) -> Tally:
    """Every command that writes, on a disk with so much room, and again once there is more."""
    tally = Tally()
    if not quick:
        _make_study(prepared)
    for what, args in _writes(prepared).items():
        if quick and what not in ("measure --figure pdf", "train", "reset"):
            continue
        sizes = FREE_KB[1::6] if quick else FREE_KB[:: 3 if what in SLOW else 1]
        for free in sizes:
            if _case(prepared, what, args, free, tally):
                break
        else:
            if not quick:
                tally.fallen.append(f"{what}: never came to its end; more room is to be tried")
        _tell(what, tally, quick=quick)
    return tally


def scratch(prepared: Path, *, quick: bool) -> Tally:
    """Commands for whose temporary files there is no room, or little."""
    tally = Tally()
    if not quick:
        _make_study(prepared)
    writes = _writes(prepared)
    for what in ("reset --rand", "study") if quick else SCRATCH:
        for free in (4,) if quick else (0, 4, 64, 512):
            _case(prepared, what, writes[what], free, tally, temporary=True)
        _tell(what, tally, quick=quick)
    return tally


def _tell(what: str, tally: Tally, *, quick: bool) -> None:
    if not quick:  # an hour in all: what is known so far
        fallen = [each for each in tally.fallen if each.startswith(what)]
        print(f"  {what}: {tally.cases} cases so far", *fallen, sep="\n    ", flush=True)


def _case(
    prepared: Path, what: str, args: Args, free: int, tally: Tally, *, temporary: bool = False
) -> bool:
    """Run a command with so many KB of room, then with more; tell whether they were enough."""
    with _disk(temporary=temporary) as (place, disk):
        if ("run" in args and not what.startswith("train")) or what == "train --resume":
            copy_run(prepared / "run", place.work / "run", stopped=what == "train --resume")
        if "study.yaml" in args:
            (place.work / "study.yaml").write_text(STUDY, encoding="utf-8")
        targets = [place.work / each for each in args if each.startswith("out.")]
        if "out.md" in args:
            targets.append(place.work / "out.png")
        for target in targets:
            target.write_text("old")
        _fill(disk, free)
        before = contents(place.work)
        ended = _command(args, place)
        after = contents(place.work)
        problems = [*problems_of(ended), *lost(before, after, may_write=True)]
        problems += in_child(_halves, targets)
        if ended.status == 0 and any(path.read_bytes() == b"old" for path in targets):
            problems.append("status 0, and a result is not there")
        if ended.status != 0:
            (disk / "filler").unlink()
            again = args
            if what.startswith("train") and (place.work / "run" / "config.yaml").exists():
                again = (*args, *(() if "--resume" in args else ("--resume",)))
            if what == "study":
                again = (*args, "--retry-failed")
            second = _command(again, place)
            if second.status != 0:
                problems.append(f"again: {second.status}: {second.complained.strip()[-300:]}")
        if what.startswith("train") and not problems:
            problems += _differences(prepared / "run", place.work / "run")
        if what == "study" and not problems and (prepared / "study").exists():
            runs = [path.name for path in (prepared / "study" / "runs").iterdir()]
            for run in runs:
                parts = (folder / "study" / "runs" / run for folder in (prepared, place.work))
                problems += _differences(*parts)
        left = [path.name for path in place.temporary.iterdir() if path.name != "filler"]
        if left := [name for name in left if not name.startswith(THEIRS)]:
            problems.append(f"left {left} among temporary files")
        where = "for temporary files" if temporary else "free"
        tally.count(f"{what}, {free} KB {where}", problems, ended)
        return ended.status == 0


# What Dask and torch leave in the temporary folder after a quiet run.
THEIRS = ("dask-scratch-space", "torchinductor", "pymp-", "torch_")


def _halves(targets: list[Path]) -> list[str]:
    """Say which of the files named for results is neither the old one nor whole."""
    problems = []
    for path in targets:
        if path.read_bytes() == b"old":
            continue
        try:
            CHECKS[path.suffix](path)
        except Exception as exc:
            problems.append(f"{path.name} is half written: {type(exc).__name__}: {exc}")
    return problems


def _make_study(prepared: Path) -> None:
    """Make a study as it is where nothing disturbs it, once."""
    if (prepared / "study").exists():
        return
    with place_to_work() as place:
        (prepared / "study.yaml").write_text(STUDY, encoding="utf-8")
        args = ("study", str(prepared / "study.yaml"), "--out", str(prepared / "study"))
        started = warm((*args, "--workers", "1"), place, first=_forking)
        if (status := started.wait(600)) != 0:
            raise RuntimeError(f"{args}: {status}: {place.complained}")


def _command(args: Args, place: Place) -> Ended:
    """Run a command to its end, or kill it after three minutes."""
    started = warm(args, place, first=_forking)
    status = started.wait(180)
    if status is None:
        started.kill()
    return Ended(status=status, complained=place.complained)


def _forking() -> None:
    """Let Dask fork its worker, which then imports nothing anew."""
    import dask

    without_privileges()
    dask.config.set({"distributed.worker.multiprocessing-method": "fork"})


def _differences(one: Path, other: Path) -> Iterator[str]:
    for path in sorted((one / "snapshots").iterdir()):
        found = other / "snapshots" / path.name
        if not found.exists() or found.read_bytes() != path.read_bytes():
            yield f"{path.name} differs from that of the undisturbed run"


def _fill(folder: Path, free_kb: int) -> None:
    about = os.statvfs(folder)
    room = about.f_bavail * about.f_frsize
    (folder / "filler").write_bytes(b"\0" * (room - free_kb * 1024))


@contextlib.contextmanager
def _disk(*, temporary: bool = False) -> Iterator[tuple[Place, Path]]:
    """A place to work, and which of its folders is a file system of its own, of `DISK_KB`."""
    with place_to_work() as place:
        disk = place.temporary if temporary else place.work
        options = ("-t", "tmpfs", "-o", f"size={DISK_KB}k", "tmpfs")
        subprocess.run(["mount", *options, str(disk)], check=True)  # noqa: S607
        try:
            yield place, disk
        finally:
            subprocess.run(["umount", "--lazy", str(disk)], check=True)  # noqa: S607


def can_mount() -> bool:
    """Tell whether this process may mount file systems, as root may."""
    try:
        with _disk():
            return True
    except (subprocess.CalledProcessError, FileNotFoundError):
        return False


SWEEPS = {"disks": disks, "scratch": scratch}
