"""``planescope reset`` as a process: what it prints, how it ends, and what it leaves.

The processes are forks with all imports made, but for the first.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from importlib.resources import files
from pathlib import Path

import jsonschema
import pytest
import warm

import planescope as ps
from planescope.training.config import RunConfig
from planescope.training.loop import train
from planescope.training.precision import fitting_precision
from planescope.training.run import Run

PARITY = Path("tests/parity")
TRAINED = ("--trained", PARITY / "lenet-epoch-12.tar")
FIRST = ("--snapshot", PARITY / "lenet-epoch-0.pt")
KNOWN = ("--network", "lenet", "--data", "mnist", "--data-path", PARITY, "--device", "cpu")


def run(*args: str | Path) -> subprocess.CompletedProcess[str]:
    return warm.run("reset", *args)


def cold(*args: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "planescope", "reset", *map(str, args)],
        capture_output=True, text=True, encoding="utf-8", timeout=300,
    )  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A run of two epochs on few digits."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    config = RunConfig(
        epochs=2, examples=256, threads=1, snapshots_until=2, batch_size=8, learning_rate=0.01
    )
    train(config, folder)
    return folder


def test_checkpoints_give_json_by_the_schema():
    snapshots = [a for e in (0, 1) for a in ("--snapshot", PARITY / f"lenet-epoch-{e}.pt")]
    done = cold(*TRAINED, *snapshots, *KNOWN, "--layers", "features.0", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout, parse_constant=pytest.fail)
    schema = json.loads(
        (files("planescope.files") / "schemas" / "resets-2.json").read_text("utf-8")
    )
    jsonschema.validate(found, schema)
    assert [(c["layer"], c["snapshot"], c["draw"], c["top1"]) for c in found["cells"]] == [
        ("features.0", "lenet-epoch-0.pt", None, 0.106),
        ("features.0", "lenet-epoch-1.pt", None, 0.909),
    ]


def test_a_run_is_reset_to_all_of_its_epochs(trained, tmp_path):
    figure, table = tmp_path / "map.png", tmp_path / "resets.csv"
    done = run(
        trained, "--rand", "--draws", "2", "--together", "features.0,features.2", "--out", table,
        "--figure", figure,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"layer +mass +epoch 0 +epoch 1 +rand", done.stdout)
    assert re.search(r"trained: \d+\.\d% of 1000 examples right", done.stdout)
    assert "features.0,features.2 " in done.stdout
    found = ps.Resets.load(Run(trained).resets)
    assert (found.snapshots, len(found.rows), len(found.cells)) == ((0, 1, "rand"), 7, 7 * 4)
    assert found.trained.top1 == pytest.approx(Run(trained).metrics[-1].val_accuracy)
    assert found.data == "digits"
    assert figure.read_bytes().startswith(b"\x89PNG")
    assert len(table.read_text().splitlines()) == 1 + 28
    assert sorted(p.name for p in tmp_path.iterdir()) == ["map.png", "resets.csv"]


def test_a_run_may_be_reset_to_some_epochs_on_its_training_examples_in_bfloat16(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    done = run(tmp_path / "run", "--snapshot", "1", "--split", "train", "--precision", "auto")
    found = ps.Resets.load(Run(tmp_path / "run").resets)
    assert (found.split, found.trained.examples) == ("train", 256)
    assert {cell.snapshot for cell in found.cells} == {1}
    assert found.precision == fitting_precision("cpu")
    assert done.stdout.startswith(f"precision: {found.precision}, chosen for this device\n")
    in_short = found.precision == "bf16-mixed"
    assert ("computed in bf16-mixed" in " ".join(done.stdout.split())) == in_short


def without_epoch_0(folder: Path, trained: Path) -> list[str | Path]:
    shutil.copytree(trained, folder / "run")
    Run(folder / "run").snapshots[0].unlink()
    return [folder / "run"]


def unfinished(folder: Path, trained: Path) -> list[str | Path]:
    shutil.copytree(trained, folder / "run")
    (folder / "run" / "state.json").write_text(
        '{"schema": "planescope.run-state/1", "state": "stopped", "message": ""}'
    )
    return [folder / "run"]


def bare(folder: Path, trained: Path) -> list[str | Path]:
    shutil.copytree(trained, folder / "run")
    for epoch, path in Run(folder / "run").snapshots.items():
        if epoch:
            path.unlink()
    return [folder / "run"]


def wider(folder: Path, trained: Path) -> list[str | Path]:
    import torch

    from planescope.networks.build import build

    torch.save(build("lenet", in_channels=1, width=2).state_dict(), folder / "wider.pt")
    return [*TRAINED, "--snapshot", folder / "wider.pt", *KNOWN]


def nothing_to_validate(folder: Path, trained: Path) -> list[str | Path]:
    (folder / "val" / "zero").mkdir(parents=True)
    return [*TRAINED, *FIRST, "--network", "lenet", "--data", f"folder:{folder}"]


def given(*args: str | Path):
    return lambda folder, trained: list(args)


@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        pytest.param(given(), "give a run, or a checkpoint with --trained", id="nothing"),
        pytest.param(given("no-run"), "no-run: is no run", id="no-run"),
        pytest.param(given("run", *TRAINED), "give a run, or", id="run-and-checkpoint"),
        pytest.param(given("run", "--data-path", "x"), "a run knows its", id="data-of-a-run"),
        pytest.param(given(*TRAINED, *FIRST), "needs --network and --data", id="no-network"),
        pytest.param(given(*TRAINED, *KNOWN), "nothing to put layers back to", id="no-snapshot"),
        pytest.param(
            given(*TRAINED, *FIRST, "--network", "lenet", "--data", "digits", "--draws", "2"),
            "--draws says how many draws --fresh or --rand takes",
            id="draws-without-rand",
        ),
        pytest.param(
            wider, r"wider.pt: .*another network: features.0 has shape 12×1×3×3 there, 6×1×3×3",
            id="another-network",
        ),
        pytest.param(
            given(*TRAINED, *FIRST, "--network", "vgg11", *KNOWN[2:]),
            r"12\.tar: this is no vgg11: features.3 should be",
            id="not-that-network",
        ),
        pytest.param(
            given(*TRAINED, *FIRST, "--network", "lenet", "--data", "cifar10", "--data-path", "."),
            "cifar10 is not there",
            id="no-data",
        ),
        pytest.param(nothing_to_validate, "zero|no images|no .*image", id="empty-validation-set"),
        pytest.param(
            given(*TRAINED, *FIRST, *KNOWN, "--layers", "feature.12"),
            "no layer is called 'feature.12'; the nearest are features.12",
            id="layer",
        ),
        pytest.param(
            given(*TRAINED, *FIRST, *KNOWN, "--together", "features.0,features.1"),
            "no layer is called 'features.1'; the nearest are features",
            id="together",
        ),
        pytest.param(
            given(*TRAINED, *FIRST, *KNOWN, "--kinds", "transposed"),
            "no layer to measure; it holds layers of the kinds 6 conv, 3 linear",
            id="kinds",
        ),
        pytest.param(
            given(*TRAINED, *FIRST, *KNOWN, "--subset", "2000"), "has 1000 examples", id="subset"
        ),
        pytest.param(
            given(*TRAINED, *FIRST, *KNOWN, "--memory", "lots"), "500M or 4G", id="memory"
        ),
        pytest.param(
            given(*TRAINED, *FIRST, *KNOWN[:-1], "cuda:99"), "'cuda:99' cannot be used", id="device"
        ),
        pytest.param(
            given(*TRAINED, *FIRST, *KNOWN, "--out", "a.txt"), "must end in .json", id="out"
        ),
        pytest.param(without_epoch_0, "no snapshot of epoch 0; there are 1, 2", id="no-epoch-0"),
        pytest.param(unfinished, "not finished but stopped; .*--unfinished", id="unfinished"),
        pytest.param(bare, "its only snapshot is of epoch 0", id="one-snapshot"),
        pytest.param(
            lambda d, r: [r, "--snapshot", "7"], "of epoch 7; there are 0, 1, 2", id="epoch"
        ),
        pytest.param(
            lambda d, r: [r, "--snapshot", "a.pt"], "'a.pt': give the epoch", id="no-epoch"
        ),
    ],
)  # fmt: skip
def test_bad_input_gives_a_sentence_and_status_2(build, sentence, trained, tmp_path):
    args = build(tmp_path, trained)
    before = sorted(tmp_path.rglob("*"))
    done = run(*args)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
    assert re.search(sentence, done.stderr), done.stderr
    assert sorted(tmp_path.rglob("*")) == before


def test_an_unfinished_run_is_taken_where_that_is_asked_for(trained, tmp_path):
    done = run(*unfinished(tmp_path, trained), "--unfinished", "--layers", "features.0", "--json")
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["cells"]) == 2


def save_often() -> None:
    from planescope.criticality.resets.engine import progress as tallies

    tallies.SAVE_EVERY_S = 0.05


@pytest.mark.skipif(os.name == "nt", reason="signals as POSIX has them")
def test_interrupted_work_goes_on_where_it_was(tmp_path):
    out, kept = tmp_path / "resets.json", tmp_path / "resets.json.progress"
    snapshots = [a for e in (0, 1, 3, 9) for a in ("--snapshot", PARITY / f"lenet-epoch-{e}.pt")]
    args = (*TRAINED, *snapshots, *KNOWN, "--rand", "--draws", "4", "--out", out)
    with warm.Command("reset", *args, first=save_often) as process:
        while not kept.exists():
            assert process.poll() is None, process.communicate()
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, talk = process.communicate()
        assert process.poll() == 130
    assert talk == "planescope: interrupted; the same command goes on\n"
    (protocol,) = json.loads(kept.read_text())["protocols"].values()
    seen = sum(tally["examples"] for tally in protocol.values())
    assert 0 < seen < (6 * 8 + 1) * 1000
    assert not out.exists()
    assert run(*args).returncode == 0
    whole = tmp_path / "whole.json"
    assert run(*args[:-1], whole).returncode == 0
    assert out.read_bytes() == whole.read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["resets.json", "whole.json"]


def test_help_imports_no_torch():
    code = "import sys; sys.argv = ['planescope', 'reset', '--help']\n"
    code += "from planescope.cli import main\ntry:\n    main()\nexcept SystemExit: pass\n"
    code += "print('torch' in sys.modules, 'numpy' in sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.split() == ["False", "False"]
    for option in ("--rand", "--draws", "--together", "--tolerance", "--memory", "--devices"):
        assert option in done.stdout
