"""Copy a study without its weights: what claims and figures are made from again.

    python studies/keep.py STUDY studies/results/NAME

A finished run keeps its config, environment, metrics and measurements, and counts as made; runs
that are not finished are left out. Parquet files are written anew, with the same values in about
half the bytes, and resets without the paths of this machine. The table of the study is made of
these again where it is read. Scores that are held against resets are of the weights: the relation
of the plain runs is kept with the tables.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from planescope import Run
from planescope.files.errors import UsageError
from planescope.study.claims.claims import plain_runs
from planescope.study.folder import Study
from planescope.study.related import relation_of
from planescope.training.run import State

KEPT = (
    "config.yaml", "environment.json", "metrics.csv", "measurements.parquet", "state.json",
    "study.json",
)  # fmt: skip


def keep(study: Path, out: Path) -> None:
    """Copy the tables of a study's finished runs."""
    out.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(study / "study.yaml", out / "study.yaml")
    whole = Study(study)
    for folder in sorted((study / "runs").iterdir()):
        is_finished = Run(folder).status.state is State.FINISHED
        if not is_finished or not whole.record(folder.name).is_measured:
            continue
        kept = out / "runs" / folder.name
        kept.mkdir(parents=True, exist_ok=True)
        for name in KEPT:
            if (folder / name).is_file():
                copy = _rewrite if name.endswith(".parquet") else shutil.copyfile
                copy(folder / name, kept / name)
        if (folder / "resets.json").is_file():
            _write(folder / "resets.json", kept / "resets.json", {str(folder): folder.name})
    if any((study / "runs").glob("*/resets.json")):
        _relate(whole, out)


def _relate(whole: Study, out: Path) -> None:
    """Keep the relation of the plain runs, whose paths become their names."""
    try:
        plain = plain_runs(whole.table())
    except UsageError:  # a study without plain runs, of which no claim can be asked
        return
    relation = relation_of(whole, [whole.run(name) for name in plain])
    if relation is not None:
        relation.save(out / "relation.json")
        _write(out / "relation.json", out / "relation.json", {f"{whole.path}/runs/": ""})


def _write(source: Path, target: Path, names: dict[str, str]) -> None:
    """Write JSON without spaces, and with other names in place of paths."""
    text = json.dumps(json.loads(source.read_text(encoding="utf-8")), separators=(",", ":"))
    for path, name in names.items():
        text = text.replace(json.dumps(path)[1:-1], name)
    target.write_text(text + "\n", encoding="utf-8", newline="\n")


def _rewrite(source: Path, target: Path) -> None:
    """Write a table without what speeds up searches in large ones."""
    table = pq.read_table(source)
    floats = [field.name for field in table.schema if pa.types.is_floating(field.type)]
    pq.write_table(
        table, target, compression="zstd", compression_level=19, write_statistics=False,
        use_dictionary=False, use_byte_stream_split=floats, store_schema=False,
    )  # fmt: skip
    if pq.read_table(target).to_pydict() != table.to_pydict():
        raise SystemExit(f"{source}: did not come out as it went in")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    keep(Path(sys.argv[1]), Path(sys.argv[2]))
