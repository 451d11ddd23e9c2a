"""Runs, studies, results and checkpoints of an attacker, given to every command.

Of each case it is asked: did code run that the user did not name? Was anything outside of the
folder read as a part of it, written or removed? Did a control character reach the terminal or a
page, or a formula a table? Did the command end by itself, in a result or in one sentence?
"""

from __future__ import annotations

import contextlib
import copy
import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from checks.reliability.odd import (
    MODULES,
    SMALL,
    Args,
    Ended,
    Tally,
    command,
    contents,
    lost,
    place_to_work,
    problems_of,
    without_privileges,
)
from checks.reliability.starting import Place, import_all, in_child, warm

# A title for the window, a cleared screen, C1, a turned direction, a line of its own, a NUL.
CONTROLS = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202egnp\u2028next\x00"
FORMULA = "=HYPERLINK(1)<b>"
CODE = "evil:make"
PLANTED = {"text": FORMULA + CONTROLS, "code": CODE, "a port": "http.server:test"}
CALLED = ("network", "data")  # where a name of code may stand
EVIL = """\
import pathlib
pathlib.Path({mark!r}).touch()
from torch import nn
def make(in_channels=1, classes=2):
    return nn.Sequential(nn.Flatten(), nn.Linear(784, classes))
"""
STUDY = """\
base: {epochs: 1, classes: 2, examples: 64, width: 0.5, snapshots_until: 1, threads: 1,
       accelerator: cpu}
reset: {snapshots: [0], subset: 50}
grid: {learning_rate: [0.02, 0.01]}
"""
SNAPSHOT = "snapshots/epoch-0002.safetensors"
START, TRACKED = "snapshots/epoch-0000.safetensors", "snapshots/step-0000.safetensors"
INPUTS = ("--inputs", "given.npy", "--examples", "8", "--layers", "features.0")
# What takes a run; `run` stands for its folder.
ON_RUN: dict[str, Args] = {
    "status": ("status", "run"),
    "status --json": ("status", "run", "--json"),
    "report": ("report", "run", "--out", "page.html"),
    "figures": ("figures", "run", "--out", "drawn", "--format", "png"),
    "relate": ("relate", "run", "--draws", "99", "--out", "related.csv"),
    "report --watch": ("report", "run", "--watch", "--out", "page.html"),
    "measure": ("measure", f"run/{SNAPSHOT}", "--out", "measured.csv"),
    "predict": ("predict", f"run/{SNAPSHOT}", "--out", "predicted.csv"),
    "reset": ("reset", "run", "--subset", "50", "--layers", "features.0", "--out", "lost.csv"),
    "train --resume": ("train", "--resume", "--out", "run"),
    "predict RUN": ("predict", "run", *INPUTS, "--out", "predicted.csv"),
    "sensitivity": ("sensitivity", "run", *INPUTS, "--ways", "prune:0.9", "--out", "ways.csv"),
    "plan": ("plan", "run", "--size", "0.5", "--examples", "8", "--table", "plan.csv"),
    "repair": ("repair", "start", "--reference", "run", "--examples", "8", "--table", "put.csv"),
    "repair, changed": ("repair", "run", "--reference", "start", "--examples", "8"),
    "diff": ("diff", f"start/{START}", f"run/{SNAPSHOT}", "--out", "moved.csv", "--page", "d.html"),
}
# Pictures of their own take seconds: asked of what tells the network alone.
SLOW = ("plan", "repair", "repair, changed")
ABOUT_NETWORKS = ("config.yaml", "network.json")
# Likewise what takes a run that a Tracker wrote.
ON_TRACKED: dict[str, Args] = {
    name: tuple(arg.replace("run", "tracked", 1) for arg in args)
    for name, args in ON_RUN.items()
    if name in ("status", "status --json", "report", "figures", "relate", "plan")
} | {
    "reset": ("reset", "tracked", "--network", "lenet", "--data", "digits"),
    "measure": ("measure", f"tracked/{TRACKED}", "--out", "measured.csv"),
}
ON_STUDY: dict[str, Args] = {
    "study --status": ("study", "study.yaml", "--out", "study", "--status"),
    "claims": ("claims", "study", "--out", "drawn"),
    "report of a study": ("report", "study", "--out", "page.html"),
    "figures of a study": ("figures", "study", "--out", "drawn", "--format", "png"),
    "relate of a study": ("relate", "study", "--draws", "99"),
}
ON_FILE: dict[str, Args] = {
    "report of a result": ("report", f"run/{SNAPSHOT}", "m.json", "--out", "page.html"),
    "figures of a result": ("figures", "m.json", "--out", "drawn", "--format", "png"),
}
# Makes what a study lacks: all is made again, where it may be.
MAKES_STUDY: dict[str, Args] = {
    "study": ("study", "study.yaml", "--out", "study", "--workers", "1", "--retry-failed"),
}
STUDY_PARTS = ("study.yaml", "study.json", "runs", "table", ".study.lock")
RECORDS = (
    "config.yaml", "state.json", "environment.json", "network.json", "resets.json", "relation.json",
)  # fmt: skip
TRACKED_RECORDS = ("config.yaml", "state.json", "environment.json", "network.json")
# What surely learns something: of a network no better than chance nothing is related.
LEARNING = (
    "--optimizer", "adam", "--lr", "0.001", "--batch-size", "8", "--examples", "400",
)  # fmt: skip
# Saved by `measure`, `sensitivity`, `plan` and `reset`, which pages and figures are made of.
RESULTS = ("m.json", "ways.json", "plan.json", "lost.json")
PARTS = (
    *RECORDS, "metrics.csv", "measurements.parquet", "last.ckpt", "resets-progress.json", ".lock",
    "snapshots", "filters", SNAPSHOT, "filters/epoch-0002.safetensors", "logs", "logs/csv",
    "snapshots/epoch-0000.safetensors", ".planescope-0123abcd-abcdefgh", "network.json",
)  # fmt: skip


# --- what is asked of every case -----------------------------------------------------------------


def found_in(place: Place, ended: Ended) -> Iterator[str]:
    """Everything that is wrong after a command."""
    yield from problems_of(ended)
    if (place.path / "ran").exists():
        yield "code ran"
        (place.path / "ran").unlink()
    for what, text in (("standard output", place.printed), ("stderr", place.complained)):
        if control := _control(text):
            yield f"{what} holds {control!r}"
    made = [*place.work.glob("*.*"), *place.work.glob("drawn/**/*.*")]
    for page in (path for path in made if path.suffix in (".html", ".md", ".svg")):
        text = page.read_text(encoding="utf-8")
        if control := _control(text):
            yield f"{page.name} holds {control!r}"
        if page.suffix == ".md" and "<b>" in text:
            yield f"{page.name} holds markup"
    for table in (path for path in made if path.suffix == ".csv"):
        lines = table.read_text(encoding="utf-8").splitlines()
        if any(cell.startswith(FORMULA[:3]) for line in lines for cell in line.split(",")):
            yield f"{table.name} holds a formula"


def _control(text: str) -> str:
    """The first character that is no text; "" where there is none."""
    return next((c for c in text if c not in "\n\t" and not c.isprintable() and c != "\xa0"), "")


# --- records -------------------------------------------------------------------------------------


def _leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Find the texts in plain data; of a list its first item stands for all."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _leaves(item, (*path, key))
    elif isinstance(value, list):
        for item in value[:1]:
            yield from _leaves(item, (*path, 0))
    elif isinstance(value, str):
        yield path


def _with(value: Any, path: Sequence[Any], text: str, *, whole: bool) -> Any:
    made = copy.deepcopy(value)
    at = made
    for step in path[:-1]:
        at = at[step]
    at[path[-1]] = text if whole else f"{text}{at[path[-1]]}"
    return made


def _planted(file: Path) -> Iterator[tuple[str, str]]:
    """The file with each fault in each place that holds text, and a name for that."""
    is_yaml = file.suffix == ".yaml"
    text = file.read_text(encoding="utf-8")
    data = yaml.safe_load(text) if is_yaml else json.loads(text)
    dump: Callable[[Any], str] = partial(yaml.safe_dump, sort_keys=False) if is_yaml else json.dumps
    for path in _leaves(data):
        for what, fault in PLANTED.items():
            if what == "a port" and path[-1] not in CALLED:
                continue
            whole = what != "text"
            where = ".".join(map(str, path))
            yield f"{what} in {where}", dump(_with(data, path, fault, whole=whole))


def records(prepared: Path, *, quick: bool, share: float = 1) -> Tally:
    """Every text in every record of a run, a study and a result, before every command."""
    tally = Tally()
    for file in _files(prepared, quick=quick):
        counted = _record(prepared, file, quick=quick, share=share)
        _add(tally, counted, "" if quick else f"records: {file}")
    return tally


def _add(tally: Tally, counted: Tally, what: str) -> None:
    """Add what was counted of a part; of what takes hours, say what is known so far."""
    tally.cases += counted.cases
    tally.fallen += counted.fallen
    if what:
        print(f"{what}: {counted.cases} cases", *counted.fallen, sep="\n    ", flush=True)


def _drawn(cases: Iterable[Any], share: float, of: str) -> list[Any]:
    """Draw a share of the cases of a file, the same ones each time."""
    every = list(cases)
    if share == 1:
        return every
    rng = np.random.default_rng(list(of.encode()))
    return [every[i] for i in rng.permutation(len(every))[: round(share * len(every))]]


def _files(prepared: Path, *, quick: bool) -> list[str]:
    files = [f"run/{name}" for name in (("config.yaml", "state.json") if quick else RECORDS)]
    if not quick:
        files += [f"tracked/{name}" for name in TRACKED_RECORDS]
        files += list(RESULTS)
        run = next((prepared / "study" / "runs").iterdir()).name
        parts = ("study.json", "config.yaml", "state.json")
        files += ["study/study.yaml"]
        files += [f"study/runs/{run}/{part}" for part in parts]
    return files


def _record(prepared: Path, file: str, *, quick: bool, share: float) -> Tally:
    """Every text in one record, before every command that takes what it belongs to."""
    tally = Tally()
    root = file.partition("/")[0]
    commands = {"run": ON_RUN, "tracked": ON_TRACKED, "study": ON_STUDY}.get(root)
    if commands is None:
        commands = {
            name: tuple(arg.replace("m.json", file) for arg in args)
            for name, args in ON_FILE.items()
        }
    cases = [
        (what, text, name, args)
        for what, text in list(_planted(prepared / file))[:: 5 if quick else 1]
        for name, args in _some(commands, quick, ("status", "reset")).items()
        if name not in SLOW or file.endswith(ABOUT_NETWORKS)
    ]
    for what, text, name, args in _drawn(cases, share, file):
        with _copied(prepared) as place:
            (place.work / file).write_text(text, encoding="utf-8")
            ended = command(_quietly(args), place)
            tally.count(f"{name}: {what} of {file}", list(found_in(place, ended)), ended)
    return tally


def _quietly(args: Args) -> Args:
    """Without what would follow a run for ever: a record may say that it goes on."""
    return tuple(arg for arg in args if arg != "--watch")


# --- links ---------------------------------------------------------------------------------------


def links(prepared: Path, *, quick: bool, share: float = 1) -> Tally:
    """Each part of a run or a study as a link to what lies elsewhere, before every command."""
    tally = Tally()
    cases: list[tuple[str, dict[str, Args], tuple[str, ...]]] = [
        (f"run/{part}", ON_RUN, ("train --resume",))
        for part in (("resets.json", "snapshots") if quick else PARTS)
    ]
    if not quick:
        run = next((prepared / "study" / "runs").iterdir()).name
        own = [part.replace("0002", "0001") for part in PARTS]
        parts = [*STUDY_PARTS, f"runs/{run}", *(f"runs/{run}/{part}" for part in own)]
        cases += [(f"study/{part}", ON_STUDY | MAKES_STUDY, ()) for part in parts]
    for part, commands, few in cases:
        counted = Tally()
        for name, args in _drawn(_some(commands, quick, few).items(), share, part):
            with _copied(prepared) as place:
                outside = place.path / "outside"
                there = place.work / part
                there.parent.mkdir(exist_ok=True)  # `logs`, which not every run has
                if there.exists():
                    shutil.move(there, outside)
                else:
                    outside.write_text("{}")
                there.symlink_to(outside)
                before = _lying(outside)
                ended = command(_quietly(args), place)
                problems = list(found_in(place, ended))
                if _lying(outside) != before or not there.is_symlink():
                    problems.append("what lies outside has changed")
                counted.count(f"{name}: {part}", problems, ended)
        _add(tally, counted, "" if quick else f"links: {part}")
    return tally


def _lying(path: Path) -> object:
    return contents(path) if path.is_dir() else path.read_bytes()


# --- names of files and layers -------------------------------------------------------------------


def names(prepared: Path, *, quick: bool) -> Tally:
    """Folders, files and layers of names that no terminal and no spreadsheet should get."""
    tally = Tally()
    for what, text in (("controls", CONTROLS[:-1].replace("/", "")), ("formula", FORMULA)):
        for name, args in _some(ON_RUN, quick, ("status", "measure")).items():
            with _copied(prepared) as place:
                (place.work / "run").rename(place.work / text)
                ended = command([arg.replace("run", text, 1) for arg in _quietly(args)], place)
                tally.count(f"{name}: {what}, folder", list(found_in(place, ended)), ended)
        for name, args in _some(ON_LAYERS, quick, ("measure", "predict")).items():
            with _copied(prepared) as place:
                _checkpoint(place.work / f"{text}.safetensors", text)
                ended = command([arg.replace("NAME", text) for arg in args], place)
                tally.count(f"{name}: {what}, layers", list(found_in(place, ended)), ended)
    return tally


# What takes a checkpoint whose layers have names of any kind, in every form of what it writes.
ON_LAYERS: dict[str, Args] = {
    "measure": ("measure", "NAME.safetensors", "--out", "table.csv", "--filters", "filters.csv"),
    "predict": ("predict", "NAME.safetensors", "--out", "table.csv"),
    "measure --card": ("measure", "NAME.safetensors", "--card", "card.md"),
    "measure --figure": ("measure", "NAME.safetensors", "--figure", "drawn.svg", "--pairing"),
    "measure --json": ("measure", "NAME.safetensors", "--json"),
    "diff": (
        *("diff", "NAME.safetensors", "NAME.safetensors", "--out", "moved.csv"),
        *("--page", "moved.html", "--figure", "moved.svg"),
    ),
    "figures": ("figures", "NAME.safetensors", "--out", "drawn", "--format", "svg"),
    "report": ("report", "NAME.safetensors", "--out", "page.html"),
}


def _checkpoint(path: Path, name: str) -> None:
    from safetensors.numpy import save_file

    rng = np.random.default_rng(0)
    save_file({f"{name}.weight": rng.standard_normal((8, 3, 3, 3), dtype=np.float32)}, path)


# --- streams and signals -------------------------------------------------------------------------


def streams(prepared: Path, *, quick: bool) -> Tally:
    """Standard output closed: a failure where the result was to be printed, and there alone."""
    tally = Tally()
    commands = _some(ON_RUN | ON_STUDY, quick, ("status", "measure"))
    for name, args in commands.items():
        with _copied(prepared) as place:
            ended = _ended(warm(_quietly(args), place, first=partial(os.close, 1)), place)
            is_in_a_file = {"--out", "--table"} & set(args) and "--status" not in args
            wanted = 0 if is_in_a_file else 2
            problems = list(found_in(place, ended))
            if ended.status != wanted:
                problems.append(f"status {ended.status}, not {wanted}")
            tally.count(name, problems, ended)
    return tally


def _heed() -> None:
    """Let signals end the command: where this harness ignores them, as by nohup, it would too."""
    for number in STATUS:
        signal.signal(number, signal.SIG_DFL)


LADDER = ",".join(f"prune:0.{number:04}" for number in range(1, 2000))
LONG: dict[str, Args] = {
    "train": ("train", *SMALL, "--epochs", "500", "--out", "new"),
    "reset --rand": ("reset", "run", "--rand", "--draws", "500", "--out", "lost.csv"),
    "measure": ("measure", *[f"run/{SNAPSHOT}"] * 3000, "--out", "measured.csv"),
    "sensitivity": ("sensitivity", "run", "--ways", LADDER, "--out", "ways.csv"),
    "plan": ("plan", "run", "--size", "0.5", "--examples", "4000", "--table", "plan.csv"),
    "plan --curve": (
        *("plan", "run", "--size", "0.5", "--examples", "16", "--table", "plan.csv"),
        *("--curve", ",".join(f"0.{number:03}" for number in range(100, 900))),
    ),
    "repair": (
        *("repair", "start", "--reference", "run", "--data", "digits", "--examples", "400000"),
        *("--out", "put.safetensors"),
    ),
    "relate": ("relate", "run", "--draws", "20000000", "--out", "related.csv"),
    "figures": ("figures", *[f"run/{SNAPSHOT}"] * 40, "--out", "drawn"),
    "report": ("report", *[f"run/{SNAPSHOT}"] * 3000, "--out", "page.html"),
    "quickstart": ("quickstart", "--out", "quick"),
    "report --watch": ("report", "run", "--watch", "--out", "page.html"),
}
STATUS = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}


def signals(prepared: Path, *, quick: bool) -> Tally:
    """Signals that ask for an end, to every command that takes long."""
    tally = Tally()
    for name, args in _some(LONG, quick, ("measure",)).items():
        for number, status in list(STATUS.items())[1 if quick else 0 : 2 if quick else 3]:
            with _copied(prepared) as place:
                with _going_on(place) if "--watch" in args else contextlib.nullcontext():
                    before = contents(place.work)
                    started = warm(args, place, first=_heed)
                    time.sleep(2)
                    started.send(number)
                    ended = _ended(started, place)
                after = contents(place.work)
                problems = list(lost(before, after, may_write=True))
                if ended.status != status or ended.complained.count("planescope: ") != 1:
                    problems.append(f"status {ended.status}, not {status}")
                if left := [path.name for path in place.temporary.iterdir()]:
                    problems.append(f"left {left}")
                tally.count(f"{name}: {number.name}", problems, ended)
    return tally


@contextlib.contextmanager
def _going_on(place: Place) -> Iterator[None]:
    """Hold a run as a training that goes on does."""
    from planescope.training.folder.status import State, Status
    from planescope.training.run import Run

    run = Run(place.work / "run")
    with run.lock():
        run.save_status(Status(state=State.RUNNING))
        yield


def _ended(started: Any, place: Place) -> Ended:
    status = started.wait(60)
    if status is None:
        started.kill()
    return Ended(status=status, complained=place.complained)


# --- all of it -----------------------------------------------------------------------------------


def _some(commands: dict[str, Args], quick: bool, few: Sequence[str]) -> dict[str, Args]:
    return {name: commands[name] for name in few} if quick else commands


@contextlib.contextmanager
def _copied(prepared: Path) -> Iterator[Place]:
    """A place to work with a copy of what was prepared, and the attacker's module in it."""
    with place_to_work() as place:
        shutil.copytree(prepared, place.work, dirs_exist_ok=True, symlinks=True)
        mark = str(place.path / "ran")
        (place.work / "evil.py").write_text(EVIL.format(mark=mark), encoding="utf-8")
        yield place


def _prepare(place: Place, *, quick: bool) -> Path:
    """A run with all its parts, a study of two, and a result."""
    (place.work / "study.yaml").write_text(STUDY, encoding="utf-8")
    images = np.random.default_rng(0).random((8, 1, 28, 28), dtype=np.float32)
    np.save(place.work / "given.npy", images)
    commands: list[Args] = [
        ("train", *SMALL, *LEARNING, "--out", "run"),
        ("reset", "run", "--subset", "200", "--snapshot", "0"),
        ("relate", "run", "--draws", "99", "--out", "run/relation.json"),
    ]
    if not quick:
        commands += [
            ("measure", f"run/{SNAPSHOT}", "--out", "m.json"),
            (*ON_RUN["sensitivity"][:-1], "ways.json"),
            (*ON_RUN["plan"][:-1], "plan.json"),
            ("study", "study.yaml", "--out", "study", "--workers", "1"),
        ]
    for args in commands:
        started = warm(args, place, first=_prepared_by)
        if (status := started.wait(600)) != 0:
            raise RuntimeError(f"{args}: {status}: {place.complained}")
    shutil.copy(place.work / "run" / "resets.json", place.work / "lost.json")
    shutil.copytree(place.work / "run", place.work / "start")
    (place.work / "start" / SNAPSHOT).unlink()  # so that it ends with another state
    in_child(_follow, place.work / "tracked")
    return place.work


def _prepared_by() -> None:
    """Let Dask fork its worker, which then imports nothing anew: seconds in place of a minute."""
    import dask

    without_privileges()
    dask.config.set({"distributed.worker.multiprocessing-method": "fork"})


def _follow(folder: Path) -> None:
    """Write the run of a Tracker, of a network that trains for two steps."""
    import torch

    from planescope.networks.build import build
    from planescope.training.tracker.tracker import Tracker

    torch.set_num_threads(1)
    net = build("lenet", in_channels=1, image_size=28, classes=10, width=0.5, seed=0)
    tracker = Tracker(out=folder)
    for step in range(3):
        tracker.update(net, step=step)
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.mul_(1.01)
    tracker.close()


SWEEPS = {
    "records": records,
    "links": links,
    "names": names,
    "streams": streams,
    "signals": signals,
}
LONGEST = ("records", "links")


def hostile(wanted: Sequence[str], *, quick: bool, share: float = 1) -> Iterator[tuple[str, Tally]]:
    """Count the outcomes of the cases of each kind; of those that take hours, of a share drawn."""
    import_all(MODULES)
    with place_to_work() as place:
        prepared = _prepare(place, quick=quick)
        for name in wanted:
            some = {"share": share} if name in LONGEST else {}
            yield name, SWEEPS[name](prepared, quick=quick, **some)
