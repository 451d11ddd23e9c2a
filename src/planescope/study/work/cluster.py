"""Dask: a cluster on this machine, or one that exists; who works there, and with what."""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterable, Iterator
from multiprocessing import resource_tracker
from pathlib import Path
from typing import TYPE_CHECKING, Any

from planescope.files import signals
from planescope.files.drafts import scratch
from planescope.files.errors import MissingDependencyError, RunError, UsageError, one_line
from planescope.files.results.versions import cores, version
from planescope.study.work.worker import GPUS

if TYPE_CHECKING:
    from distributed import Client

# Seconds that a scheduler has to answer, and its first worker, which may be a job in a queue.
ANSWER_S = 10.0
WORKERS_S = 300.0
# A name, a number or an IPv6 in brackets, with a port; what Dask does not know it refuses at once.
_ADDRESS = re.compile(r"((tcp|tls|ucxx?|wss?)://)?(\[[^\]]+\]|[^\[\]:/\s]+):\d+/?")


def gpus() -> tuple[str, ...]:
    """Return the numbers of the GPUs that this process may use, without waking one."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return tuple(name for name in visible.split(",") if name.strip() not in ("", "-1"))
    program = shutil.which("nvidia-smi")
    if program is None:
        return ()
    try:
        done = subprocess.run(  # noqa: S603
            [program, "--list-gpus"], capture_output=True, text=True, check=True, timeout=30
        )
    except (OSError, subprocess.SubprocessError):
        return ()
    return tuple(map(str, range(done.stdout.count("GPU "))))


@contextlib.contextmanager
def local_client(
    workers: int, *, dashboard: Callable[[str], None] | None = None
) -> Iterator[Client]:
    """Give processes on this machine that share its cores, and its GPUs one each.

    Who connects to a scheduler runs code as its owner, and on many machines others have accounts:
    all of them show a certificate that was made for this study, and HTTP servers answer nothing.

    Parameters
    ----------
    dashboard : callable, optional
        Called with the address of Dask's dashboard, which then shows any user of this machine what
        the workers do.

    Raises
    ------
    MissingDependencyError
        If Dask, or what makes certificates, is not installed.
    RunError
        If the processes cannot be started.
    """
    distributed = _distributed()
    security = _own_security(distributed)
    _begin_to_share()
    import dask

    devices = gpus()
    env = {"OMP_NUM_THREADS": str(max(1, cores() // workers))}
    if devices:
        env[GPUS] = ",".join(devices)
    with (
        _quiet(),
        scratch() as folder,
        dask.config.set(
            {
                # A run that waits on a worker, as one more than it can take would, is blamed if
                # that dies.
                "distributed.scheduler.worker-saturation": 1.0,
                # A look at what the worker does, each 10 ms: some 5 % of its processor time.
                "distributed.worker.profile.enabled": False,
                "temporary-directory": str(folder),  # else one more is left where those are kept
                **(_NO_ROUTES if dashboard is None else {}),
            }
        ),
        _started(
            distributed.LocalCluster,
            folder,
            n_workers=workers,
            threads_per_worker=1,
            processes=True,
            memory_limit=0,  # what a run needs it needs; a pause would not free it
            host="127.0.0.1",
            local_directory=str(folder),  # else workers that are killed leave theirs
            security=security,
            dashboard_address="127.0.0.1:0",  # its usual port may be another study's
            worker_dashboard_address="127.0.0.1:0",  # by default all interfaces
            scheduler_kwargs={"dashboard": dashboard is not None},
            silence_logs=logging.CRITICAL,
            # Torch below 2.7 makes a folder as it is imported, which a killed worker leaves too.
            env={**env, "TMPDIR": str(folder)},
            resources={"GPU": 1} if devices else None,
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        try:
            if dashboard is not None:
                dashboard(cluster.dashboard_link)
            yield client
        except BaseException:
            _kill(cluster.workers.values())
            raise


def _begin_to_share() -> None:
    """Start the process that knows what the workers share; it has to outlive them."""
    if os.name != "nt":
        with signals.unheard_hang_up():
            resource_tracker.ensure_running()


def _started(make: Callable[..., Any], folder: Path, /, **options: Any) -> Any:
    """Start a cluster; that there is no room for what it writes is a failure in our words."""
    try:
        return make(**options)
    except (OSError, RuntimeError) as exc:
        raise RunError(
            f"the workers could not be started ({one_line(exc)}); is there room in {folder}?"
        ) from exc
    except KeyboardInterrupt:
        if signals.is_ended():
            # As the process ends Dask would close what has not begun yet, and fail aloud.
            atexit.unregister(_distributed().deploy.spec.close_clusters)
        raise


# What Dask's HTTP servers would tell, addresses among it.
_NO_ROUTES: dict[str, list[str]] = {
    f"distributed.{part}.http.routes": [] for part in ("scheduler", "worker", "nanny")
}


def _own_security(distributed: Any) -> Any:
    try:
        return distributed.Security.temporary()
    except ImportError as exc:
        raise MissingDependencyError(
            "a study's workers know each other by certificates, which need cryptography: pip "
            "install '.[study]'"
        ) from exc


def security_of(ca: str | None, cert: str | None, key: str | None, /) -> Any:
    """Make what a connection to a scheduler shows and asks for; None where nothing was given.

    Raises
    ------
    UsageError
        If one of the three is missing, or is no file.
    """
    given = {"--tls-ca": ca, "--tls-cert": cert, "--tls-key": key}
    if not any(given.values()):
        return None
    for option, path in given.items():
        if not path:
            raise UsageError(f"{option} is missing: --tls-ca, --tls-cert and --tls-key go together")
        if not Path(path).is_file():
            raise UsageError(f"{option} {path}: is no file; give one in PEM form")
    return _distributed().Security(
        tls_ca_file=ca, tls_client_cert=cert, tls_client_key=key, require_encryption=True
    )


def is_open(address: str, /) -> bool:
    """Tell whether whoever reaches an address may use the scheduler there."""
    return not address.startswith(("tls://", "wss://"))


def _kill(workers: Iterable[Any]) -> None:
    """End processes at once: Dask would wait half a minute for the runs that are in them."""
    for worker in workers:
        worker.auto_restart = False
        if worker.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker.pid, signal.SIGTERM if os.name == "nt" else signal.SIGKILL)


@contextlib.contextmanager
def client_of(
    address: str, *, patience: float = ANSWER_S, security: Any = None
) -> Iterator[Client]:
    """Connect to a cluster that exists, once its workers are known to be fit.

    Parameters
    ----------
    security : distributed.Security, optional
        By default as Dask's own configuration says.

    Raises
    ------
    UsageError
        If the scheduler does not answer, has no workers, or one of them lacks the package, has
        another version of it, or runs several tasks at once.
    """
    distributed = _distributed()
    with _quiet():
        if not _ADDRESS.fullmatch(address):
            raise UsageError(f"{address}: is no address of a scheduler; give tcp://HOST:PORT")
        try:
            client = distributed.Client(address, timeout=patience, security=security)
        except (OSError, ValueError, TimeoutError, TypeError, RuntimeError) as exc:
            certificates = "" if is_open(address) else ", with these certificates"
            raise UsageError(
                f"{address}: no scheduler answered within {patience:g} seconds; is it running "
                f"there{certificates}?"
            ) from exc
        with client:
            _check_workers(client, address)
            yield client


def _check_workers(client: Client, address: str) -> None:
    try:
        client.wait_for_workers(1, timeout=WORKERS_S)
    except TimeoutError as exc:
        raise UsageError(
            f"{address}: the scheduler has no workers, and none came within {WORKERS_S:g} "
            f"seconds; start some: dask worker {address} --nthreads 1"
        ) from exc
    ours = version()
    for worker, theirs in client.run(_version_probe()).items():
        if theirs is None:
            raise UsageError(
                f"worker {worker} has no planescope; install {ours} there: pip "
                "install '.[study]' in its folder"
            )
        if theirs != ours:
            raise UsageError(
                f"worker {worker} has planescope {theirs}, and this is "
                f"{ours}; install one version on both"
            )
    known: dict[str, Any] = client.scheduler_info(n_workers=-1)["workers"]
    for worker, about in known.items():
        if about["nthreads"] > 1:
            raise UsageError(
                f"worker {worker} has {about['nthreads']} threads and would make as many runs in "
                "one process; start it with --nthreads 1, and more of them with --nworkers"
            )


def _version_probe() -> Callable[[], str | None]:
    """Return a function sent by value: no module's own, it runs without the package."""

    def version() -> str | None:
        from importlib import import_module

        try:
            return str(import_module("planescope").__version__)
        except ModuleNotFoundError:
            return None

    return version


def _distributed() -> Any:
    try:
        import distributed
    except ModuleNotFoundError as exc:
        if exc.name not in ("distributed", "dask"):
            raise
        raise MissingDependencyError("a study needs Dask: pip install '.[study]'") from exc
    return distributed


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep Dask's remarks off the terminal: a killed worker is our business, not the user's."""
    # Each of them has a level of its own, which importing Dask sets.
    names = [name for name in logging.root.manager.loggerDict if name.startswith("distributed")]
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL + 1)
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
