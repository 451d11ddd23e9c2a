"""Comparisons: are files whole, and do two folders hold the same results."""

from __future__ import annotations

import base64
import csv
import gzip
import json
import re
import zipfile
from collections.abc import Callable, Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

# A folder in which a file is written; the next process that writes the file removes it.
DRAFT = re.compile(r"\.planescope-[0-9a-f]{8}-\w+")
LOCKS = (".lock", ".study.lock")
# What the checks import; who forks for each of them imports it first.
IMPORTS = (
    "PIL.Image", "jsonschema", "numpy", "planescope.study.plan", "pyarrow.parquet",
    "safetensors", "torch", "xml.etree.ElementTree",
)  # fmt: skip


def drafts(folder: Path) -> list[Path]:
    """Folders that a killed process left."""
    return [path for path in folder.rglob(".planescope-*") if DRAFT.fullmatch(path.name)]


def results(folder: Path) -> list[Path]:
    """All files of a folder, by their path in it, but for what lies in drafts."""
    found = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    return sorted(path for path in found if not any(map(DRAFT.fullmatch, path.parts)))


def damaged(folder: Path) -> list[str]:
    """A line for each file that is not whole, or of which nobody knows what it is."""
    problems = []
    for path in results(folder):
        if path.name in LOCKS:
            continue
        check = CHECKS.get(path.suffix)
        if check is None:
            problems.append(f"{path}: is none of our files")
            continue
        try:
            check(folder / path)
        except Exception as exc:
            problems.append(f"{path}: {type(exc).__name__}: {exc}")
    return problems


def _safetensors(path: Path) -> None:
    from safetensors import safe_open

    with safe_open(path, "np") as file:
        for name in file.keys():  # noqa: SIM118  it is no mapping
            file.get_tensor(name)
        if about := file.metadata():
            json.loads(about["planescope"])


@cache
def _schema(name: str) -> Any:
    """JSON schema of a kind of result, where the package has one."""
    path = files("planescope.files") / "schemas" / f"{name}.json"
    return json.loads(path.read_text("utf-8")) if path.is_file() else None


def _json(path: Path) -> None:
    import jsonschema

    data = json.loads(path.read_text(encoding="utf-8"), parse_constant=_no_json)
    entries = data if isinstance(data, list) else [data]
    for entry in entries:
        kind = entry["schema"].removeprefix("planescope.").replace("/", "-")
        if schema := _schema(kind):
            jsonschema.validate(entry, schema)


def _no_json(text: str) -> None:
    raise ValueError(f"{text} is no JSON")


def _parquet(path: Path) -> None:
    import pyarrow.parquet as pq

    pq.ParquetFile(path).read(use_threads=False).validate(full=True)


def _csv(path: Path) -> None:
    with path.open(newline="", encoding="utf-8") as file:
        text = file.read()
    head, *rows = csv.reader(text.splitlines(keepends=True))
    if not text.endswith("\r\n") or any(len(row) != len(head) for row in rows):
        raise ValueError("a row is not whole")


def _npz(path: Path) -> None:
    import numpy as np

    with np.load(path, allow_pickle=False) as arrays:
        for name in arrays.files:
            arrays[name]
    with zipfile.ZipFile(path) as archive:
        if (broken := archive.testzip()) is not None:
            raise ValueError(f"{broken} is damaged")


def _html(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    if not text.lower().startswith("<!doctype html>") or not text.rstrip().endswith("</html>"):
        raise ValueError("it does not begin and end as a page")
    elements = dict(re.findall(r'<script[^>]*id="([^"]+)"[^>]*>(.*?)</script>', text, re.DOTALL))
    json.loads(elements["contents"])
    gzip.decompress(base64.b64decode(elements["plotly"]))


def _ckpt(path: Path) -> None:
    import torch

    torch.load(path, weights_only=True)


def _yaml(path: Path) -> None:
    from planescope.study.plan import read_plan
    from planescope.training.config import dump_config, load_config

    if path.name != "config.yaml":
        read_plan(path)
    elif dump_config(load_config(path)) != path.read_text(encoding="utf-8"):
        raise ValueError("it is not what is written of a config")  # part of it may be one too


def _pdf(path: Path) -> None:
    data = path.read_bytes()
    if not data.startswith(b"%PDF-") or not data.rstrip().endswith(b"%%EOF"):
        raise ValueError("it does not begin and end as a PDF file")


def _svg(path: Path) -> None:
    from xml.etree import ElementTree as ET

    ET.parse(path)  # noqa: S314  our own file


def _png(path: Path) -> None:
    from PIL import Image

    with Image.open(path) as image:
        image.load()


def _md(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    is_whole = "Measured with planescope" in text and text.endswith("\n")
    if not text.startswith("## Hyperplanes") or not is_whole:
        raise ValueError("it does not begin and end as a card")


CHECKS: Mapping[str, Callable[[Path], None]] = {
    ".md": _md,
    ".pt": _ckpt,
    ".pth": _ckpt,
    ".safetensors": _safetensors,
    ".json": _json,
    ".parquet": _parquet,
    ".csv": _csv,
    ".npz": _npz,
    ".html": _html,
    ".ckpt": _ckpt,
    ".yaml": _yaml,
    ".pdf": _pdf,
    ".svg": _svg,
    ".png": _png,
}


def differences(whole: Path, other: Path) -> list[str]:
    """A line for each result that two folders do not have alike, to the bit.

    What may differ is said by `TIMELESS`: wall time, how often a run was started, and the order of
    what is looked up by name.
    """
    ours, theirs = results(whole), results(other)
    problems = [f"{path}: is only in one" for path in sorted(set(ours) ^ set(theirs))]
    for path in sorted(set(ours) & set(theirs)):
        if (whole / path).read_bytes() == (other / path).read_bytes():
            continue
        plain = TIMELESS.get(path.name) or TIMELESS.get(f"{path.parent.name}/{path.suffix}")
        if plain is None or plain(whole / path) != plain(other / path):
            problems.append(f"{path}: differs")
    return problems


def _metrics(path: Path) -> Any:
    with path.open(newline="", encoding="utf-8") as file:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


def _starts(path: Path) -> Any:
    starts = json.loads(path.read_text(encoding="utf-8"))["starts"]
    return sorted({json.dumps(start, sort_keys=True) for start in starts})


def _record(path: Path) -> Any:
    fields = json.loads(path.read_text(encoding="utf-8"))
    return fields | {"made": sorted(fields["made"])}


def _part(path: Path) -> Any:
    import pyarrow.parquet as pq

    table = pq.ParquetFile(path).read(use_threads=False).drop_columns(["seconds"])
    return repr(table.to_pydict())  # each digit, and a NaN is one


def _checkpoint(path: Path) -> Any:
    import torch

    loaded = torch.load(path, weights_only=True)
    del loaded["loops"]["validate_loop"]  # counts what this process validated before it trained
    return _plain(loaded)


def _plain(value: Any) -> Any:
    """Containers of plain values and of the bits of tensors."""
    import torch

    if isinstance(value, torch.Tensor):
        array = value.contiguous().numpy()
        return (str(value.dtype), tuple(value.shape), array.tobytes())
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    return value


def _any_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


# By name, or by folder and suffix: what of a file is to be the same, where not its bytes are.
TIMELESS: Mapping[str, Callable[[Path], Any]] = {
    "metrics.csv": _metrics,  # without seconds
    "environment.json": _starts,  # what starts had, not how many there were
    "study.json": _record,  # without seconds
    "table/.parquet": _part,  # without seconds
    "last.ckpt": _checkpoint,  # all that training goes on with, to the bit
    "resets-progress.json": _any_json,  # in whatever order its cells were finished
}
