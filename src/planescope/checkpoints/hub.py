"""Models on the Hugging Face hub, through its own client and that client's cache."""

from __future__ import annotations

import re
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from planescope.checkpoints.choose import PART, TWINS, listing, models_among, only_model
from planescope.checkpoints.ranges import RANGED_BYTES, Remote, can_be_read_in_ranges, register
from planescope.checkpoints.sharded import shard_names
from planescope.files.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

# A revision holds no slash, unless it is a pull request's or the slash is written %2F.
_SPEC = re.compile(
    r"hf:(?P<repo>[^/@]+/[^/@]+)(@(?P<revision>refs/[^/]+/[^/]+|[^/]+))?(/(?P<file>.+))?"
)

_TIMEOUT = 10  # seconds, as the client waits for a file's head


def download(spec: str) -> Path:
    """Fetch a model from the hub, or take what the cache holds of it.

    Parameters
    ----------
    spec : str
        ``hf:OWNER/NAME[@REVISION][/FILE]``. Without a file: the standard one of Hugging Face,
        else the only model there. The shards of an index come along, and nothing else.

    Returns
    -------
    Path
        In the client's cache (`HF_HOME`). Out of the hub's reach, the last copy is taken.

    Raises
    ------
    CheckpointError
        If there is no such model, revision or file, the hub refuses it, or it is out of reach
        and not in the cache.
    """
    match = _SPEC.fullmatch(spec)
    if match is None:
        raise CheckpointError(f"{spec}: names no model; write hf:OWNER/NAME[@REVISION][/FILE]")
    revision = match["revision"] and unquote(match["revision"])
    with _explained(spec):
        names, fetch, commit = _source(spec, match["repo"], revision, match["file"])
        name = _choose(spec, match["file"], names)
        path = commit and _in_ranges(match["repo"], name, commit)
        if path:
            return path
        path = fetch(name)
        for other in sorted(_parts(name, path, names)):
            fetch(other)
    return path


def _parts(name: str, path: Path, names: Sequence[str]) -> set[str]:
    """Name the other files of a model that is several; the reader names those missing."""
    beside = PurePosixPath(name).parent
    if name.endswith(".index.json"):
        return {str(beside / shard) for shard in shard_names(path)}.intersection(names)
    if name.endswith("weights_manifest.json") or beside / "model.json" == PurePosixPath(name):
        from planescope.checkpoints import tfjs

        return {str(beside / shard) for shard in tfjs.shard_names(path)}.intersection(names)
    if name.endswith("saved_model.pb"):
        return {each for each in names if each.startswith(str(beside / "variables") + "/")}
    if name.endswith(".index"):
        data = name.removesuffix("index") + "data-"
        return {each for each in names if each.startswith(data)}
    return set()


def _source(
    spec: str, repo: str, revision: str | None, file: str | None
) -> tuple[Sequence[str], Callable[[str], Path], str | None]:
    """List the files of a revision, on the hub or else in the cache; and tell how to get one.

    Last comes the commit that the hub has under that name; None where only the cache was asked.
    """
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.errors import HTTPError

    def fetch(name: str) -> Path:
        return Path(hf_hub_download(repo, name, revision=revision))

    try:
        # Asked first because it fails at once: the client's downloads retry for half a minute.
        info = HfApi().model_info(repo, revision=revision, timeout=_TIMEOUT)
    except (HTTPError, OSError) as exc:
        if _status(exc) < 500:
            raise
        folder, names = _cached(repo, revision)
        if not (models_among(names) if file is None else file in names):
            raise CheckpointError(
                f"{spec}: the hub is out of reach ({_reason(exc)}) and the cache has no copy; "
                "connect, or give a file"
            ) from exc
        return names, folder.joinpath, None
    return [sibling.rfilename for sibling in info.siblings or ()], fetch, info.sha


def _in_ranges(repo: str, name: str, commit: str) -> Path | None:
    """Open a large file on the hub to be read by ranges; None where it is to be fetched whole."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
    from huggingface_hub.utils import build_hf_headers

    if isinstance(try_to_load_from_cache(repo, name, revision=commit), str):
        return None
    url = hf_hub_url(repo, name, revision=commit)
    head = get_hf_file_metadata(url, timeout=_TIMEOUT)
    if head.size is None or head.size < RANGED_BYTES:
        return None
    # Where the hub itself does not keep the bytes it gives an address, which needs no password.
    same_host = urlsplit(head.location).netloc == urlsplit(url).netloc
    headers = build_hf_headers() if same_host else {}
    remote = Remote(head.location, f"hf:{repo}@{commit[:8]}/{name}", headers)
    if not remote.in_ranges or not can_be_read_in_ranges(remote):
        return None
    return register(remote)


def _cached(repo: str, revision: str | None) -> tuple[Path, list[str]]:
    """Find the folder where the cache keeps a revision, and what was ever fetched into it."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        # No pattern: nothing in particular has to be there.
        found = snapshot_download(repo, revision=revision, local_files_only=True, allow_patterns=[])
    except LocalEntryNotFoundError:
        return Path(), []
    folder = Path(found)
    files = (file for file in folder.rglob("*") if file.is_file())
    return folder, sorted(file.relative_to(folder).as_posix() for file in files)


def _choose(spec: str, file: str | None, names: Sequence[str]) -> str:
    models = models_among(name for name in names if not PART.fullmatch(name))
    if file is not None:
        if file in names:
            return file
        raise CheckpointError(f"{spec}: has no such file; it has {listing(models or names)}")
    standard = [name for name in TWINS if name in names]
    # Exports of the same model for other programs lie in folders (`onnx/`).
    top = [name for name in models if "/" not in name]
    return only_model(standard[:1] or top or models, names, spec)


@contextmanager
def _explained(spec: str) -> Iterator[None]:
    """Turn what the client raises into one sentence."""
    from huggingface_hub import errors

    try:
        yield
    except errors.HFValidationError as exc:
        raise CheckpointError(f"{spec}: cannot be on the hub: {_reason(exc)}") from exc
    except errors.GatedRepoError as exc:
        raise CheckpointError(
            f"{spec}: its author gives access on request; ask on the model's page, then log in "
            "(`hf auth login`)"
        ) from exc
    except errors.RepositoryNotFoundError as exc:
        raise CheckpointError(
            f"{spec}: the hub has no such model, or it is private; check the name, or log in "
            "(`hf auth login`)"
        ) from exc
    except errors.RevisionNotFoundError as exc:
        raise CheckpointError(
            f"{spec}: the model has no such branch, tag or commit; leave out @ for the main one"
        ) from exc
    # errors.HTTPError is that of whichever HTTP library the client stands on;
    # RuntimeError is how its extension for large files fails.
    except (errors.HTTPError, OSError, RuntimeError) as exc:
        raise CheckpointError(
            f"{spec}: the download failed ({_reason(exc)}); check network and disk, then try again"
        ) from exc


def _status(exc: Exception) -> int:
    """Return HTTP status of the hub's answer; 503 where it did not answer."""
    status: int = getattr(getattr(exc, "response", None), "status_code", 503)
    return status


def _reason(exc: Exception) -> str:
    from huggingface_hub.errors import OfflineModeIsEnabled

    if isinstance(exc, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set"
    return str(exc).strip().partition("\n")[0] or type(exc).__name__
