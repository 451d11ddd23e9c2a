"""The table of a study: parts of one version or several, whole or damaged."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from planescope.files.errors import CheckpointError
from planescope.study import table as study_table
from planescope.study.table import read_table, renew, save_part, table_schema


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


def of_kind(is_kind):
    return next(field.name for field in table_schema() if is_kind(field.type))


@pytest.mark.parametrize("batch_bytes", [1, 1 << 20], ids=["one-a-batch", "all-in-one"])
@pytest.mark.parametrize("missing", [(), (0,), (1,), (2,), (0, 1, 2)], ids=str)
def test_columns_are_those_of_all_parts_in_one_arrow_table(
    tmp_path, monkeypatch, missing, batch_bytes
):
    monkeypatch.setattr(study_table, "BATCH_BYTES", batch_bytes)
    kinds = (pa.types.is_floating, pa.types.is_integer, pa.types.is_boolean)
    keys = [*map(of_kind, kinds), "layer"]
    for at, name in enumerate("abc"):
        columns = part(name) | {"layer": ["last", f"of {name}", "last"]}
        if at in missing:
            columns |= {key: [None, *columns[key][1:]] for key in keys}
        save_part(columns, tmp_path / f"{name}.parquet")
    whole = pa.concat_tables(pq.read_table(tmp_path / f"{name}.parquet") for name in "abc")
    expected = whole.unify_dictionaries().to_pandas()
    pd.testing.assert_frame_equal(read_table(tmp_path, "abc"), expected)


def test_what_a_part_of_another_version_lacks_is_empty_and_what_it_has_more_left_out(tmp_path):
    save_part(part("new"), tmp_path / "new.parquet")
    older = pq.read_table(tmp_path / "new.parquet").drop(["relative_drop", "network"])
    pq.write_table(older.append_column("retired", pa.array([1, 2, 3])), tmp_path / "old.parquet")
    table = read_table(tmp_path, ["old", "new"])
    assert list(table.columns) == table_schema().names
    assert list(table["relative_drop"].isna()) == [True] * 3 + [False] * 3
    assert list(table["network"].astype(object).fillna("")) == [""] * 3 + ["word"] * 3


def test_a_part_of_before_says_name_where_tables_say_layer_by_now(tmp_path):
    for run in "ab":
        save_part(part(run), tmp_path / f"{run}.parquet")
        table = pq.read_table(tmp_path / f"{run}.parquet")
        names = ["name" if key == "layer" else key for key in table.column_names]
        pq.write_table(table.rename_columns(names), tmp_path / f"{run}.parquet")
    save_part(part("c"), tmp_path / "c.parquet")
    before = read_table(tmp_path, "abc")
    assert list(before["layer"]) == ["word"] * 9
    renew(tmp_path)
    for run in "abc":
        assert pq.read_schema(tmp_path / f"{run}.parquet").names == table_schema().names
    pd.testing.assert_frame_equal(read_table(tmp_path, "abc"), before)


def test_what_cannot_be_read_is_refused_in_a_sentence(tmp_path):
    with pytest.raises(CheckpointError, match="holds no run yet"):
        read_table(tmp_path, ["a"])
    save_part(part("a"), tmp_path / "a.parquet")
    with pytest.raises(CheckpointError, match="has no column 'colour'"):
        read_table(tmp_path, ["a"], ["colour"])
    (tmp_path / "a.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(CheckpointError, match=r"a\.parquet: cannot be read .*; remove it"):
        read_table(tmp_path, ["a"])
