"""Copy a study without its weights: what claims and figures are made from again.

    python studies/keep.py STUDY studies/results/NAME

A finished run keeps its config, environment, metrics and measurements, and counts as made; runs
that are not finished are left out. Measurements and resets are kept to seven digits, as in 32
bits, and without the paths of this machine: a third of the bytes. The table of the study is made
of these again where it is read. Scores that are held against resets are of the weights: the
relation of the plain runs is kept with the tables.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
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


# What 32 bits hold to seven digits; p-values are smaller.
SMALLEST = 1e-37


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
    """Write JSON without spaces, numbers to seven digits, and other names in place of paths."""
    held = json.loads(source.read_text(encoding="utf-8"), parse_float=_shortened)
    text = json.dumps(held, separators=(",", ":"))
    for path, name in names.items():
        text = text.replace(json.dumps(path)[1:-1], name)
    target.write_text(text + "\n", encoding="utf-8", newline="\n")


def _shortened(text: str) -> float:
    return float(f"{float(text):.7g}")


def _rewrite(source: Path, target: Path) -> None:
    """Write a table in 32 bits and without what speeds up searches in large ones."""
    table = pq.read_table(source)
    floats = [field.name for field in table.schema if pa.types.is_floating(field.type)]
    for name in floats:
        place = table.schema.get_field_index(name)
        table = table.set_column(place, table.schema.field(place), _rounded(table[name]))
    pq.write_table(
        table, target, compression="zstd", compression_level=19, write_statistics=False,
        use_dictionary=False, use_byte_stream_split=floats, store_schema=False,
    )  # fmt: skip


def _rounded(column: pa.ChunkedArray) -> pa.Array:
    """Return numbers of 64 bits as 32 hold them, which packs better; the smallest as they are."""
    values = column.combine_chunks()
    short = values.cast(pa.float32(), safe=False).cast(values.type)
    return pc.if_else(pc.greater(pc.abs(values), SMALLEST), short, values)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    keep(Path(sys.argv[1]), Path(sys.argv[2]))
