"""Targets that are made, not found: fresh draws, and steps on the way to the trained weights."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from planescope.criticality.resets.record import FRESH, RAND
from planescope.criticality.resets.targets import Target
from planescope.criticality.resets.weights import state_of
from planescope.files.errors import OutputError, one_line
from planescope.networks.live.copies import deep_copy
from planescope.networks.load import fitting, tensor_of

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    from planescope.criticality.options import ResetOptions
    from planescope.criticality.resets.trained import Subject
    from planescope.hyperplanes.layer import Tensor


def stepped(subject: Subject, /) -> tuple[Target, ...]:
    """Return the targets, or the steps from the only one to the trained weights.

    METHOD, section 7: path.
    """
    if subject.path is None:
        return subject.targets
    (first,), steps = subject.targets, subject.path
    own = subject.module.state_dict()
    return tuple(
        replace(
            first,
            snapshot=f"path:{step}/{steps}",
            tensors={
                name: replace(
                    tensor, read=functools.partial(_between, tensor, own[name], step, steps)
                )
                for name, tensor in first.tensors.items()
                if name in own
            },
            digest=functools.partial(_step_digest, first, step, steps),
        )
        for step in range(steps + 1)
    )


def _between(start: Tensor, end: torch.Tensor, step: int, steps: int) -> torch.Tensor:
    """Return W0 + k/K (W - W0), the ends exactly."""
    if step == steps:
        return end.detach()
    begin = tensor_of(start.read()).to(end.device, end.dtype)
    if step == 0 or not end.is_floating_point():
        return begin
    return begin + (step / steps) * (end.detach() - begin)


def _step_digest(target: Target, step: int, steps: int) -> str:
    return f"{target.digest()} {step}/{steps}"


def redrawn(
    subject: Subject, names: Collection[str], options: ResetOptions, folder: Path, /
) -> list[Target]:
    """Return draws by the own `reset_parameters` of the modules that hold some tensors, in files.

    A module without one, or whose weight it does not reach (a pruned or normed one's parts), is
    not among the tensors of the target.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    targets = []
    for draw in range(subject.redrawn):
        seed = int(np.random.SeedSequence([options.seed, draw]).generate_state(1)[0])
        drawn: dict[str, torch.Tensor] = {}
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            for owner, part in subject.module.named_modules():
                own = [
                    f"{owner}.{name}" if owner else name
                    for name, _ in part.named_parameters(recurse=False)
                ]
                own += [
                    f"{owner}.{name}" if owner else name
                    for name, _ in part.named_buffers(recurse=False)
                ]
                if any(name in names for name in own):
                    drawn |= _redrawn(owner, part)
        path = folder / f"fresh-{draw}.safetensors"
        try:
            save_file(drawn, path)
        except (OSError, SafetensorError) as exc:
            raise OutputError(f"{folder}: a draw cannot be written: {one_line(exc)}") from exc
        targets.append(
            Target(
                snapshot=FRESH,
                draw=draw,
                tensors=state_of(path).tensors if drawn else {},
                digest=functools.partial(str, seed),
                odd=("its modules have no reset_parameters that draws their weights",),
            )
        )
    return targets


def _redrawn(owner: str, part: nn.Module) -> dict[str, torch.Tensor]:
    """Return the tensors of a module once its own `reset_parameters` has drawn them.

    None where it did not.
    """
    if not callable(getattr(part, "reset_parameters", None)):
        return {}
    own: Any = deep_copy(part).cpu()
    before = {name: tensor.clone() for name, tensor in own.state_dict().items()}
    try:
        own.reset_parameters()
    except Exception:  # one of a user's may want arguments, or a module that it does not have here
        return {}
    after = own.state_dict()
    weights = [name for name in after if name == "weight" or "weight" not in after]
    if (
        "weight" in after
        and torch.equal(after["weight"], before["weight"])
        and after["weight"].ndim > 1
    ):
        return {}
    if not weights:
        return {}
    prefix = f"{owner}." if owner else ""
    return {f"{prefix}{name}": tensor.contiguous().clone() for name, tensor in after.items()}


def drawn(subject: Subject, options: ResetOptions, folder: Path, /) -> list[Target]:
    """Return the fresh draws of the network, in files of `folder`.

    All of them together may be large.

    Raises
    ------
    UsageError
        As `planescope.networks.build.build`.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    targets = []
    for draw in range(options.draws):
        assert subject.fresh is not None  # noqa: S101  the subjects without one refuse draws
        seed = int(np.random.SeedSequence([options.seed, draw]).generate_state(1)[0])
        path = folder / f"draw-{draw}.safetensors"
        weights = subject.fresh(seed).state_dict()
        try:
            save_file({name: w.contiguous().clone() for name, w in weights.items()}, path)
        except (OSError, SafetensorError) as exc:
            raise OutputError(f"{folder}: a draw cannot be written: {one_line(exc)}") from exc
        tensors, _ = fitting(state_of(path).tensors, subject.module, f"draw {draw}")
        digest = functools.partial(str, seed)
        targets.append(Target(snapshot=RAND, draw=draw, tensors=tensors, digest=digest))
    return targets
