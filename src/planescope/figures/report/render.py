"""The page: one HTML file that loads nothing, in which names from files are only ever text."""

from __future__ import annotations

import base64
import functools
import gzip
import hashlib
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from planescope.figures.report.captions import READINGS
from planescope.figures.report.contents import Contents
from planescope.files.errors import MissingDependencyError

if TYPE_CHECKING:
    from jinja2 import Template

# The browser's code, in the order in which it is put together into one module.
SCRIPTS = (
    "store", "text", "dom", "theme", "network", "frame", "rows", "mass", "cosines", "portrait",
    "dynamics", "resets", "relation", "comparison", "strip", "table", "controls", "main",
)  # fmt: skip


def render(contents: Contents, /) -> str:
    """Return HTML text of a page.

    Nothing in it is loaded from elsewhere, and its Content-Security-Policy forbids that: scripts
    run by their hash alone. Plotly is packed, which makes the page a third as large.

    Raises
    ------
    MissingDependencyError
        If Jinja2 or Plotly is not installed.
    """
    script, (plotly, plotly_hash) = _script(), _plotly()
    html: str = _template().render(
        contents=contents,
        readings={reading.key: reading for reading in READINGS},
        data=embedded(contents.to_json()),
        style=_asset("page.css"),
        script=script,
        plotly=plotly,
        script_sources=f"'{_hash(script.encode())}' '{plotly_hash}'",
    )
    return html.lstrip()


def embedded(json: str, /) -> str:
    r"""Return JSON text that can stand in a script element: equal as JSON, and it ends no element.

    ``</script>`` or ``<!--`` in a layer's name would end or hide what follows; U+2028 and U+2029
    are line ends in older JavaScript.
    """
    for sign in "<>&\u2028\u2029":
        json = json.replace(sign, f"\\u{ord(sign):04x}")
    return json


def _script() -> str:
    parts = "\n".join(_asset(f"{name}.js") for name in SCRIPTS)
    # Line breaks beside the element's tags belong to what is hashed.
    return f"\n{parts}\n"


@functools.cache
def _asset(name: str) -> str:
    return resources.files(__package__).joinpath("assets", name).read_text(encoding="utf-8")


@functools.cache
def _plotly() -> tuple[str, str]:
    """Return the plotly's own bundle, packed for the page, and the hash by which it may run.

    The package is only found, never imported: all that is wanted of it is a file.
    """
    spec = find_spec("plotly")
    folders = [] if spec is None else list(spec.submodule_search_locations or [])
    for folder in folders:
        source = (Path(folder) / "package_data" / "plotly.min.js").read_bytes()
        # mtime 0: the same page twice is the same bytes.
        return base64.b64encode(gzip.compress(source, 6, mtime=0)).decode(), _hash(source)
    raise _missing("plotly")


@functools.cache
def _template() -> Template:
    try:
        from jinja2 import Environment, StrictUndefined
    except ModuleNotFoundError as exc:
        if exc.name != "jinja2":
            raise
        raise _missing("jinja2") from exc
    environment = Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined
    )
    return environment.from_string(_asset("page.html.jinja"))


def _missing(name: str) -> MissingDependencyError:
    return MissingDependencyError(f"a page needs {name}: pip install '.[report]'")


def _hash(source: bytes) -> str:
    """Return the source expression of a Content-Security-Policy."""
    return "sha256-" + base64.b64encode(hashlib.sha256(source).digest()).decode()
