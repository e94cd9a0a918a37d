"""Texts with labels of tables: a label is the same text in whatever file it stands."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("polars", reason="Polars is not installed: pip install 'ostinato[data]'")
import polars as pl

from ostinato.tasks._documents import read_tables

LABELS: dict[str, tuple[list[Any], Any, list[str]]] = {
    "int64": ([1000001, 1000002], pl.Int64, ["1000001", "1000002"]),
    "beyond float64": ([2**53, 2**53 + 1], pl.Int64, ["9007199254740992", "9007199254740993"]),
    "uint64": ([2**64 - 1, 2**64 - 2], pl.UInt64, [str(2**64 - 1), str(2**64 - 2)]),
    "uint8": ([0, 7], pl.UInt8, ["0", "7"]),
    "float64": ([0.1234567, 1234567.5], pl.Float64, ["0.1234567", "1234567.5"]),
    "float32": ([0.1, 2.5], pl.Float32, ["0.1", "2.5"]),
    "decimal": ([Decimal("1.25"), Decimal("0.75")], pl.Decimal(20, 2), ["1.25", "0.75"]),
    "text": (["a", "b"], pl.String, ["a", "b"]),
}


@pytest.mark.parametrize("name", LABELS)
def test_csv_and_parquet_have_equal_labels(name: str, tmp_path: Path) -> None:
    values, dtype, labels = LABELS[name]
    frame = pl.DataFrame({"text": ["one", "two"], "label": pl.Series(values, dtype=dtype)})
    frame.write_csv(tmp_path / "a.csv")
    frame.write_parquet(tmp_path / "a.parquet")
    for file in ("a.csv", "a.parquet"):
        documents = read_tables([tmp_path / file], "text", "label", "label")
        assert documents.labels == documents.groups == labels


def test_whole_numbers_have_no_point(tmp_path: Path) -> None:
    values = [1.0, 1234567.0, 1e300]
    frame = pl.DataFrame({"text": ["one", "two", "three"], "label": values})
    frame.write_parquet(tmp_path / "a")
    assert read_tables([tmp_path / "a"], "text", "label").labels == ["1", "1234567", "1e+300"]


def test_a_missing_number_is_no_label(tmp_path: Path) -> None:
    pl.DataFrame({"text": ["one", "two"], "label": [1, None]}).write_parquet(tmp_path / "a")
    with pytest.raises(ValueError, match="a label in every row, got an empty cell in row 2"):
        read_tables([tmp_path / "a"], "text", "label")


def test_errors_name_no_option_of_the_reader(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("1,2\n3,4\n")
    with pytest.raises(ValueError, match="expected names of columns in line 1") as e:
        read_tables([tmp_path / "a"], "text", "label")
    assert "--" not in str(e.value)
