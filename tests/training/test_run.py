"""The folder of a run: what is written is read back, and what is wrong is said."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors import safe_open

import planescope as ps
from planescope.files.drafts import LOCK, draft_prefix
from planescope.files.errors import CheckpointError, OutputError, UsageError
from planescope.training import run as run_module
from planescope.training.config import RunConfig
from planescope.training.folder.metrics import EpochMetrics
from planescope.training.folder.status import State, Status
from planescope.training.run import Run


def row(epoch: int) -> EpochMetrics:
    loss = None if epoch == 0 else 1 / 3 / epoch
    return EpochMetrics(
        epoch=epoch, train_loss=loss, train_accuracy=None, val_loss=0.1 + 0.2, val_accuracy=1.0,
        learning_rate=None if epoch == 0 else 1e-05, seconds=1.25,
    )  # fmt: skip


def measurement(seed: int) -> ps.Measurement:
    draw = np.random.default_rng(seed).standard_normal
    return ps.measure({"a.weight": draw((4, 3, 3, 3)), "b.weight": draw((8, 4, 3, 3))})


@pytest.fixture
def run(tmp_path) -> Run:
    return Run.create(tmp_path / "run", RunConfig(epochs=5))


def test_a_new_run_has_its_config_and_nothing_else(run):
    assert run.config == RunConfig(epochs=5)
    assert (run.metrics, run.snapshots, run.status) == ((), {}, Status(state=State.NEW))
    with pytest.raises(CheckpointError, match="nothing was measured yet"):
        _ = run.measurements


def test_a_run_is_not_made_twice(run):
    with pytest.raises(UsageError, match="exists; go on with --resume, or give another --out"):
        Run.create(run.path, RunConfig())
    assert run.config.epochs == 5


def test_a_run_that_cannot_be_made_or_found_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be made: Not a directory"):
        Run.create(tmp_path / "file" / "run", RunConfig())
    with pytest.raises(CheckpointError, match="is no run: it has no config"):
        Run.open(tmp_path)
    with pytest.raises(CheckpointError, match="is no run"):
        _ = Run(tmp_path).config
    (tmp_path / "study.yaml").write_text("")
    with pytest.raises(CheckpointError, match=r"is a study; name runs of .*study FILE --status"):
        Run.open(tmp_path)


def test_metrics_are_read_back_to_the_bit(run):
    rows = [row(epoch) for epoch in range(4)]
    run.save_metrics(rows)
    assert run.metrics == tuple(rows)
    text = (run.path / "metrics.csv").read_text()
    assert text.splitlines()[1].startswith("planescope.metrics/1,0,,,0.30000000000000004")


@pytest.mark.skipif(sys.platform != "linux", reason="names of files are text there")
def test_a_folder_whose_name_is_no_text_holds_a_run_and_its_page(tmp_path):
    named = os.fsdecode(os.fsencode(tmp_path) + b"/\xff")
    run = Run.create(named, RunConfig(epochs=5))
    run.save_snapshot(0, {"a.weight": torch.ones(4, 3, 3, 3)}, {})
    run.add_measurement(0, measurement(0))
    run.save_metrics([row(0)])
    again = Run(named)
    assert list(again.measured_layers) == [0]
    assert again.load_snapshot(0)["a.weight"].shape == (4, 3, 3, 3)
    ps.report(named).save(tmp_path / "page.html")
    assert r"\udcff" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_a_finished_run_without_its_table_is_not_sent_to_be_resumed(run):
    run.save_status(Status(state=State.FINISHED))
    sentence = r"measurements\.parquet: is lost; planescope measure .*snapshots/\*\.safetensors"
    with pytest.raises(CheckpointError, match=sentence):
        _ = run.measurements


def test_damaged_files_are_named(run):
    (run.path / "metrics.csv").write_text("schema,epoch\n1,2\n")
    with pytest.raises(CheckpointError, match=r"metrics\.csv: is damaged \(its columns are others"):
        _ = run.metrics
    (run.path / "measurements.parquet").write_bytes(b"PAR1 nonsense")
    with pytest.raises(CheckpointError, match=r"measurements\.parquet: is damaged"):
        _ = run.measurements
    run.save_metrics([row(0)])
    text = (run.path / "metrics.csv").read_text()
    (run.path / "metrics.csv").write_text(text.replace(",0,", ",zero,"))
    with pytest.raises(CheckpointError, match=r"metrics\.csv: is damaged \("):
        _ = run.metrics
    (run.path / "environment.json").write_text("[" * 100_000)
    with pytest.raises(CheckpointError, match=r"environment\.json: is damaged"):
        _ = run.environments
    (run.path / "state.json").write_text("[" * 100_000)
    with pytest.raises(CheckpointError, match=r"state\.json: cannot be read"):
        _ = run.status
    (run.path / "state.json").write_text("[]")
    with pytest.raises(CheckpointError, match=r"state\.json: cannot be read"):
        _ = run.status


def test_a_snapshot_keeps_shared_weights_and_says_what_it_is(run):
    weight = torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    run.save_snapshot(12, {"a.weight": weight, "b.weight": weight}, {"network": "lenet"})
    path = run.snapshots[12]
    assert path.name == "epoch-0012.safetensors"
    loaded = run.load_snapshot(12)
    assert torch.equal(loaded["a.weight"], weight)
    assert torch.equal(loaded["b.weight"], weight)
    with safe_open(path, "np") as file:
        about = json.loads(file.metadata()["planescope"])
    assert about == {"schema": "planescope.snapshot/1", "epoch": 12, "network": "lenet"}
    (layer,) = ps.measure(path).layers  # one weight is measured once
    assert (layer.name, layer.aliases) == ("a", ("b",))
    with pytest.raises(CheckpointError, match=r"epoch-0013\.safetensors: cannot be read"):
        run.load_snapshot(13)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        pytest.param({"filters": ["many"]}, "the filters of a .* is 'many'", id="text"),
        pytest.param({"kind": ["round"]}, "the kind of a LayerMeasurement is 'round'", id="kind"),
        pytest.param({"kernel": ["3xx-"]}, "invalid literal", id="kernel"),
        pytest.param({"epoch": ["first"]}, "invalid literal", id="epoch"),
        pytest.param({"epoch": [float("inf")]}, "cannot convert float inf", id="no-epoch"),
        pytest.param({"z": [float("inf")]}, "the z of a LayerMeasurement is inf", id="infinity"),
        pytest.param({"other": [1]}, "its columns are others", id="column"),
    ],
)
def test_rows_that_hold_something_else_are_refused(run, change, sentence):
    run.add_measurement(0, measurement(0))
    path = run.path / "measurements.parquet"
    columns = pq.read_table(path).slice(0, 1).to_pydict()
    pq.write_table(pa.table(columns | change), path)
    with pytest.raises(CheckpointError, match=rf"measurements\.parquet: is damaged \({sentence}"):
        _ = run.measured_layers


def test_a_table_of_more_rows_than_bytes_is_refused(run):
    run.add_measurement(0, measurement(0))
    path = run.path / "measurements.parquet"
    one = pq.read_table(path).slice(0, 1)
    pq.write_table(pa.concat_tables([one] * 100_000).combine_chunks(), path)
    assert path.stat().st_size < 100_000
    with pytest.raises(CheckpointError, match="it claims more rows than bytes"):
        _ = run.measurements


@pytest.mark.parametrize("parquet", [True, False], ids=["parquet", "csv"])
def test_measurements_are_one_table_in_either_form(run, parquet, monkeypatch):
    if not parquet:
        monkeypatch.setattr(run_module, "find_spec", lambda name: None)
    for epoch in (0, 1, 10):
        run.add_measurement(epoch, measurement(epoch))
    table = run.measurements
    assert (run.path / f"measurements.{'parquet' if parquet else 'csv'}").is_file()
    assert list(table.epoch) == [0, 0, 1, 1, 10, 10]
    assert list(table.layer[:2]) == ["a", "b"]
    expected = [layer.mean_cosine for layer in measurement(10).layers]
    assert list(table.mean_cosine[4:]) == expected
    assert table.l2.isna().all()
    run.cut(1)
    assert list(run.measurements.epoch) == [0, 0, 1, 1]


def test_cutting_removes_what_came_after_an_epoch(run):
    run.save_metrics([row(epoch) for epoch in range(4)])
    for epoch in range(4):
        run.save_snapshot(epoch, {"w": torch.ones(1)}, {})
        run.add_measurement(epoch, measurement(epoch))
    run.cut(2)
    assert [entry.epoch for entry in run.metrics] == [0, 1, 2]
    assert list(run.snapshots) == [0, 1, 2]
    assert run.filter_epochs == (0, 1, 2)
    run.cut(-1)
    assert (run.metrics, run.snapshots, run.filter_epochs) == ((), {}, ())


def test_cosine_and_offset_of_each_filter_are_kept_in_single_precision(run):
    measured = measurement(3)
    run.add_measurement(3, measured)
    kept = run.load_filters(3)
    assert list(kept) == ["a", "b"]
    for layer in measured.layers:
        expected = np.stack([layer.values.cosine, layer.values.offset])
        np.testing.assert_allclose(kept[layer.name], expected, rtol=2**-24)
    with pytest.raises(CheckpointError, match=r"epoch-0004\.safetensors: cannot be read"):
        run.load_filters(4)


def test_rows_of_another_schema_are_refused(run):
    run.add_measurement(0, measurement(0))
    columns = run._measured()
    run._save_measured(
        columns | {"schema": ["planescope.run-measurements/9", *columns["schema"][1:]]}
    )
    with pytest.raises(
        CheckpointError, match=r"rows of the schema 'planescope\.run-measurements/9'"
    ):
        _ = run.measurements


HOLD = """
import sys
from planescope.training.run import Run
with Run(sys.argv[1]).lock():
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_run_is_held_by_one_process_which_lets_go_when_it_is_killed(run):
    run.save_status(Status(state=State.RUNNING))
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, run.path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout.readline().strip() == b"held"
        assert run.status.state is State.RUNNING
        with pytest.raises(UsageError, match="another process is training this run"), run.lock():
            pass
        holder.kill()
    assert run.status == Status(state=State.STOPPED, message="it was killed; go on with --resume")
    with run.lock():
        pass


def test_who_holds_a_run_removes_what_killed_processes_left_in_it(run):
    # As of one killed after the file was in its place, and before its draft was removed.
    run.add_measurement(0, measurement(0))
    for folder in (run.path, run.path / "snapshots", run.path / "filters"):
        left = folder / f"{draft_prefix(folder / 'config.yaml')}abcd_012"
        left.mkdir()
        (left / LOCK).write_text("")
    with run.lock():
        assert not list(run.path.rglob(".planescope-*"))


def test_environment_keeps_each_start(run):
    run.save_environment({"python": "1"})
    run.save_environment({"python": "2"})
    assert [start["python"] for start in run.environments] == ["1", "2"]
    kept = json.loads((run.path / "environment.json").read_text())
    assert kept["schema"] == "planescope.environment/1"


FULL = """
import resource, sys, signal, torch
from planescope.training.run import Run
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
Run(sys.argv[1]).save_snapshot(1, {"w": torch.ones(10_000)}, {})
"""


@pytest.mark.skipif(os.name == "nt", reason="limits the size of files as POSIX does")
def test_a_snapshot_that_does_not_fit_leaves_nothing(run):
    done = subprocess.run(
        [sys.executable, "-c", FULL, run.path], capture_output=True, text=True, check=False
    )
    assert "OutputError" in done.stderr
    assert "epoch-0001.safetensors: cannot be written" in done.stderr
    assert list((run.path / "snapshots").iterdir()) == []
