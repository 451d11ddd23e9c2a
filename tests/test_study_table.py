"""The table of a study: parts of one version or several, whole or damaged."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from planescope.errors import CheckpointError
from planescope.study.table import read_table, save_part, table_schema


def part(run, rows=3):
    """Columns of a run: numbers that count up, and words."""
    kinds = (
        (pa.types.is_floating, np.arange(rows) / 8),
        (pa.types.is_integer, np.arange(rows)),
        (pa.types.is_boolean, np.arange(rows) % 2 == 0),
    )
    columns = {
        field.name: next((made for is_kind, made in kinds if is_kind(field.type)), ["word"] * rows)
        for field in table_schema()
    }
    return columns | {"run": [run] * rows}


def test_parts_come_back_in_the_order_asked_for(tmp_path):
    for run in ("a", "b", "c"):
        save_part(part(run), tmp_path / f"{run}.parquet")
    table = read_table(tmp_path, ["c", "missing", "a"])
    assert list(table["run"]) == ["c"] * 3 + ["a"] * 3
    assert list(table.columns) == table_schema().names
    assert list(table["epoch"]) == [0, 1, 2] * 2
    assert list(table["negative_mass"]) == [0, 1 / 8, 2 / 8] * 2
    assert read_table(tmp_path, ["b"], ["epoch", "run"]).columns.tolist() == ["epoch", "run"]


def test_what_a_part_of_another_version_lacks_is_empty_and_what_it_has_more_left_out(tmp_path):
    save_part(part("new"), tmp_path / "new.parquet")
    older = pq.read_table(tmp_path / "new.parquet").drop(["relative_drop", "network"])
    pq.write_table(older.append_column("retired", pa.array([1, 2, 3])), tmp_path / "old.parquet")
    table = read_table(tmp_path, ["old", "new"])
    assert list(table.columns) == table_schema().names
    assert list(table["relative_drop"].isna()) == [True] * 3 + [False] * 3
    assert list(table["network"].astype(object).fillna("")) == [""] * 3 + ["word"] * 3


def test_what_cannot_be_read_is_refused_in_a_sentence(tmp_path):
    with pytest.raises(CheckpointError, match="holds no run yet"):
        read_table(tmp_path, ["a"])
    save_part(part("a"), tmp_path / "a.parquet")
    with pytest.raises(CheckpointError, match="has no column 'colour'"):
        read_table(tmp_path, ["a"], ["colour"])
    (tmp_path / "a.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(CheckpointError, match=r"a\.parquet: cannot be read .*; remove it"):
        read_table(tmp_path, ["a"])
