"""Folders and files as they should not be, given to every command; disks are in `disks`.

Of each case it is asked: did the command end by itself, with a status that it may have, and with
one sentence if not with a result? Is every file that was there before still there, and whole? Was
anything half-made left behind? With room on the disk again, does the same command make the same?
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from checks.reliability.starting import Place, import_all, warm

# A busy machine takes some seconds for figures; what waits for a pipe waits for ever.
HANG_S = 60.0
SPARSE_BYTES = 10 << 30
DRAFTS = (".planescope-", ".tmp")
SMALL = (
    "--epochs", "2", "--examples", "128", "--classes", "2", "--width", "0.5", "--threads", "1",
    "--accelerator", "cpu", "--snapshots-until", "2",
)  # fmt: skip
# What these import lies in the first process, so that a case takes a fraction of a second.
MODULES = (
    "planescope.cli.app", "planescope.measurement.measure", "planescope.training.recording",
    "planescope.training.task", "planescope.data.load", "planescope.criticality.resets",
    "planescope.criticality.relation.relate", "planescope.figures",
    "planescope.figures.report.watch", "planescope.study.work.make",
    "planescope.study.claims.claims",
    "planescope.criticality.prediction", "planescope.criticality.sensitivity.job",
    "planescope.criticality.plan", "planescope.measurement.diff", "planescope.cli.tables",
    "matplotlib.backends.backend_agg",
    "matplotlib.backends.backend_pdf", "matplotlib.backends.backend_svg", "pandas",
    "pyarrow.parquet", "rich.table", "filelock", "yaml", "jinja2",
)  # fmt: skip

Args = tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Ended:
    """The end of a command; status None where it had to be killed."""

    status: int | None
    complained: str


@dataclass
class Tally:
    """The number of cases of a kind, and those that fell."""

    cases: int = 0
    fallen: list[str] = field(default_factory=list)

    def count(self, name: str, problems: Sequence[str], ended: Ended) -> None:
        """Take in a case."""
        self.cases += 1
        if problems:
            self.fallen.append(f"{name}: {', '.join(problems)}: {ended.complained.strip()[-500:]}")


def problems_of(ended: Ended) -> Iterator[str]:
    """Say what is wrong with the way a command ended."""
    if ended.status is None:
        yield f"still ran after {HANG_S:g} s"
    elif ended.status not in (0, 1, 2):
        yield f"status {ended.status}"
    elif ended.status and ended.complained.count("\n") != 1:
        yield f"{ended.complained.count(chr(10))} lines"
    elif ended.status and not ended.complained.startswith("planescope: "):
        yield "no sentence of ours"
    if "Traceback" in ended.complained:
        yield "a traceback"


def contents(folder: Path) -> dict[str, str]:
    """Return the files of a folder, as digests by name."""
    found = {}
    for path in sorted(folder.rglob("*")):
        about = path.lstat()
        name = str(path.relative_to(folder))
        if stat.S_ISREG(about.st_mode) and about.st_size < SPARSE_BYTES:
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        else:
            found[name] = f"{stat.S_IFMT(about.st_mode)} {about.st_size}"
    return found


def lost(before: Mapping[str, str], after: Mapping[str, str], *, may_write: bool) -> Iterator[str]:
    """Say what is gone or changed though nothing was to be written, and which drafts were left."""
    for name, digest in before.items():
        if name not in after:
            yield f"{name} is gone"
        elif not may_write and after[name] != digest:
            yield f"{name} changed"
    for name in after.keys() - before.keys():
        if any(part.startswith(DRAFTS) for part in Path(name).parts):
            yield f"{name} was left behind"


def without_privileges() -> None:
    """Let rights on files hold for this process too, where it is root's."""
    libc = ctypes.CDLL(None, use_errno=True)
    head = (ctypes.c_uint32 * 2)(0x20080522, 0)
    sets = (ctypes.c_uint32 * 6)()
    if os.geteuid() == 0 and libc.capget(head, sets) == 0:
        for i in (0, 1):  # effective and permitted, of the first 32: dac_override, dac_read_search
            sets[i] &= ~0b110
        if libc.capset(head, sets) != 0:
            raise OSError(ctypes.get_errno(), "capset")


def _first(stdin: str) -> None:
    without_privileges()
    with Path(stdin).open("rb") as file:
        os.dup2(file.fileno(), 0)


def command(args: Sequence[str], place: Place, *, stdin: str = os.devnull) -> Ended:
    """Run a command to its end, or kill it."""
    started = warm(args, place, first=partial(_first, stdin))
    status = started.wait(HANG_S)
    if status is None:
        started.kill()
    return Ended(status=status, complained=place.complained)


# --- files ---------------------------------------------------------------------------------------


def _sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(SPARSE_BYTES)


def _locked(path: Path) -> None:
    path.write_bytes(b"epochs: 1\n")
    path.chmod(0)


ODD: dict[str, Callable[[Path], None]] = {
    "empty": lambda path: path.write_bytes(b"") and None,
    "sparse": _sparse,
    "loop": lambda path: path.symlink_to(path.name),
    "gone": lambda path: path.symlink_to("nowhere"),
    "pipe": os.mkfifo,
    "folder": lambda path: path.mkdir(),
    "locked": _locked,
}
ODD_NAMES = ("/dev/zero", "/dev/null", "/dev/stdin", "-", "no\nsuch file ü 名前")


def _inputs(good: str) -> dict[str, Callable[[str], Args]]:
    """A command for each place where a file or folder is named that is read."""
    known = ("--network", "lenet", "--data", "digits")
    small = (*SMALL, "--epochs", "1", "--out", "new")
    run = str(Path(good).parents[1])
    digits = ("--network", "lenet", "--inputs", "digits", "--examples", "8")
    few = ("--examples", "8", "--layers", "features.0")
    return {
        "measure": lambda odd: ("measure", odd),
        "measure --json": lambda odd: ("measure", odd, "--json"),
        "measure, second": lambda odd: ("measure", good, odd),
        "measure --init": lambda odd: ("measure", good, "--init", odd),
        "measure --out": lambda odd: (
            "measure", odd, "--out", "m.csv", "--filters", "f.npz", "--figure", "f.png"
        ),
        "measure --data-path": lambda odd: (
            "measure", good, "--network", "lenet", "--data", "mnist", "--data-path", odd
        ),
        "predict": lambda odd: ("predict", odd),
        "predict --init": lambda odd: ("predict", good, "--init", odd, "--network", "lenet"),
        "train --config": lambda odd: ("train", "--config", odd, *small),
        "train --data": lambda odd: ("train", "--data", f"folder:{odd}", *small),
        "train --data-path": lambda odd: ("train", "--data", "cifar10", "--data-path", odd, *small),
        "train --resume": lambda odd: ("train", *SMALL, "--resume", "--out", odd),
        "status": lambda odd: ("status", odd),
        "reset": lambda odd: ("reset", odd),
        "reset --trained": lambda odd: ("reset", "--trained", odd, "--snapshot", good, *known),
        "reset --snapshot": lambda odd: ("reset", "--trained", good, "--snapshot", odd, *known),
        "relate": lambda odd: ("relate", odd),
        "figures": lambda odd: ("figures", odd, "--out", "figures"),
        "figures --style": lambda odd: ("figures", good, "--style", odd, "--out", "figures"),
        "report": lambda odd: ("report", odd),
        "report --watch": lambda odd: ("report", odd, "--watch"),
        "predict RUN --inputs": lambda odd: ("predict", run, *few, "--inputs", odd),
        "sensitivity": lambda odd: ("sensitivity", odd, *digits, *few, "--ways", "prune:0.9"),
        "sensitivity --inputs": lambda odd: (
            "sensitivity", run, "--inputs", odd, *few, "--ways", "prune:0.9", "--out", "ways.csv"
        ),
        "plan": lambda odd: ("plan", odd, *digits, "--size", "0.5", "--table", "plan.csv"),
        "plan --inputs": lambda odd: ("plan", run, "--size", "0.5", "--inputs", odd),
        "repair": lambda odd: ("repair", odd, "--reference", run, *digits, "--table", "put.csv"),
        "repair --reference": lambda odd: ("repair", run, "--reference", odd, *digits),
        "diff": lambda odd: ("diff", odd, good, "--out", "moved.csv", "--page", "moved.html"),
        "diff, second": lambda odd: ("diff", good, odd),
        "report, second": lambda odd: ("report", good, odd, "--out", "page.html"),
        "study --dry-run": lambda odd: ("study", odd, "--out", "study", "--dry-run"),
        "study --status": lambda odd: ("study", odd, "--status", "--out", odd),
        "claims": lambda odd: ("claims", odd),
    }  # fmt: skip


def inputs(prepared: Path, *, quick: bool) -> Tally:
    """Every command that reads, given every odd file, in its own folder."""
    tally = Tally()
    good = str(prepared / "run" / "snapshots" / "epoch-0002.safetensors")
    few = (
        "measure",
        "predict --init",
        "train --config",
        "report",
        "study --dry-run",
        "study --status",
    )
    with place_to_work() as place:
        odd = place.path / "odd ü\nfiles"
        odd.mkdir()
        for name, make in ODD.items():
            make(odd / name)
        names = [str(odd / name) for name in ODD] + list(ODD_NAMES)
        before = contents(odd) if os.geteuid() == 0 else {}
        for what, args in _inputs(good).items():
            if quick and what not in few:
                continue
            for name in names[1:5] if quick else names:
                ended = command(args(name), place, stdin=good)
                made = contents(place.work)
                problems = [*problems_of(ended), *lost({}, made, may_write=True)]
                # A run that was begun is kept; results are whole or absent.
                if ended.status and any(Path(each).suffix for each in made):
                    problems.append(f"left {sorted(made)}")
                if before and contents(odd) != before and what != "train --resume":
                    problems.append("the files changed")
                tally.count(f"{what} {name!r}", problems, ended)
                _empty(place.work)
                if what == "train --resume":  # an empty folder is where a run may be begun
                    _empty(odd / "folder")
    return tally


FILES = (
    ".", ".lock", "config.yaml", "environment.json", "filters", "filters/epoch-0002.safetensors",
    "last.ckpt", "measurements.parquet", "metrics.csv", "resets-progress.json", "resets.json",
    "relation.json", "snapshots", "snapshots/epoch-0000.safetensors",
    "snapshots/epoch-0002.safetensors", "state.json",
)  # fmt: skip
ALIKE = ("--inputs", "digits", "--examples", "8", "--layers", "features.0")
READS: dict[str, Args] = {
    "status": ("status", "run", "--json"),
    "relate": ("relate", "run", "--draws", "99"),
    "report": ("report", "run"),
    "measure": ("measure", "run/snapshots/epoch-0002.safetensors"),
    "predict": ("predict", "run", *ALIKE),
    "sensitivity": ("sensitivity", "run", *ALIKE, "--ways", "prune:0.9"),
    "diff": (
        "diff",
        "run/snapshots/epoch-0000.safetensors",
        "run/snapshots/epoch-0002.safetensors",
    ),
}
WRITES: dict[str, Args] = {
    "reset": ("reset", "run", "--subset", "50", "--layers", "features.0"),
    "train --resume": ("train", "--resume", "--out", "run"),
    "train --resume, stopped": ("train", "--resume", "--out", "run"),
}


def folders(prepared: Path, *, quick: bool) -> Tally:
    """Every command on a run, one file of which is missing or odd or may not be used."""
    tally = Tally()
    kinds = ("missing", *ODD, "may not be used", "may not be written")
    commands = READS | WRITES
    if quick:
        kinds = ("missing", "empty", "pipe", "may not be used")
        commands = {each: commands[each] for each in ("status", "train --resume")}
    files = ("config.yaml", "metrics.csv", "last.ckpt", ".lock") if quick else FILES
    with place_to_work() as place:
        run = place.work / "run"
        for file in files:
            for kind in kinds:
                for what, args in commands.items():
                    copy_run(prepared / "run", run, stopped=what.endswith("stopped"))
                    _make_odd(run / file, kind)
                    before = contents(run) if run.is_dir() and not run.is_symlink() else {}
                    _take_rights(run / file, kind)
                    begins = what in WRITES and (file, kind) == (".", "folder")
                    if begins and what != "reset":  # in an empty folder a run may be begun
                        args = (*args, *SMALL, "--epochs", "1")
                    ended = command(args, place)
                    _give_rights(place.work)
                    may_write = what in WRITES
                    after = contents(run) if before else {}
                    problems = [*problems_of(ended), *lost(before, after, may_write=may_write)]
                    tally.count(f"{what}, {file} {kind}", problems, ended)
                    _empty(place.work)
    return tally


def copy_run(source: Path, target: Path, *, stopped: bool) -> None:
    """Copy a run; `stopped` leaves it an epoch to make."""
    shutil.copytree(source, target)
    if stopped:  # one epoch is missing
        for name, old, new in (
            ("config.yaml", "epochs: 2", "epochs: 3"),
            ("state.json", "finished", "stopped"),
        ):
            path = target / name
            path.write_text(path.read_text().replace(old, new))


def _make_odd(path: Path, kind: str) -> None:
    if kind == "missing" or kind in ODD:
        _remove(path)
    if kind in ODD:
        ODD[kind](path)


def _take_rights(path: Path, kind: str) -> None:
    if path.exists() and kind == "may not be used":
        path.chmod(0)
    elif path.exists() and kind == "may not be written":
        path.chmod(0o555 if path.is_dir() else 0o444)


def _give_rights(folder: Path) -> None:
    # From outside in: what may not be entered cannot be listed by others than root.
    for where, names, files in os.walk(folder):
        for name in (*names, *files):
            path = Path(where, name)
            if not path.is_symlink():
                path.chmod(0o755 if path.is_dir() else 0o644)


# --- all of it -----------------------------------------------------------------------------------


@contextlib.contextmanager
def place_to_work() -> Iterator[Place]:
    """Make a place for a command, and remove it."""
    with tempfile.TemporaryDirectory(prefix="odd-") as folder:
        place = Place(Path(folder))
        for each in (place.work, place.temporary):
            each.mkdir()
        try:
            yield place
        finally:
            _give_rights(place.path)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        _remove(path)


def _prepare(place: Place) -> Path:
    """A run, trained, reset and related; gives the folder that it lies in."""
    for args in (
        ("train", *SMALL, "--out", "run"),
        ("reset", "run", "--subset", "200", "--snapshot", "0"),
        ("relate", "run", "--draws", "99", "--out", "run/relation.json"),
    ):
        ended = command(args, place)
        if ended.status != 0:
            raise RuntimeError(f"{args}: {ended.complained}")
    return place.work


SWEEPS = {"inputs": inputs, "folders": folders}


@contextlib.contextmanager
def prepared_run() -> Iterator[Path]:
    """Make what the cases use, with all imported that they import."""
    import_all(MODULES)
    with place_to_work() as place:
        yield _prepare(place)
