"""Networks of other libraries, and one's own: with fresh weights, or with the published ones."""

from __future__ import annotations

import contextlib
import inspect
import os
import pickle
import sys
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlparse

from planescope.files.errors import CheckpointError, UsageError, nearest, one_line
from planescope.files.optional import call, find_callable, required

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from torch import nn


def torchvision(name: str, in_channels: int, classes: int) -> nn.Module:
    """Return the classifier of torchvision, with fresh weights."""
    models = required("torchvision").models
    _check_known("torchvision", name, models.list_models(module=models))
    built = models.get_model(name, weights=None, num_classes=classes)
    if in_channels != 3:
        _replace_first_convolution(built, in_channels)
    return built


def _replace_first_convolution(module: nn.Module, in_channels: int) -> None:
    """Let a network for colour images take another number of channels, as the authors do."""
    from torch import nn

    name, old = next((n, m) for n, m in module.named_modules() if isinstance(m, nn.Conv2d))
    new = nn.Conv2d(
        in_channels,
        old.out_channels,
        old.kernel_size,
        old.stride,
        old.padding,
        old.dilation,
        bias=old.bias is not None,
        padding_mode=old.padding_mode,
    )
    nn.init.kaiming_normal_(new.weight, mode="fan_out", nonlinearity="relu")
    if new.bias is not None:
        nn.init.zeros_(new.bias)
    module.set_submodule(name, new)


def timm(name: str, in_channels: int, classes: int) -> nn.Module:
    """Return the classifier of timm, with fresh weights."""
    library = required("timm")
    # With the tag of weights behind a dot, or without one.
    known = {*library.list_models(), *library.list_models(pretrained=True)}
    _check_known("timm", name, known)
    return library.create_model(name, pretrained=False, num_classes=classes, in_chans=in_channels)


def own(package: str, attribute: str, in_channels: int, classes: int, image_size: int) -> nn.Module:
    """Call a callable with those of the options that it has parameters for."""
    from torch import nn

    others = "one of the paper's, torchvision:NAME, timm:NAME"
    function = find_callable(package, attribute, "network", others)
    options = {"in_channels": in_channels, "classes": classes, "image_size": image_size}
    wanted = inspect.signature(function).parameters.values()
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in wanted):
        names = {parameter.name for parameter in wanted}
        options = {key: value for key, value in options.items() if key in names}
    try:
        inspect.signature(function).bind(**options)
    except TypeError as exc:
        raise UsageError(
            f"network '{package}:{attribute}' is called with what it takes of in_channels, "
            f"classes and image_size, but wants more ({one_line(exc)}); name a function that "
            "needs no other arguments"
        ) from exc
    built = call(f"network '{package}:{attribute}'", function, **options)
    if not isinstance(built, nn.Module):
        raise UsageError(
            f"{package}:{attribute} gave a {type(built).__name__}; it must give a torch.nn.Module"
        )
    return built


def torchvision_pretrained(name: str) -> nn.Module:
    """Build torchvision's network with its default weights, from torch hub's folder or the net."""
    models = required("torchvision").models
    _check_known("torchvision", name, models.list_models())
    weights = models.get_model_weights(name).DEFAULT
    import torch

    file = Path(torch.hub.get_dir(), "checkpoints", Path(urlparse(weights.url).path).name)
    # torch.hub says what it downloads on standard output, where our results go.
    with contextlib.redirect_stdout(sys.stderr), _unpickling_tensors_alone():
        try:
            return models.get_model(name, weights=weights)
        except OSError as exc:
            raise CheckpointError(
                f"torchvision:{name}: {weights.url} could not be fetched ({exc}); "
                f"put the file into {file.parent}"
            ) from exc
        except (RuntimeError, pickle.UnpicklingError, EOFError, KeyError, ValueError) as exc:
            raise CheckpointError(
                f"torchvision:{name}: {file} does not hold its weights "
                f"({_first_line(exc)}); delete it to have it fetched again"
            ) from exc


@contextlib.contextmanager
def _unpickling_tensors_alone() -> Iterator[None]:
    """Keep `torch.load` from running what a pickle calls, which torchvision would let it."""
    variable = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(variable)
    os.environ[variable] = "1"
    try:
        yield
    finally:
        del os.environ[variable]
        if before is not None:
            os.environ[variable] = before


def timm_pretrained(name: str) -> nn.Module:
    """Return network of timm with its default weights, from the Hugging Face cache or the net."""
    library = required("timm")
    tagged = library.list_models(pretrained=True)
    _check_known("timm", name, {*tagged, *(known.partition(".")[0] for known in tagged)})
    source = library.models.get_pretrained_cfg(name).hf_hub_id
    try:
        return library.create_model(name, pretrained=True)
    except OSError as exc:
        from huggingface_hub.constants import HF_HUB_CACHE

        raise CheckpointError(
            f"timm:{name}: the weights could not be fetched from hf:{source} ({_first_line(exc)}); "
            f"put them into {HF_HUB_CACHE} where there is a network: hf download {source}"
        ) from exc
    except (RuntimeError, ValueError) as exc:
        raise CheckpointError(
            f"timm:{name}: hf:{source} does not hold its weights ({exc})"
        ) from exc


def _check_known(library: str, name: str, known: Collection[str]) -> None:
    if name not in known:
        raise UsageError(f"{library} has no network {name!r}; {nearest(name, known)}")


def _first_line(exc: Exception) -> str:
    return str(exc).partition("\n")[0]
