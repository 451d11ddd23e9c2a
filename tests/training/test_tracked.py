"""A run that a Tracker writes is read like one of planescope's own, and says what is known."""

import copy
import json
import subprocess
import sys

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

import planescope as ps
from planescope.files.errors import UsageError
from planescope.training.folder.status import State


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.one = nn.Conv2d(1, 6, 3, bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.two = nn.Conv2d(6, 6, 3)
        self.head = nn.Linear(6 * 16, 2)

    def forward(self, x):
        x = torch.relu(self.norm(self.one(x)))
        return self.head(torch.relu(self.two(x)).flatten(1))


def examples():
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(80, 1, 8, 8, generator=generator)
    y = torch.arange(80) % 2
    x[y == 1, :, :4] += 0.7
    return x, y


def trained(tracker, *, by_epoch, epochs=4):
    torch.manual_seed(0)
    network, (x, y) = Net(), examples()
    optimiser = torch.optim.Adam(network.parameters(), 0.02)
    tracker.update(network, 0, epoch=0 if by_epoch else None)
    step = 0
    for epoch in range(epochs):
        network.train()
        for i in range(0, 80, 20):
            optimiser.zero_grad()
            loss = cross_entropy(network(x[i : i + 20]), y[i : i + 20])
            loss.backward()
            optimiser.step()
            step += 1
            if not by_epoch:
                tracker.update(network, step, metrics={"train_loss": float(loss.detach())})
        if by_epoch:
            tracker.update(
                network, step, epoch=epoch + 1, metrics={"val_loss": float(loss.detach())}
            )
    tracker.close()
    return network


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tracked")
    by_epoch = trained(ps.Tracker(out=folder / "epochs"), by_epoch=True)
    trained(ps.Tracker(out=folder / "steps", every=5), by_epoch=False)
    return folder, by_epoch


def test_snapshots_statistics_and_figures_are_those_of_the_training(runs):
    folder, network = runs
    run = ps.Run(folder / "epochs")
    assert (run.unit, list(run.snapshots), run.status.state) == (
        "epoch", [0, 1, 2, 3, 4], State.FINISHED,
    )  # fmt: skip
    last = run.load_snapshot(4)
    assert all(torch.equal(last[n], t) for n, t in network.state_dict().items())
    measured = ps.measure(network, init=run.snapshots[0])
    row = run.measured_layers[4][1]
    assert (row.name, row.negative_mass) == ("two", measured.layers[1].negative_mass)
    assert row.l2 == pytest.approx(measured.layers[1].l2, rel=1e-6)
    assert [m.val_loss is None for m in run.metrics] == [True, False, False, False, False]
    with pytest.raises(UsageError, match="a Tracker followed this training"):
        _ = run.config


def test_steps_are_called_steps_everywhere(runs):
    folder, _ = runs
    run = ps.Run(folder / "steps")
    assert list(run.snapshots) == [0, 5, 10, 15]
    assert run.measurements["step"].unique().tolist() == [0, 5, 10, 15]
    assert "epoch" not in (run.path / "metrics.csv").read_text()
    resets = ps.reset(run, network=Net(), data=examples())
    assert resets.snapshots == (0, "step 5", "step 10")
    page = ps.report(run).contents.networks[0]
    assert (page.unit, page.epochs) == ("step", (0, 5, 10, 15))
    figure = ps.figures.dynamics(run)
    assert {axes.get_xlabel() for axes in figure.axes if axes.get_xlabel()} == {"step"}


def test_resets_are_those_of_the_network_and_are_kept_in_the_run(runs):
    folder, network = runs
    path = folder / "epochs"
    data = DataLoader(TensorDataset(*examples()), 30)
    found = ps.reset(path, network=Net(), data=data, to=[0])
    start = ps.Run(path).load_snapshot(0)
    expected = ps.reset(network, to={"init": start}, data=data)
    assert [c.value for c in found.cells] == [c.value for c in expected.cells]
    assert ps.Run(path).resets.is_file()
    related = ps.relate(path)
    assert [layer.name for layer in related.layers] == ["one", "two"]
    assert ps.report(path).contents.networks[0].resets is not None


@pytest.mark.parametrize(
    ("given", "sentence"),
    [({"data": examples()}, "give network="), ({"network": Net()}, "give data=")],
)
def test_what_a_tracker_does_not_know_is_asked_for(runs, given, sentence):
    with pytest.raises(UsageError, match=sentence):
        ps.reset(runs[0] / "epochs", **given)


def test_a_folder_is_of_one_training_and_goes_on_with_it_alone(tmp_path):
    tracker = ps.Tracker(out=tmp_path / "run")
    network = trained(tracker, by_epoch=True, epochs=2)
    with pytest.raises(UsageError, match="exists; give another out"):
        ps.Tracker(out=tmp_path / "run").update(network, 0, epoch=0)
    with pytest.raises(UsageError, match="metrics has 'loss'; the nearest are"):
        tracker.update(network, 99, epoch=9, metrics={"loss": 1.0})
    resumed = ps.Tracker(out=tmp_path / "run")
    resumed.load_state_dict(copy.deepcopy(tracker.state_dict()))
    resumed.update(network, 20, epoch=3)
    run = ps.Run(tmp_path / "run")
    assert list(run.snapshots) == [0, 1, 2, 3]
    assert [row.epoch for row in run.metrics] == [0, 1, 2, 3]
    assert sorted(run.measured_layers) == [0, 1, 2, 3]
    with pytest.warns(UserWarning, match="epoch 1 comes after 3"):
        resumed.update(network, 30, epoch=1)


def test_lightning_writes_its_epochs_and_figures(tmp_path):
    class Task(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = Net()

        def training_step(self, batch, _):
            return cross_entropy(self.net(batch[0]), batch[1])

        def validation_step(self, batch, _):
            self.log("val_loss", cross_entropy(self.net(batch[0]), batch[1]))

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

    loader = DataLoader(TensorDataset(*examples()), 40)
    trainer = pl.Trainer(
        max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
        callbacks=[ps.Tracker(out=tmp_path / "run")],
    )  # fmt: skip
    trainer.fit(Task(), loader, loader)
    run = ps.Run(tmp_path / "run")
    assert (list(run.snapshots), run.status.state) == ([0, 1, 2], State.FINISHED)
    assert all(row.val_loss is not None for row in run.metrics[1:])
    resets = ps.reset(run, network=Net(), data=loader)  # without the wrapper's name
    assert resets.rows == ("one", "two")


def test_the_command_line_reads_it(runs, tmp_path):
    (tmp_path / "mine.py").write_text(
        "import torch\nfrom torch import nn\n"
        "def network():\n"
        "    class Net(nn.Module):\n"
        "        def __init__(self):\n"
        "            super().__init__()\n"
        "            self.one = nn.Conv2d(1, 6, 3, bias=False)\n"
        "            self.norm = nn.BatchNorm2d(6)\n"
        "            self.two = nn.Conv2d(6, 6, 3)\n"
        "            self.head = nn.Linear(96, 2)\n"
        "        def forward(self, x):\n"
        "            x = torch.relu(self.norm(self.one(x)))\n"
        "            return self.head(torch.relu(self.two(x)).flatten(1))\n"
        "    return Net()\n"
        "def data():\n"
        "    return torch.utils.data.TensorDataset(torch.rand(20, 1, 8, 8), torch.arange(20) % 2)\n"
    )
    command = [sys.executable, "-m", "planescope", "reset", str(runs[0] / "steps")]
    options = ["--network", "mine:network", "--data", "mine:data", "--snapshot", "0", "--json"]
    done = subprocess.run([*command, *options], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert {cell["snapshot"] for cell in json.loads(done.stdout)["cells"]} == {0}
