"""Commands that are killed: what they need, how they are started, and how they go on."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from checks.reliability.starting import Place, in_child

# Small and quick, and still with all kinds of files.
TRAIN = (
    "train", "--epochs", "3", "--examples", "128", "--classes", "2", "--width", "0.5",
    "--threads", "1", "--accelerator", "cpu", "--snapshots-until", "1",
    "--snapshots-every", "2", "--out", "run",
)  # fmt: skip
RESET = (
    "reset", "run", "--rand", "--draws", "8", "--device", "cpu", "--together",
    "features.0,features.2", "--out", "resets.csv", "--figure", "map.pdf",
)  # fmt: skip
MEASURE = ("measure", "network.safetensors", "--kinds", "all")
STUDY = """\
base: {epochs: 2, classes: 2, examples: 64, width: 0.5, snapshots_until: 1, threads: 1,
       accelerator: cpu}
reset: {snapshots: [0], subset: 50}
grid: {learning_rate: [0.02, 0.01]}
"""
# Dask starts its workers by a fork where nothing else is said to it, so that they are warm too.
FORK = {"DASK_DISTRIBUTED__WORKER__MULTIPROCESSING_METHOD": "fork"}

Args = tuple[str, ...]


def _nothing(_: Place) -> None:
    pass


def _trained(place: Place) -> None:
    """A run, trained and reset."""
    in_child(_in_place, place.work, (TRAIN, ("reset", "run", "--device", "cpu")))


def _in_place(folder: Path, commands: tuple[Args, ...]) -> None:
    """Run commands in this process, in a folder."""
    from planescope.cli.app import app

    os.chdir(folder)
    for args in commands:
        with contextlib.redirect_stdout(io.StringIO()):
            app.main(list(args), standalone_mode=False)


def network_file(place: Place) -> None:
    """A checkpoint of 2 MB."""
    import numpy as np
    from safetensors.numpy import save_file

    rng = np.random.default_rng(0)
    shapes = [(16, 3), (32, 16), (64, 32), (64, 64), (128, 64), (128, 128), (128, 128)]
    arrays = {
        f"features.{index}.weight": rng.standard_normal((*shape, 3, 3), dtype=np.float32)
        for index, shape in enumerate(shapes)
    }
    save_file(arrays, place.work / "network.safetensors")


def _study(place: Place) -> None:
    (place.work / "study.yaml").write_text(STUDY, encoding="utf-8")


def _resumed(work: Path) -> Args:
    """As a user goes on with a training: --resume is refused where nothing was begun."""
    return (*TRAIN, "--resume") if (work / "run").is_dir() else TRAIN


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A command that is killed.

    Attributes
    ----------
    prepare : callable
        Makes what it needs.
    variants : tuple of tuple of str
        Its arguments; rounds take turns at them.
    again : callable, optional
        Arguments that go on with it in a folder; by default the same.
    warms : tuple of tuple of str
        Commands whose imports processes that it starts make, beside its own.
    env : dict
        Environment where it is started warm.
    """

    prepare: Callable[[Place], None] = _nothing
    variants: tuple[Args, ...]
    again: Callable[[Path], Args] | None = None
    warms: tuple[Args, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)

    def args(self, variant: int, work: Path, *, begun: bool) -> Args:
        """Arguments for a folder."""
        if begun and self.again is not None:
            return self.again(work)
        return self.variants[variant]


TRIALS: Mapping[str, Trial] = {
    "train": Trial(variants=(TRAIN,), again=_resumed),
    "reset": Trial(prepare=_trained, variants=(RESET,)),
    "study": Trial(
        prepare=_study,
        variants=(("study", "study.yaml", "--out", "out", "--workers", "1"),),
        warms=(TRAIN, ("reset", "run", "--device", "cpu"), ("relate", "run")),
        env=FORK,
    ),
    "report": Trial(
        prepare=_trained, variants=(("report", "run", "--out", "page.html", "--json"),)
    ),
    "measure": Trial(
        prepare=network_file,
        variants=(
            (*MEASURE, "--out", "table.json", "--filters", "filters.npz", "--figure", "map.pdf"),
            (*MEASURE, "--out", "table.csv", "--filters", "filters.csv"),
            (*MEASURE, "--out", "table.parquet", "--filters", "filters.parquet"),
        ),
    ),
}  # fmt: skip
