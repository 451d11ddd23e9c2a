"""Constants of classes in a TorchScript archive, read from their code as text; nothing is run."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from planescope.files.zips import Archive

# The code of one class takes a few kilobytes.
_MAX_BYTES = 1 << 20

# As scripting writes them, and as tracing leaves them in the calls of operators.
_FINAL = re.compile(r"^  (eps|groups) : Final\[\w+\] = ([-+.\w]+)$", re.MULTILINE)
_BATCH_NORM = re.compile(r"torch\.batch_norm\([^()\n]*?, ([-+.\de]+), (?:True|False)\)")
_CONVOLUTION = re.compile(r"torch\._convolution\([^()\n]*\], (\d+), (?:True|False)[^()\n]*\)")


def constants(archive: Archive, root: str, name: str) -> Mapping[str, float]:
    """Find `eps` and `groups` of a class by its full name (``__torch__.torch.nn...``)."""
    package, _, last = name.rpartition(".")
    member = f"{root}/code/{package.replace('.', '/')}.py"
    if not name.startswith("__torch__.") or member not in archive.members:
        return {}
    source = archive.read(member, limit=_MAX_BYTES).decode("utf-8", "replace")
    begin = source.find(f"class {last}(Module):")
    if begin < 0:
        return {}
    end = source.find("\nclass ", begin)
    source = source[begin : end if end > 0 else len(source)]
    found: dict[str, float] = {}
    for key, value in _FINAL.findall(source):
        found |= _number(key, value)
    if (match := _BATCH_NORM.search(source)) is not None:
        found.setdefault("eps", _number("eps", match[1]).get("eps", -1.0))
    if (match := _CONVOLUTION.search(source)) is not None:
        found.setdefault("groups", int(match[1][:9]))
    return found


def _number(key: str, text: str) -> dict[str, float]:
    try:
        return {key: int(text[:9]) if key == "groups" else float(text[:40])}
    except ValueError:
        return {}
