"""What tests share: the array libraries under test, and Hypothesis without chance."""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import hypothesis
import numpy as np
import pytest

from planescope.files import signals

# Test processes run side by side; within each, and in those it starts, torch takes one thread.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A shell starts what runs in the background deaf to Ctrl-C, and its children are deaf with it: the
# processes that tests interrupt would run to their end.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# And below nohup all are deaf to a hang-up, which goes on ending no test run: a handler is not
# handed down.
if os.name == "posix" and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, lambda *_: None)


@pytest.fixture(autouse=True)
def signals_as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Leave nothing of a signal to the next test: neither handlers nor that one came.

    A command that ran in this process after an interrupt would end by ignoring all signals, and
    the processes that later tests start and interrupt would ignore them too.
    """
    monkeypatch.setattr(signals, "_came", False)
    handlers = {number: signal.getsignal(number) for number in signals.ENDING}
    yield
    for number, handler in handlers.items():
        if signal.getsignal(number) is not handler:
            signal.signal(number, handler)


def pytest_configure(config: pytest.Config) -> None:
    # pytest-xdist gives out the files with the most tests first, and those with few but long ones
    # last, so that one process ends minutes after the others.
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that have slow tests, so that the last to be given out are quick."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


# The same examples in each run, so that a failure is one for everybody. `xp` holds no state that
# one example could leave to the next.
hypothesis.settings.register_profile(
    "same",
    deadline=None,
    derandomize=True,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)
hypothesis.settings.load_profile("same")

# Names of backends, separated by commas, that must be there: one asked for and missing is a
# failure, any other a skip.
WANTED = os.environ.get("PLANESCOPE_TEST_BACKENDS", "").split(",")


@dataclass(frozen=True)
class Backend:
    """An array library: how an array gets into it, and out.

    `wide` tells whether it has float64; `eps` is the precision in which its sums are accumulated.
    """

    name: str
    array: Callable[[np.ndarray], Any]
    wide: bool = True

    @property
    def eps(self) -> float:
        return float(np.finfo(np.float64 if self.wide else np.float32).eps)

    def __call__(self, values: Any, dtype: Any = np.float64) -> Any:
        return self.array(np.asarray(values, dtype=dtype))

    def numpy(self, array: Any) -> np.ndarray:
        for copies in ("cpu", "get"):  # of torch, of CuPy
            if hasattr(array, copies):
                return np.asarray(getattr(array, copies)())
        return np.asarray(array)


def _read_only(values: np.ndarray) -> np.ndarray:
    values = values.copy()
    values.flags.writeable = False
    return values


@contextlib.contextmanager
def _backend(name: str) -> Iterator[Backend]:
    match name:
        case "numpy":
            yield Backend(name, np.array)
        case "numpy-read-only":
            yield Backend(name, _read_only)
        case "array-api-strict":
            strict = _library(name, "array_api_strict")
            # It has no float16; float32 holds the same values.
            yield Backend(
                name, lambda a: strict.asarray(a.astype(np.promote_types(a.dtype, np.float32)))
            )
        case "torch":
            yield Backend(name, _library(name, "torch").asarray)
        case "torch-elsewhere":
            yield Backend(name, _elsewhere(_library("torch", "torch")))
        case "torch-cuda":
            torch = _library(name, "torch")
            if not torch.cuda.is_available():
                _missing(name, "no CUDA device")
            yield Backend(name, lambda values: torch.asarray(values, device="cuda"))
        case "cupy":
            cupy = _library(name, "cupy")
            if not cupy.cuda.is_available():
                _missing(name, "no CUDA device")
            yield Backend(name, cupy.asarray)
        case "jax":
            yield Backend(name, _library(name, "jax.numpy").asarray, wide=False)
        case "jax-x64":
            jax = _library(name, "jax")
            with jax.enable_x64(True):
                yield Backend(name, jax.numpy.asarray)


def _elsewhere(torch: Any) -> Callable[[np.ndarray], Any]:
    """Tensors that are not plain ones, so that no memory is looked at, as with a device's."""

    class Elsewhere(torch.Tensor):
        pass

    return lambda values: torch.asarray(values).as_subclass(Elsewhere)


def _library(name: str, module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as exc:
        _missing(name, f"{exc.name} is not installed")


def _missing(name: str, reason: str) -> None:
    (pytest.fail if name in WANTED else pytest.skip)(f"backend {name}: {reason}")


ON_GPU = ("torch-cuda", "cupy")
COMMON = ("numpy", "numpy-read-only", "array-api-strict", "torch", "torch-elsewhere", *ON_GPU)


@pytest.fixture(params=[*COMMON, "jax"])
def xp(request: pytest.FixtureRequest) -> Iterator[Backend]:
    """Each array library in turn; call it to make an array."""
    with _backend(request.param) as backend:
        yield backend


@pytest.fixture(params=[*COMMON, "jax-x64"])
def xp64(request: pytest.FixtureRequest) -> Iterator[Backend]:
    """Each array library that has float64."""
    with _backend(request.param) as backend:
        yield backend
