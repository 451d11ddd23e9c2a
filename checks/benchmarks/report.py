"""The page of a VGG19 run with 50 snapshots: made, its size, and when it can be used."""

from __future__ import annotations

import dataclasses
import json
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from checks.benchmarks.processes import machine

SNAPSHOTS = 50
ROUNDS = 5
# Seconds: the whole command; beyond its imports; until the page can be used.
BOUNDS = {"command": 5.0, "beyond imports": 1.0, "interactive": 2.0}
MOST_BYTES = 6_000_000

WITHIN = """
import sys, time
import planescope.figures.report
import jinja2, plotly, pyarrow.parquet, pydantic, safetensors.numpy, yaml
began, busy = time.perf_counter(), time.process_time()
planescope.figures.report.report(sys.argv[1]).save(sys.argv[2])
print(time.perf_counter() - began, time.process_time() - busy)
"""


def make_run(path: Path) -> None:
    """A run in its true formats: measurements and filters of VGG19 at 50 snapshots, and resets.

    The layers are true in number and size; the weights of snapshots are left out, as the page
    needs none.
    """
    import planescope as ps
    from checks.benchmarks.vgg19_files import arrays
    from planescope.training.config import RunConfig
    from planescope.training.folder.metrics import EpochMetrics
    from planescope.training.folder.status import State, Status
    from planescope.training.run import Run

    run = Run.create(path, RunConfig(network="vgg19", data="cifar10", epochs=SNAPSHOTS - 1))
    whole = ps.measure(
        {name: array for name, array in arrays().items() if "classifier" not in name}
    )
    rng = np.random.default_rng(0)
    for epoch in range(SNAPSHOTS):
        run.add_measurement(epoch, _moved(whole, rng, epoch / SNAPSHOTS))
    run.save_metrics(
        [
            EpochMetrics(
                epoch=epoch, train_loss=2.3 / (1 + epoch), train_accuracy=None,
                val_loss=2.4 / (1 + epoch), val_accuracy=1 - 0.9 / (1 + epoch),
                learning_rate=0.02, seconds=60.0,
            )
            for epoch in range(SNAPSHOTS)
        ]
    )  # fmt: skip
    run.save_status(Status(state=State.FINISHED))
    _resets(run).save(run.resets)


def _moved(whole, rng, share):
    """The measurement with every filter's cosine and offset moved, as by training."""
    layers = []
    for layer in whole.layers:
        values = layer.values
        cosine = np.clip(values.cosine - 0.1 * share + rng.normal(0, 0.01, layer.filters), -1, 1)
        offset = rng.normal(0, 0.1 * share, layer.filters)
        moved = dataclasses.replace(values, cosine=cosine, offset=offset)
        low, q25, median, q75, high = np.quantile(cosine, [0, 0.25, 0.5, 0.75, 1])
        layers.append(
            dataclasses.replace(
                layer, values=moved, negative_mass=float(np.mean(cosine <= 0)),
                mean_cosine=float(cosine.mean()), min_cosine=float(low), q25_cosine=float(q25),
                median_cosine=float(median), q75_cosine=float(q75), max_cosine=float(high),
                l2=share, linf=share,
            )
        )  # fmt: skip
    return dataclasses.replace(whole, layers=tuple(layers))


def _resets(run):
    from planescope.criticality.resets.record import Accuracy, ResetCell, ResetLayer, Resets
    from planescope.hyperplanes.layer import Kind

    layers = run.measured_layers[SNAPSHOTS - 1]
    accuracy = {"top5": 0.99, "cross_entropy": 0.4, "examples": 10_000}
    cells = [
        ResetCell(
            layer=layer.name, snapshot=snapshot, draw=None, relative_drop=0.9 / (1 + snapshot + i),
            value=0.9 - 0.8 / (1 + snapshot + i),
            top1=0.9 - 0.8 / (1 + snapshot + i), low=0.1, high=0.9, p_value=0.01, significant=True,
            **accuracy,
        )
        for i, layer in enumerate(layers)
        for snapshot in range(SNAPSHOTS)
    ]  # fmt: skip
    return Resets(
        source=str(run.path), network="vgg19", data="cifar10", split="val",
        trained=Accuracy(value=0.9, top1=0.9, low=0.89, high=0.91, **accuracy),
        layers=tuple(
            ResetLayer(
                name=layer.name, kind=Kind.CONV, stage=None, negative_mass=layer.negative_mass,
                agreement=layer.agreement, biased=layer.biased,
            )
            for layer in layers
        ),
        cells=tuple(cells),
    )  # fmt: skip


def interactive(page: Path) -> tuple[float, float] | None:
    """Seconds until the page answers, and until all figures are drawn; None without Chromium."""
    chromium = shutil.which("chromium")
    if chromium is None:
        return None
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": 1400, "height": 900})
        tab.goto(page.as_uri())
        tab.wait_for_selector("html[data-drawn]", timeout=60_000)
        marks = tab.evaluate(
            "performance.getEntriesByType('mark').map(mark => [mark.name, mark.startTime / 1000])"
        )
        browser.close()
    times = dict(marks)
    return times["planescope-interactive"], times["planescope-drawn"]


def main() -> None:
    seconds: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as name:
        run, page = Path(name) / "vgg19", Path(name) / "page.html"
        make_run(run)
        for _ in range(ROUNDS):
            for key, value in _round(run, page):
                seconds.setdefault(key, []).append(value)
        size, text = page.stat().st_size, page.read_text(encoding="utf-8")
    contents = json.loads(text.split('id="contents">', 1)[1].split("</script>", 1)[0])
    assert len(contents["networks"][0]["epochs"]) == SNAPSHOTS
    print(f"report: a VGG19 run with {SNAPSHOTS} snapshots ({machine()})")
    for key, times in seconds.items():
        bound = f"bound {BOUNDS[key]:.0f} s" if key in BOUNDS else ""
        spread = f"{min(times):6.3f}-{max(times):6.3f}s"
        print(f"{key:30} {statistics.median(times):6.3f}s {spread} {bound}")
    print(f"{'size':30} {size / 1e6:6.2f} MB, bound {MOST_BYTES / 1e6:.0f} MB")


def _round(run: Path, page: Path) -> Iterator[tuple[str, float]]:
    """Wall seconds, and those of the processor, which a machine that is shared leaves alone."""
    command = [sys.executable, "-m", "planescope", "report", str(run), "--out", str(page)]
    began, busy = time.perf_counter(), _children()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    yield "command", time.perf_counter() - began
    yield "command, processor", _children() - busy
    within = [sys.executable, "-c", WITHIN, str(run), str(page)]
    done = subprocess.run(within, check=True, capture_output=True, text=True)
    wall, processor = map(float, done.stdout.split())
    yield "beyond imports", wall
    yield "beyond imports, processor", processor
    if (times := interactive(page)) is not None:
        yield "interactive", times[0]
        yield "all figures drawn", times[1]


def _children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    main()
