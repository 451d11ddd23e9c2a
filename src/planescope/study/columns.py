"""Columns of pandas that grow by the rows of one Arrow table after another.

Values are written once, to where they stay: tables of a whole study, and what pandas makes of
them, would be in memory twice. Its price is this module: a table of 160,000 rows and 66 columns
takes 160 MiB in place of the 290 of a pyarrow data set.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa
    from numpy.typing import NDArray


class Frame:
    """A data frame of the columns of a schema: numbers, truth values and dictionaries of words.

    Types are those that Arrow's `to_pandas` gives for all rows at once: words are categorical, in
    the order in which they come; integers are floating where some are missing, and truth values
    are objects.
    """

    def __init__(self, schema: pa.Schema) -> None:
        import pyarrow as pa

        self._columns: dict[str, _Numbers | _Words] = {
            field.name: _Words() if pa.types.is_dictionary(field.type) else _Numbers()
            for field in schema
        }

    def add(self, table: pa.Table) -> None:
        """Append the rows of a table of the schema."""
        for key, column in self._columns.items():
            column.add(table[key])

    def to_pandas(self) -> pd.DataFrame:
        """Return the values that were added, without a copy."""
        import pandas as pd

        columns = {key: column.to_pandas() for key, column in self._columns.items()}
        return pd.DataFrame(columns, copy=False)


class _Numbers:
    def __init__(self) -> None:
        self._values: NDArray[Any] | None = None

    def add(self, column: pa.ChunkedArray) -> None:
        new: NDArray[Any] = column.to_numpy()
        if self._values is None:
            self._values = new.copy()  # Arrow's memory cannot grow
            return
        # Values may be missing from this table first, or only from those before.
        dtype = np.promote_types(self._values.dtype, new.dtype)
        self._values = self._values.astype(dtype, copy=False)
        _grown(self._values, len(new))[:] = new

    def to_pandas(self) -> NDArray[Any] | None:
        return self._values


class _Words:
    def __init__(self) -> None:
        self._codes: NDArray[np.int32] = np.empty(0, np.int32)
        self._code_of: dict[str, int] = {}

    def add(self, column: pa.ChunkedArray) -> None:
        array = column.combine_chunks()  # of one dictionary
        words = array.dictionary.to_pylist()
        codes = [self._code_of.setdefault(word, len(self._code_of)) for word in words]
        # -1 is missing to pandas, and takes the last of these, which is -1.
        own = array.indices.fill_null(-1).to_numpy()
        _grown(self._codes, len(own))[:] = np.array([*codes, -1], np.int32)[own]

    def to_pandas(self) -> pd.Categorical[str]:
        import pandas as pd

        return pd.Categorical.from_codes(self._codes, categories=pd.Index(list(self._code_of)))


def _grown(values: NDArray[Any], rows: int) -> NDArray[Any]:
    """Return last rows of an array that is made longer by them, where it lies if there is room."""
    had = len(values)
    # Nothing else refers to these values, so that nothing is left with memory that was freed.
    values.resize(had + rows, refcheck=False)
    return values[had:]
