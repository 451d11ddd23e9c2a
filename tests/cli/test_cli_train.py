"""``planescope train`` and ``status`` as processes: what they print, and how they end.

Those that train are forks with all imports made, but for the first one and two that share a run.
"""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import warm

from planescope.files.errors import UsageError
from planescope.training.config import RunConfig, load_config
from planescope.training.folder.status import State
from planescope.training.loop import train
from planescope.training.run import Run

SMALL = ("--epochs", "2", "--examples", "128", "--threads", "1", "--snapshots-until", "0")


def command(*args: str | Path) -> list[str]:
    return [sys.executable, "-m", "planescope", *map(str, args)]


def run(*args: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*args), capture_output=True, text=True, encoding="utf-8", timeout=300
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    config = folder / "run.yaml"
    config.write_text("epochs: 9\nlearning_rate: 0.01\n", encoding="utf-8")
    done = run("train", "--config", config, *SMALL, "--out", folder / "run")
    assert (done.returncode, done.stderr) == (0, "")
    line = r"run: lenet on digits, finished, epoch 2 of 2, training loss \d.*, accuracy \d+\.\d%"
    assert re.search(line, done.stdout)
    return folder / "run"


def test_the_command_line_goes_before_the_file(trained):
    config = RunConfig(epochs=2, examples=128, threads=1, snapshots_until=0, learning_rate=0.01)
    assert Run(trained).config == config


def test_the_config_of_a_run_repeats_it(trained, tmp_path):
    again = train(load_config(trained / "config.yaml"), tmp_path / "again")
    for mine, its in zip(again.snapshots.values(), Run(trained).snapshots.values(), strict=True):
        assert mine.read_bytes() == its.read_bytes()


def test_a_snapshot_is_measured_like_any_file(trained):
    done = run(
        "measure", trained / "snapshots" / "epoch-0002.safetensors",
        "--init", trained / "snapshots" / "epoch-0000.safetensors", "--network", "lenet", "--json",
    )  # fmt: skip
    assert json.loads(done.stdout)["network"]["layers"] == 6


def test_status_tells_how_far_a_run_is(trained):
    done = run("status", trained, trained)
    assert (done.returncode, done.stderr, done.stdout.count("\n")) == (0, "", 2)
    assert "finished, epoch 2 of 2" in done.stdout
    fields = json.loads(run("status", trained, "--json").stdout)
    assert fields["schema"] == "planescope.status/1"
    assert (fields["state"], fields["last"]["epoch"]) == ("finished", 2)


def test_help_has_every_option_and_imports_no_torch():
    code = "import sys; sys.argv = ['planescope', 'train', '--help']\n"
    code += "from planescope.cli import main\ntry:\n    main()\nexcept SystemExit: pass\n"
    code += "print('torch' in sys.modules, 'pydantic' in sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.split() == ["False", "True"]
    for field in RunConfig.model_fields:
        assert re.search(rf"--{field.replace('_', '-')}[ ,]", done.stdout)


def test_other_commands_import_no_pydantic():
    code = "import sys; sys.argv = ['planescope', '--help']\n"
    code += "from planescope.cli import main\ntry:\n    main()\nexcept SystemExit: pass\n"
    code += "print('pydantic' in sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "False"


def wrong_yaml(folder: Path) -> Path:
    path = folder / "wrong.yaml"
    path.write_text("epochs: 2\nlearning_rat: 1\n", encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        pytest.param(lambda d, r: ["--network", "lenett"], "'lenett'.*lenet", id="network"),
        pytest.param(lambda d, r: ["--label-noise", "1.5"], "label_noise: .* 1, not", id="noise"),
        pytest.param(lambda d, r: ["--epochs", "many"], "epochs: .*integer.*'many'", id="epochs"),
        pytest.param(lambda d, r: ["--epoch", "3"], "No such option.*--epochs", id="option"),
        pytest.param(
            lambda d, r: ["--config", wrong_yaml(d)],
            r"wrong\.yaml, line 2: learning_rat: .*learning_rate",
            id="field",
        ),
        pytest.param(lambda d, r: ["--out", r], "exists; go on with --resume", id="exists"),
        pytest.param(
            lambda d, r: ["--out", r, "--resume", "--epochs", "3"],
            "was started with epochs 2, not 3",
            id="differs",
        ),
        pytest.param(lambda d, r: ["--resume"], "there is no run to resume", id="no-run"),
    ],
)
def test_bad_input_gives_a_sentence_and_status_2(build, sentence, trained, tmp_path):
    args = build(tmp_path, trained)
    before = sorted(tmp_path.iterdir())
    done = run("train", "--out", tmp_path / "run", *args)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.search(sentence, done.stderr), done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(tmp_path.iterdir()) == before


def test_status_of_no_run_is_refused(tmp_path):
    done = run("status", tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "is no run" in done.stderr


@pytest.mark.slow
def test_a_diverged_run_ends_with_status_1_and_is_kept(tmp_path):
    done = warm.run("train", *SMALL, "--learning-rate", "1e6", "--out", tmp_path / "run")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert "the loss is no longer finite in epoch 1" in done.stderr
    assert "failed, epoch 0 of 2" in run("status", tmp_path / "run").stdout


@pytest.mark.skipif(os.name == "nt", reason="signals as POSIX has them")
def test_an_interrupt_says_how_to_go_on(trained, tmp_path):
    out = tmp_path / "a run"
    args = ("train", *SMALL, "--epochs", "500", "--out", out)
    with warm.Command(*args) as process:
        wait_for(lambda: len(Run(out).metrics) > 2, process)
        process.send_signal(signal.SIGINT)
        _, talk = process.communicate()
        assert process.poll() == 130
    assert talk.count("\n") == 1
    assert f"interrupted; go on with: planescope train --out '{out}' --resume" in talk
    assert Run(out).status.state is State.STOPPED


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="signals as POSIX has them")
def test_a_second_training_of_a_run_is_refused_and_the_first_one_goes_on(tmp_path):
    out = tmp_path / "run"
    args = ("train", *SMALL, "--epochs", "500", "--out", out)
    with warm.Command(*args) as process:
        wait_for(lambda: len(Run(out).metrics) > 1, process)
        before = (out / "config.yaml").read_bytes(), len(Run(out).environments)
        for resume, sentence in (
            (False, "run: exists; go on with --resume, or give another --out"),
            (True, "run: another process is training this run"),
        ):
            with pytest.raises(UsageError, match=sentence) as refused:
                train(load_config(out / "config.yaml"), out, resume=resume)
            assert refused.value.status == 2
        epochs = len(Run(out).metrics)
        wait_for(lambda: len(Run(out).metrics) > epochs, process)
        assert ((out / "config.yaml").read_bytes(), len(Run(out).environments)) == before
        process.send_signal(signal.SIGINT)
        process.communicate()
    assert Run(out).status.state is State.STOPPED


def wait_for(condition, process: warm.Command) -> None:
    while not condition():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)


def limit_files() -> None:
    import resource

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (700_000, 700_000))


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="limits the size of files as POSIX does")
def test_a_checkpoint_that_does_not_fit_ends_the_run_with_a_sentence(tmp_path):
    # A snapshot of LeNet has 525 kB, what resuming needs twice that.
    args = ("train", *SMALL, "--out", tmp_path / "run")
    done = warm.run(*args, first=limit_files)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
    assert "last.ckpt: cannot be written: " in done.stderr
    assert Run(tmp_path / "run").status.state is State.FAILED
    assert not (tmp_path / "run" / "last.ckpt").exists()


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="signals as POSIX has them")
def test_a_run_killed_at_any_moment_and_resumed_ends_with_the_same_bits(tmp_path):
    args = (*SMALL, "--epochs", "8", "--snapshots-every", "3")
    assert warm.run("train", *args, "--out", tmp_path / "whole").returncode == 0
    rng = random.Random(0)  # noqa: S311
    killed = tmp_path / "killed"
    kills = 0
    for epochs in (0, 2, 4):
        resume = ["--resume"] if killed.exists() else []
        with warm.Command("train", *args, "--out", killed, *resume) as process:
            while process.poll() is None and len(Run(killed).metrics) <= epochs:
                time.sleep(0.01)
            time.sleep(rng.uniform(0, 0.1))
            kills += process.poll() is None
            process.kill()
    done = warm.run("train", *args, "--out", tmp_path / "killed", "--resume")
    assert (done.returncode, kills > 0) == (0, True)
    whole, killed = Run(tmp_path / "whole"), Run(tmp_path / "killed")
    assert [p.read_bytes() for p in killed.snapshots.values()] == [
        p.read_bytes() for p in whole.snapshots.values()
    ]
    assert killed.measurements.equals(whole.measurements)
    assert [row.val_loss for row in killed.metrics] == [row.val_loss for row in whole.metrics]


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="gloo over sockets")
def test_two_processes_share_a_run(tmp_path):
    args = ("--strategy", "ddp", "--devices", "2", "--accelerator", "cpu")
    done = run("train", *SMALL, *args, "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1
    assert Run(tmp_path / "run").metrics[-1].epoch == 2
