"""Folders of runs and studies from strangers: their records, and links in place of their parts."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import random
import shutil
import sys
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

import numpy as np

import planescope as ps
from planescope.files.errors import PlanescopeError
from planescope.hyperplanes.layer import Structure
from planescope.networks.build import build
from planescope.networks.live.module import read_module
from planescope.study.folder import Study
from planescope.study.record import RunRecord
from planescope.training.config import RunConfig, dump_config
from planescope.training.folder.metrics import EpochMetrics
from planescope.training.folder.status import State, Status
from planescope.training.run import Run

Seeds = Iterator[tuple[str, dict[str, bytes]]]

STUDY = "grid:\n- network: [lenet]\nbase: {epochs: 1}\nmake: [train]\n"
NAME = "network"  # of a callable that nobody may run, and that nothing can import
CONFIG = dump_config(RunConfig(network=f"{NAME}:make", kinds=("all",)))


# --- records -------------------------------------------------------------------------------------


def _with(folder: Path, name: str, text: str) -> Path:
    """The folder, with a file that no case changes."""
    if not (folder / name).is_file():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def state(folder: Path, *_: object) -> None:
    """Tell how a run stands, and write it again."""
    run = Run(_with(folder, "run/config.yaml", CONFIG) / "run")
    found = run.status
    json.dumps([found.state, found.message])


def environment(folder: Path, *_: object) -> None:
    """Read what each start of a run had, as reports show it."""
    run = Run(_with(folder, "run/config.yaml", CONFIG) / "run")
    for start in run.environments:
        json.dumps(start)


def network(folder: Path, *_: object) -> None:
    """Measure weights with the places that a run has recorded."""
    run = Run(_with(folder, "run/config.yaml", CONFIG) / "run")
    structure = run.structure
    if isinstance(structure, str):
        raise AssertionError(f"{structure} would be built")
    ps.measure(_weights(), network=structure, view="effective", kinds="all").to_json()


def study_record(folder: Path, *_: object) -> None:
    """Tell how far a study is, one of whose runs has this record."""
    study = Study(_with(folder, "study/study.yaml", STUDY) / "study")
    status = study.status
    status.to_json()
    study.save_record(study.record(study.specs[0].name))


@functools.cache
def _weights() -> dict[str, np.ndarray]:
    state = build("lenet", in_channels=1, seed=0).state_dict()
    return {name: tensor.numpy() for name, tensor in state.items()}


# --- links ---------------------------------------------------------------------------------------


ROW = EpochMetrics(
    epoch=0, train_loss=None, train_accuracy=None, val_loss=1.0, val_accuracy=0.5,
    learning_rate=None, seconds=1.0,
)  # fmt: skip
DEEDS = 5  # of a case, of those that follow
_warm: set[str] = set()  # folders in which each of them was done once, for what it imports


def _reading(run: Run) -> dict[str, Callable[[], object]]:
    return {
        "config": lambda: run.config,
        "status": lambda: run.status,
        "structure": lambda: run.structure,
        "environments": lambda: run.environments,
        "metrics": lambda: run.metrics,
        "measured": lambda: run.measured_layers,
        "filters": lambda: [run.load_filters(epoch) for epoch in run.filter_epochs],
        "snapshots": lambda: [ps.measure(path) for path in run.snapshots.values()],
        "resets": lambda: run.resets,
        "stamp": lambda: run.stamp,
    }


def _writing(run: Run) -> dict[str, Callable[[], object]]:
    def lock() -> None:
        with run.lock():
            pass

    return {
        "lock": lock,
        "save status": lambda: run.save_status(Status(state=State.FINISHED)),
        "save environment": lambda: run.save_environment({"a": "b"}),
        "save metrics": lambda: run.save_metrics([ROW]),
        "cut": lambda: run.cut(-1),
        "measure": lambda: run.add_measurement(0, ps.measure({"a.weight": np.ones((2, 1, 3, 3))})),
    }


def _of_study(path: Path) -> dict[str, Callable[[], object]]:
    study = Study(path)

    def make() -> None:
        made = Study.create(path, study.plan)
        made.save_plan()
        for spec in made.specs:
            with made.lock(), made.lock_run(spec.name):
                made.save_record(RunRecord(name=spec.name, made={"train": 1.0}))

    return {
        "study's status": lambda: study.status,
        "study's runs": lambda: study.runs,
        "study's table": lambda: study.table_folder,
        "study's relation": lambda: study.relation_file,
        "make study": make,
    }


def links(folder: Path, case: int, changed: Collection[str]) -> None:
    """Do everything in a folder some parts of which are links, and hold what lies outside."""
    digest = hashlib.sha256(b"".join((folder / name).read_bytes() for name in sorted(changed)))
    rng = random.Random(f"{case} {digest.hexdigest()}")
    tree, outside = folder / "tree", folder / "outside"
    shutil.rmtree(tree, ignore_errors=True)
    shutil.copytree(folder / "study", tree)
    if not outside.exists():
        shutil.copytree(folder / "study", outside)
    is_first = str(folder) not in _warm
    _warm.add(str(folder))
    for _ in range(0 if is_first else rng.choice((1, 1, 1, 2, 3))):
        _link(rng, tree, outside)
    before = _contents(outside)
    (name,) = (path.name for path in (folder / "study" / "runs").iterdir())
    deeds = _of_study(tree)
    refused: PlanescopeError | None = None
    try:
        run = Study(tree).run(name)
        deeds |= _reading(run) | _writing(run)
    except PlanescopeError as exc:  # the run is a link itself
        refused = exc
    for name in list(deeds) if is_first else rng.sample(sorted(deeds), DEEDS):
        _touched.clear()
        with _watched(outside):
            try:
                deeds[name]()
            except PlanescopeError as exc:
                refused = exc
        if _touched:
            raise AssertionError(f"{name} opened {_touched}, outside of its root")
    if _contents(outside) != before:
        shutil.rmtree(outside)
        raise AssertionError("what lies outside of the root has changed")
    if refused is not None:
        raise refused


def _link(rng: random.Random, tree: Path, outside: Path) -> None:
    """Put a link in the place of a part, there or not, that leads to anything outside."""
    # Of what was linked already nothing is listed: rglob does not follow links.
    parts = [path for path in sorted(tree.rglob("*")) if not path.is_symlink()]
    if not parts:
        return
    part = rng.choice(parts)
    if rng.random() < 0.2:
        part = part.parent / rng.choice(
            (".lock", ".study.lock", "last.ckpt", "resets.json", "relation.json", "filters",
             "snapshots", "state.json.new", "epoch-0003.safetensors", "logs", "measurements.csv")
        )  # fmt: skip
    same = outside / part.relative_to(tree)
    others = sorted(outside.rglob("*"))
    leads = rng.choice((same, same, same, rng.choice(others), outside, outside / "new"))
    if part.is_symlink():
        return
    if part.is_dir():
        shutil.rmtree(part)
    else:
        part.unlink(missing_ok=True)
    if rng.random() < 0.3:
        relative = os.path.relpath(leads, part.parent)
        with contextlib.chdir(part.parent):  # from where the watch takes it
            part.symlink_to(relative)
    elif rng.random() < 0.1 and leads.is_file():
        part.hardlink_to(leads)
    else:
        part.symlink_to(leads)


def _contents(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() if p.is_file() else b"" for p in sorted(folder.rglob("*"))}


_touched: list[str] = []
_guarded: list[str] = []


@contextlib.contextmanager
def _watched(outside: Path) -> Iterator[None]:
    _install()
    _guarded.append(os.path.realpath(outside) + os.sep)
    try:
        yield
    finally:
        _guarded.clear()


@functools.cache
def _install() -> None:
    """Once a process: a hook of this kind cannot be taken away."""
    sys.addaudithook(_hook)


def _hook(event: str, args: tuple[object, ...]) -> None:
    if not _guarded or event not in ("open", "os.listdir", "os.scandir", "os.remove", "os.rename"):
        return
    if args and isinstance(args[0], (str, bytes, os.PathLike)):
        real = os.path.realpath(os.fsdecode(args[0]))
        if (real + os.sep).startswith(_guarded[0]):
            _touched.append(f"{event} {real}")


# --- seeds ---------------------------------------------------------------------------------------


def _run_name() -> str:
    from planescope.study.plan import read_plan

    Path("plan.yaml").write_text(STUDY)
    return read_plan(Path("plan.yaml")).specs[0].name


def state_seeds() -> Seeds:
    """States of a run."""
    for status in (
        Status(state=State.FINISHED), Status(state=State.FAILED, message="no memory is left"),
    ):  # fmt: skip
        run = Run(Path("run"))
        run.path.mkdir(exist_ok=True)
        run.save_status(status)
        yield str(status.state), {"run/state.json": (run.path / "state.json").read_bytes()}


def environment_seeds() -> Seeds:
    """Two starts of a run."""
    run = Run(Path("run"))
    _with(Path(), "run/config.yaml", CONFIG)
    for device in ("cpu", "cuda"):
        run.save_environment({"planescope": ps.__version__, "device": device, "gpus": [1, 2.5]})
        yield device, {"run/environment.json": (run.path / "environment.json").read_bytes()}


def network_seeds() -> Seeds:
    """Yield places of the layers of LeNet, recorded under the name of a callable."""
    run = Run(Path("run"))
    _with(Path(), "run/config.yaml", CONFIG)
    state = read_module(build("lenet", in_channels=1, seed=0))
    run.save_structure(
        Structure(
            network=f"{NAME}:make",
            names=tuple(state.tensors),
            places=dict(state.places),
            note=state.note,
        )
    )
    yield "lenet", {"run/network.json": (run.path / "network.json").read_bytes()}


def study_record_seeds() -> Seeds:
    """Records of a run: made, failed, put back."""
    name = _run_name()
    for what, record in {
        "made": RunRecord(name=name, made={"train": 1.5, "measure": 0.1}),
        "failed": RunRecord(name=name, error="no memory is left"),
        "reset": RunRecord(name=name, made={"train": 1.0}, reset={"subset": 50, "draws": [1]}),
    }.items():
        Study(Path("study")).save_record(record)
        file = f"study/runs/{name}/study.json"
        yield what, {file: Path(file).read_bytes()}


def link_seeds() -> Seeds:
    """A study of one run that has all its parts."""
    from safetensors.numpy import save_file

    name = _run_name()
    _with(Path(), "study/study.yaml", STUDY)
    study = Study(Path("study"))
    study.save_record(RunRecord(name=name, made={"train": 1.0}))
    run = study.run(name)
    _with(run.path, "config.yaml", CONFIG)
    run.save_status(Status(state=State.FINISHED))
    run.save_environment({"planescope": ps.__version__})
    _with(run.path, "network.json", "{}")
    run.save_metrics([ROW])
    _with(run.path, "resets.json", "{}")
    _with(run.path, "last.ckpt", "PK")
    _with(study.path, f"table/{name}.parquet", "PAR1")
    _with(study.path, "relation.json", "{}")
    run.add_measurement(0, ps.measure({"a.weight": np.ones((2, 1, 3, 3))}))
    (run.path / "snapshots").mkdir()
    for epoch in (0, 1):
        save_file(
            {"a.weight": np.ones((2, 1, 3, 3), np.float32)},
            run.path / "snapshots" / f"epoch-{epoch:04}.safetensors",
        )
    files = sorted(path for path in study.path.rglob("*") if path.is_file())
    yield "study", {str(path): path.read_bytes() for path in files}
