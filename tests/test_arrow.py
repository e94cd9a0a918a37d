"""Columns of lists become sequences, without copying and without leaks."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import numpy as np
import pytest

import ostinato as ost

pd = pytest.importorskip("pandas", reason="pandas is not installed: pip install pandas")
pl = pytest.importorskip("polars", reason="Polars is not installed: pip install 'ostinato[data]'")
pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed: pip install pyarrow")

LISTS = [[1.0, 2.0, 3.0], [], [4.0], [5.0, 6.0]]


def told(ragged: Any) -> list[Any]:
    return [told(s) if isinstance(s, ost.Ragged) else s.tolist() for s in ragged]


@pytest.mark.parametrize("kind", [pa.list_, pa.large_list], ids=["list", "large_list"])
@pytest.mark.parametrize("numbers", ["float32", "float64", "int8", "uint16", "int64"])
def test_kinds_of_numbers(kind: Any, numbers: str) -> None:
    dtype = getattr(pa, numbers)()
    ragged = ost.Ragged.from_arrow(pa.array(LISTS, kind(dtype)))
    assert ragged.rows.dtype == numbers
    assert told(ragged) == LISTS


def test_nothing_is_copied() -> None:
    column = pa.array(LISTS, pa.list_(pa.float32()))
    ragged = ost.Ragged.from_arrow(column)
    assert ragged.rows.ctypes.data == column.values.buffers()[1].address
    assert not ragged.rows.flags.writeable
    y, _ = ost.nn.GRU(1, 3, rng=0)(ost.Ragged(ragged.rows[:, None], ragged.offsets))
    assert len(y) == 4
    series = pl.Series(LISTS, dtype=pl.List(pl.Float64))
    rows = ost.Ragged.from_arrow(series).rows
    del series
    gc.collect()
    assert rows.tolist() == [1, 2, 3, 4, 5, 6]  # its memory is kept


def test_memory_is_given_back() -> None:
    class Column:
        """Tells when it is no longer needed."""

        def __init__(self) -> None:
            self.inner = pa.array(LISTS, pa.list_(pa.float32()))

        def __arrow_c_array__(self) -> Any:
            return self.inner.__arrow_c_array__()

    gc.collect()
    before = pa.total_allocated_bytes()
    column = Column()
    gone = weakref.ref(column)
    rows = ost.Ragged.from_arrow(column).rows
    del column
    gc.collect()
    assert gone() is None
    assert pa.total_allocated_bytes() > before
    assert rows.sum() == 21
    del rows
    gc.collect()
    assert pa.total_allocated_bytes() == before
    chunked = pa.chunked_array([LISTS[:2], LISTS[2:]], pa.list_(pa.float64()))
    found = ost.Ragged.from_arrow(chunked)
    del chunked
    gc.collect()
    assert told(found) == LISTS
    assert pa.total_allocated_bytes() == before  # several pieces are copied


def test_parts_of_columns() -> None:
    column = pa.array([[9.0], *LISTS, [9.0]], pa.list_(pa.float32())).slice(1, 4)
    assert told(ost.Ragged.from_arrow(column)) == LISTS
    chunked = pa.chunked_array([[[9.0]], LISTS[:1], LISTS[1:]], pa.list_(pa.float32())).slice(1)
    assert told(ost.Ragged.from_arrow(chunked)) == LISTS
    frame = pl.DataFrame({"x": LISTS, "k": [1, 2, 1, 2]}).filter(pl.col("k") == 2)
    assert told(ost.Ragged.from_arrow(frame["x"])) == [LISTS[1], LISTS[3]]


def test_rows_of_several_numbers() -> None:
    pairs = [[[1.0, 2.0], [3.0, 4.0]], [[5.0, 6.0]]]
    fixed = pa.list_(pa.list_(pa.float32(), 2))
    for column in (
        pa.array(pairs, fixed),
        pa.array([[[0.0, 0.0]], *pairs], fixed).slice(1),
        pl.Series(pairs, dtype=pl.List(pl.Array(pl.Float32, 2))),
    ):
        ragged = ost.Ragged.from_arrow(column)
        assert ragged.rows.shape == (3, 2)
        assert told(ragged) == pairs
    nothing = pl.Series([[], []], dtype=pl.List(pl.Array(pl.Float64, 2)))
    assert ost.Ragged.from_arrow(nothing).rows.shape == (0, 2)
    documents = [[[1, 2], [3]], [[4, 5, 6]]]
    found = ost.Ragged.from_arrow(pa.array(documents, pa.list_(pa.list_(pa.int64()))))
    assert isinstance(found.rows, ost.Ragged)
    assert told(found) == documents
    equal = ost.Ragged.from_arrow(pa.array([[1, 2], [3, 4]], pa.list_(pa.int32(), 2)))
    assert told(equal) == [[1, 2], [3, 4]]


def test_a_series_of_pandas() -> None:
    series = pd.Series(LISTS, dtype=pd.ArrowDtype(pa.list_(pa.float32())))
    assert told(ost.Ragged.from_arrow(series)) == LISTS


def test_what_is_refused() -> None:
    def missing(values: Any) -> Any:
        return pa.array(values, pa.list_(pa.float32()))

    for column, kind, message in (
        (missing([[1.0], None]), ValueError, "no missing sequences, got 1; fill or drop"),
        (missing([[1.0, None], [None]]), ValueError, "no missing numbers, got 2"),
        (pa.array([["a"]]), TypeError, "lists of numbers, got the Arrow format 'u'"),
        (pa.array([1.0]), TypeError, "lists of numbers, got the Arrow format 'g'"),
        (pl.DataFrame({"a": LISTS}), TypeError, "take one column of the table"),
        (LISTS, TypeError, "got list; Ragged.join takes a list of arrays"),
        (pa.chunked_array([], pa.list_(pa.float32())), ValueError, "at least one sequence"),
    ):
        with pytest.raises(kind, match=message):
            ost.Ragged.from_arrow(column)
    codes = pa.ListArray.from_arrays([0, 2, 3], pa.array([5.5, 6.5, 5.5]).dictionary_encode())
    with pytest.raises(TypeError, match="expected numbers, got categories"):
        ost.Ragged.from_arrow(codes)
    numbers = pa.py_buffer(np.array([1, 2, 3], np.float32).tobytes())
    inner = pa.Array.from_buffers(pa.float32(), 3, [None, numbers])
    memory = np.array([0, 2, 3], np.int32)
    kind = pa.list_(pa.float32())
    damaged = pa.Array.from_buffers(kind, 2, [None, pa.py_buffer(memory)], children=[inner])
    assert told(ost.Ragged.from_arrow(damaged)) == [[1, 2], [3]]
    for offsets in ([0, 2, 2_000_000_000], [-3, 1, 3], [0, 3, 2]):
        memory[:] = offsets  # as a file may have them, which pyarrow does not check
        with pytest.raises(ValueError, match="column is damaged"):
            ost.Ragged.from_arrow(damaged)
    beyond = missing([None, [1.0], [2.0], None]).slice(1, 2)  # what is missing lies outside
    assert told(ost.Ragged.from_arrow(beyond)) == [[1.0], [2.0]]
