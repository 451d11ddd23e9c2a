"""The cells of a table, shared out over devices."""

from __future__ import annotations

import dataclasses
import threading
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from typing import TYPE_CHECKING

from planescope.criticality.resets.engine.cells import Plan, evaluate
from planescope.criticality.resets.engine.progress import Progress
from planescope.criticality.resets.engine.tensors import Cell
from planescope.criticality.resets.parts.prefix import trace

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import torch
    from torch import nn

    from planescope.criticality.resets.engine.answers import Judge
    from planescope.criticality.resets.engine.feed import Feed
    from planescope.criticality.resets.parts.traced import Trace


@dataclasses.dataclass(frozen=True, eq=False)
class Work:
    """All cells, to be shared out over devices."""

    module: nn.Module
    feed: Feed
    judge: Judge
    plan: Plan
    progress: Progress
    cells: Sequence[Cell]

    def on(
        self, devices: Sequence[torch.device], on_cell: Callable[[int, int, str], None] | None
    ) -> str:
        """Evaluate the cells; a note, where there is something to say."""
        stop, lock = threading.Event(), threading.Lock()

        def tell(name: str) -> None:
            if on_cell is not None:
                seen = sum(self.progress[cell.key].examples for cell in self.cells)
                total = self.plan.examples or seen + 1  # where nobody knows: none is done
                with lock:
                    on_cell(seen // total, len(self.cells), name)

        # Every network is traced before any is run: a trace bears no other thread beside it.
        copies = [self.module, *(deepcopy(self.module) for _ in devices[1:])]
        ready = [_Ready.on(device, own) for device, own in zip(devices, copies, strict=True)]
        if len(devices) == 1:
            return self._share(self.cells, ready[0], tell, stop)
        shares = [self.cells[i :: len(devices)] for i in range(len(devices))]
        with ThreadPoolExecutor(len(devices)) as pool:
            try:
                done = [
                    pool.submit(self._share, share, one, tell, stop)
                    for share, one in zip(shares, ready, strict=True)
                ]
                return next(filter(None, [future.result() for future in done]), "")
            finally:
                stop.set()

    def _share(
        self,
        cells: Sequence[Cell],
        ready: _Ready,
        tell: Callable[[str], None],
        stop: threading.Event,
    ) -> str:
        if not cells:
            return ""
        return evaluate(
            ready.module,
            ready.trace,
            self.feed.on(ready.device),
            cells,
            self.plan,
            self.progress,
            self.judge,
            device=ready.device,
            on_cell=tell,
            stop=stop,
        )


@dataclasses.dataclass(frozen=True, eq=False)
class _Ready:
    """A network on its device, traced."""

    device: torch.device
    module: nn.Module
    trace: Trace

    @classmethod
    def on(cls, device: torch.device, module: nn.Module) -> _Ready:
        module = module.to(device)
        return cls(device, module, trace(module))
