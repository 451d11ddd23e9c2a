"""Weights that several processes share, and what a process must leave as it was."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from planescope.files.errors import PlanescopeError, UsageError
from planescope.hyperplanes.layer import Layer, Tensor, with_tensors

if TYPE_CHECKING:
    from torch import nn


def is_first() -> bool:
    """Return whether this process is the only one, or that of rank 0."""
    import torch.distributed as dist

    return not _are_several() or dist.get_rank() == 0


def _are_several() -> bool:
    import torch.distributed as dist

    return bool(dist.is_available() and dist.is_initialized())


def is_sharded(model: nn.Module, /) -> bool:
    """Return whether all processes are needed to see the weights whole."""
    if not _are_several():
        return False
    return _is_flattened(model) or any(hasattr(p, "full_tensor") for p in model.parameters())


@contextlib.contextmanager
def _whole_weights(model: nn.Module, /) -> Iterator[None]:
    """Put weights together that `FullyShardedDataParallel` has flattened and shared out."""
    if not _is_flattened(model):
        yield
        return
    from torch.distributed.fsdp import FullyShardedDataParallel

    with FullyShardedDataParallel.summon_full_params(model, writeback=False):
        yield


def _is_flattened(model: nn.Module) -> bool:
    fsdp: Any = sys.modules.get("torch.distributed.fsdp")  # who uses it has imported it
    return fsdp is not None and any(
        isinstance(module, fsdp.FullyShardedDataParallel) for module in model.modules()
    )


def held(layer: Layer, /) -> Layer:
    """Return the layer with what it holds now.

    What is shared out is put together, by all processes.
    """

    def kept(tensor: Tensor) -> Tensor:
        values = tensor.read()
        return replace(tensor, read=lambda: values)

    return with_tensors(layer, kept)


@contextlib.contextmanager
def in_step(model: nn.Module, about: str, /) -> Iterator[Callable[[str], None]]:
    """Run a block on all processes at once: where one fails all do, and none waits for it.

    Before anything that takes all of them, whoever asks for it, they tell one another what comes
    next: the same on all, or the failure of one. Gives a function that is told what is at work.
    Weights that `FullyShardedDataParallel` has flattened are whole meanwhile.

    Raises
    ------
    UsageError
        If another process failed, or does something else.
    """
    step = _Step(about)
    # What it has begun to put together it has to end: that all of them do is agreed on before.
    step.agree("flattened weights" if _is_flattened(model) else "weights")
    with _whole_weights(model):
        try:
            with _watching(step.agree):
                yield step.come_to
        except Exception as exc:
            if step.told is not None:  # whatever was made of it on the way here
                raise step.told from None
            with contextlib.suppress(UsageError):  # it is the own one that is raised
                step.agree(_END, exc)
            raise
        step.agree(_END)


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Refuse within a block what takes all processes, which this one would wait for."""

    def refuse(_: str) -> None:
        raise UsageError(
            "data= go through the network on the process of rank 0 alone, and its forward takes "
            "all processes; leave data= out"
        )

    with _watching(refuse) if _are_several() else contextlib.nullcontext():
        yield


_END = "the end"


class _Step:
    """Progress of one process through a block that all run; `told` once any has failed."""

    def __init__(self, about: str) -> None:
        self.told: UsageError | None = None
        self._about = about

    def come_to(self, what: str) -> None:
        """Note what is at work: two processes at different layers may ask for the same."""
        self._about = what

    def agree(self, upcoming: str, failure: Exception | None = None) -> None:
        """Tell the others what comes next here, or what failed; hear the same of them."""
        import torch.distributed as dist

        if self.told is not None:  # they have gone on
            raise self.told
        all_of: list[Any] = [None] * dist.get_world_size()
        own = (f"{upcoming} of {self._about}", None if failure is None else _reason(failure))
        dist.all_gather_object(all_of, own)
        for rank, (_, text) in enumerate(all_of):
            if text is not None:
                self.told = UsageError(f"on the process of rank {rank}: {text}")
                raise self.told
        if len({each for each, _ in all_of}) > 1:
            kinds = ", ".join(
                f"{each} on that of rank {rank}" for rank, (each, _) in enumerate(all_of)
            )
            self.told = UsageError(f"the processes went different ways: {kinds}")
            raise self.told


def _reason(exc: Exception) -> str:
    kind = "" if isinstance(exc, PlanescopeError) else f"{type(exc).__name__}: "
    return f"{kind}{exc}".partition("\n")[0]


# The operators by which processes talk to one another; to wait for one's answer is none.
_TALK = ("c10d", "_c10d_functional", "_c10d_functional_autograd", "_dtensor", "symm_mem")


@contextlib.contextmanager
def _watching(before: Callable[[str], None]) -> Iterator[None]:
    """Call a function before anything within the block that takes other processes too."""
    from torch.distributed.tensor import DTensor
    from torch.utils._python_dispatch import TorchDispatchMode

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            if any(issubclass(each, DTensor) for each in types):
                return NotImplemented  # what it does with its parts comes here again
            if func.namespace in _TALK and func.overloadpacket.__name__ != "wait_tensor":
                before(func.overloadpacket.__name__)
            return func(*args, **(kwargs or {}))

    with Watch():
        yield
