"""Hold resets of networks that others made against load, evaluate, restore.

    python -m checks.own.networks [--table] [NAME...]

Of timm, torchvision, transformers and segmentation-models-pytorch, with weights as they are drawn:
every layer is put back to another draw on random inputs, and outputs are compared through
planescope's own columns (disagreement and relative L2), counted by the plain loop.
"""

from __future__ import annotations

import copy
import importlib.metadata
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

import planescope as ps
from planescope.files.errors import PlanescopeError

EXAMPLES, BATCH = 8, 4
# Layers of each network that are held against the plain loop; all are reset.
COMPARED = 6
# Outputs that move by less of their norm move by rounding alone.
ROUNDING = 1e-3


@dataclass(frozen=True)
class Case:
    """A network, and what it is fed with."""

    name: str
    package: str
    make: Callable[[], nn.Module]
    size: int = 64
    output: str | None = None
    named: bool = False


def _timm(name: str, **more: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        import timm

        return timm.create_model(name, num_classes=10, **more)

    return make


def _torchvision(name: str) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        from torchvision import models

        return models.get_model(name, weights=None, num_classes=10)

    return make


def _vit() -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    return ViTForImageClassification(
        ViTConfig(
            image_size=64, patch_size=16, hidden_size=96, num_hidden_layers=4,
            num_attention_heads=4, intermediate_size=192, num_labels=10,
        )
    )  # fmt: skip


def _resnet() -> nn.Module:
    from transformers import ResNetConfig, ResNetForImageClassification

    return ResNetForImageClassification(
        ResNetConfig(
            embedding_size=16, hidden_sizes=[32, 64, 96, 128], depths=[2, 2, 2, 2], num_labels=10
        )
    )


def _unet() -> nn.Module:
    import segmentation_models_pytorch as smp

    return smp.Unet("resnet18", encoder_weights=None, classes=4)


def _deeplab() -> nn.Module:
    import segmentation_models_pytorch as smp

    return smp.DeepLabV3Plus("mobilenet_v2", encoder_weights=None, classes=4)


SMP = "segmentation-models-pytorch"
CASES = (
    Case("resnet18", "torchvision", _torchvision("resnet18")),
    Case("mobilenet_v3_small", "torchvision", _torchvision("mobilenet_v3_small")),
    Case("densenet121", "torchvision", _torchvision("densenet121")),
    Case("googlenet", "torchvision", _torchvision("googlenet"), size=96),
    Case("convnext_atto", "timm", _timm("convnext_atto")),
    Case("efficientnet_b0", "timm", _timm("efficientnet_b0")),
    Case("resnetv2_50 (standardised)", "timm", _timm("resnetv2_50x1_bit")),
    Case("vit_tiny_patch16", "timm", _timm("vit_tiny_patch16_224", img_size=64)),
    Case("regnety_002", "timm", _timm("regnety_002")),
    Case("ViT", "transformers", _vit, output="logits", named=True),
    Case("ResNet", "transformers", _resnet, output="logits", named=True),
    Case("Unet", SMP, _unet),
    Case("DeepLabV3Plus", SMP, _deeplab),
)


def _drawn(case: Case, seed: int) -> nn.Module:
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        network = case.make()
        for part in network.modules():  # a network that was trained has moments of its own
            if isinstance(part, nn.BatchNorm2d):
                part.running_mean.normal_(0, 0.1)
                part.running_var.uniform_(0.5, 1.5)
    return network


@torch.no_grad()
def _answers(network: nn.Module, case: Case, x: torch.Tensor) -> torch.Tensor:
    network.eval()
    found = []
    for part in x.split(BATCH):
        output = network(pixel_values=part) if case.named else network(part)
        found.append(output[case.output] if case.output else output)
    return torch.cat(found)


@dataclass(frozen=True)
class Found:
    """The result of a network: layers, or a sentence."""

    case: Case
    layers: int = 0
    compared: int = 0
    disagreement: float = 0.0
    l2: float = 0.0
    seconds: float = 0.0
    refusal: str = ""


def check(case: Case) -> Found:
    """Reset all layers of a network, and some of them the plain way."""
    network, start = _drawn(case, 0), _drawn(case, 1).state_dict()
    network.train()
    before = copy.deepcopy(network.state_dict())
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(EXAMPLES, 3, case.size, case.size, generator=generator)
    parts = x.split(BATCH)
    data: list[Any] = [{"pixel_values": part} for part in parts] if case.named else list(parts)
    began = time.perf_counter()
    try:
        resets = ps.reset(network, to={"start": start}, data=data, kinds="all", output=case.output)
    except PlanescopeError as exc:
        return Found(case, refusal=str(exc))
    seconds = time.perf_counter() - began
    assert network.training, case.name
    assert all(torch.equal(before[n], w) for n, w in network.state_dict().items()), case.name
    whole, worst, moved = _answers(network, case, x), 0.0, 0.0
    cells = resets.cells[:: max(1, len(resets.cells) // COMPARED)]
    for cell in cells:
        changed = copy.deepcopy(network)
        back = {n: w for n, w in start.items() if n.startswith(f"{cell.layer}.")}
        changed.load_state_dict({**changed.state_dict(), **back})
        other = _answers(changed, case, x)
        if cell.disagreement is not None:
            plain = float((other.argmax(1) != whole.argmax(1)).float().mean())
            worst = max(worst, abs(plain - cell.disagreement))
        plain = float((other - whole).norm() / whole.norm())
        moved = max(moved, abs(plain - cell.relative_l2) / max(plain, ROUNDING))
    return Found(case, len(resets.rows), len(cells), worst, moved, seconds)


def main() -> None:
    """Print a line a network, or with --table the table of docs/reliability.md."""
    as_table, names = "--table" in sys.argv, {a for a in sys.argv[1:] if a != "--table"}
    if as_table:
        print(
            "| network | package | layers | compared | disagreement differs | relative L2 differs |"
        )
        print("| --- | --- | ---: | ---: | ---: | ---: |")
    failed = []
    for case in CASES:
        if names and case.name not in names:
            continue
        found = check(case)
        version = importlib.metadata.version(case.package)
        if found.refusal:
            row = f"| {case.name} | {case.package} {version} | | | {found.refusal} | |"
        else:
            row = (
                f"| {case.name} | {case.package} {version} | {found.layers} | {found.compared} | "
                f"{found.disagreement:g} | {found.l2:.0e} |"
            )
        print(row if as_table else f"{row} {found.seconds:.1f} s", flush=True)
        if found.disagreement or found.l2 > 1e-4:
            failed.append(case.name)
    if failed:
        sys.exit(f"differ from the plain loop: {', '.join(failed)}")


if __name__ == "__main__":
    main()
