"""Tables into series: what is found, what is told, and what is an error that names the line and the
option.
"""

from __future__ import annotations

import datetime
import os
from typing import Any

import numpy as np
import pytest

pytest.importorskip("polars", reason="Polars is not installed: pip install 'ostinato[data]'")
from ostinato.tasks import tables

DAYS = [f"2020-01-{d:02d}" for d in range(1, 31)]


def read(tmp_path: Any, content: str | bytes, **options: Any) -> tables.Table:
    path = tmp_path / "t.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return tables.read(path, **options)


# -- what is read right: name, content, options, values, first time ------------------------------

GOOD: dict[str, tuple[str | bytes, dict[str, Any], list[float], str]] = {
    "decimal comma": (
        "date;v\n2020-01-01;12,5\n2020-01-02;13,25\n",
        {},
        [12.5, 13.25],
        "2020-01-01",
    ),
    "decimal comma without delimiter": ("v\n12,5\n13\n", {}, [12.5, 13], "1"),
    "quoted thousands": (
        'date,v\n2020-01-01,"1,003.62"\n2020-01-02,5\n',
        {},
        [1003.62, 5],
        "2020-01-01",
    ),
    "German thousands": (
        "date;v\n2020-01-01;1.003,62\n2020-01-02;5,5\n",
        {},
        [1003.62, 5.5],
        "2020-01-01",
    ),
    "spaces between thousands": (
        "date;v\n2020-01-01;1 003,62\n2020-01-02;5\n",
        {},
        [1003.62, 5],
        "2020-01-01",
    ),
    "thousands beside a decimal point": (
        'date,v\n2020-01-01,"1,003"\n2020-01-02,5.5\n',
        {},
        [1003, 5.5],
        "2020-01-01",
    ),
    "--thousands": (
        'date,v\n2020-01-01,"1,003"\n2020-01-02,5\n',
        {"thousands": ","},
        [1003, 5],
        "2020-01-01",
    ),
    "--decimal": (
        "date;v\n2020-01-01;1,003\n2020-01-02;5\n",
        {"decimal": ","},
        [1.003, 5],
        "2020-01-01",
    ),
    "three decimals": (
        "date,v\n2020-01-01,1.234\n2020-01-02,2.345\n",
        {},
        [1.234, 2.345],
        "2020-01-01",
    ),
    "exponents and signs": ("v\n-1e3\n+2.5E-1\n.5\n\u22124.\n", {}, [-1000, 0.25, 0.5, -4], "1"),
    "tabs": ("date\tv\n2020-01-01\t1\n2020-01-02\t2\n", {}, [1, 2], "2020-01-01"),
    "bars": ("date|v\n2020-01-01|1\n2020-01-02|2\n", {}, [1, 2], "2020-01-01"),
    "--delimiter": (
        "date:v\n2020-01-01:1\n2020-01-02:2\n",
        {"delimiter": ":"},
        [1, 2],
        "2020-01-01",
    ),
    "newest first": (
        "date,v\n2020-01-03,3\n2020-01-02,2\n2020-01-01,1\n",
        {},
        [1, 2, 3],
        "2020-01-01",
    ),
    "shuffled": ("date,v\n2020-01-02,2\n2020-01-03,3\n2020-01-01,1\n", {}, [1, 2, 3], "2020-01-01"),
    "--no-header": ("2020-01-01,1\n2020-01-02,2\n", {"header": False}, [1, 2], "2020-01-01"),
    "--header": (
        "1949,1950\n5,2\n6,3\n",
        {"header": True, "column": "1950", "time": ""},
        [2, 3],
        "1",
    ),
    "NA": (
        "date,v\n2020-01-01,1\n2020-01-02,NA\n2020-01-03,3\n",
        {"max_missing": 0.5},
        [1, 2, 3],
        "2020-01-01",
    ),
    "--null": (
        "date,v\n2020-01-01,1\n2020-01-02,-999\n2020-01-03,3\n",
        {"max_missing": 0.5, "null": "-999"},
        [1, 2, 3],
        "2020-01-01",
    ),
    "previous": (
        "date,v\n2020-01-01,1\n2020-01-02,\n2020-01-03,3\n",
        {"max_missing": 0.5, "fill": "previous"},
        [1, 1, 3],
        "2020-01-01",
    ),
    "a gap": (
        "date,v\n2020-01-01,1\n2020-01-02,2\n2020-01-04,4\n",
        {"max_missing": 0.5},
        [1, 2, 3, 4],
        "2020-01-01",
    ),
    "an id is left out": ("id,date,v\n1,2020-01-01,4\n2,2020-01-02,5\n", {}, [4, 5], "2020-01-01"),
    "a constant is left out": (
        "k,date,v\n7,2020-01-01,4\n7,2020-01-02,5\n",
        {},
        [4, 5],
        "2020-01-01",
    ),
    "rows that repeat": (
        "date,v\n2020-01-01,1\n2020-01-01,1\n2020-01-02,2\n",
        {},
        [1, 2],
        "2020-01-01",
    ),
    "--duplicates sum": (
        "date,v\n2020-01-01,1\n2020-01-01,3\n2020-01-02,2\n",
        {"duplicates": "sum"},
        [4, 2],
        "2020-01-01",
    ),
    "--duplicates last": (
        "date,v\n2020-01-01,1\n2020-01-01,3\n2020-01-02,2\n",
        {"duplicates": "last"},
        [3, 2],
        "2020-01-01",
    ),
    "--step": (
        "time,v\n2020-01-01 01:00,1\n2020-01-01 07:13,3\n2020-01-02 02:00,5\n",
        {"step": "day"},
        [2, 5],
        "2020-01-01",
    ),
    "byte-order mark": ("\ufeffv\n1\n2\n", {"column": "v"}, [1, 2], "1"),
    "UTF-16": (
        "date,größe\n2020-01-01,1\n2020-01-02,2\n".encode("utf-16"),
        {"column": "größe"},
        [1, 2],
        "2020-01-01",
    ),
    "UTF-16 without mark": (
        "date,größe\n2020-01-01,1\n2020-01-02,2\n".encode("utf-16-be"),
        {"column": "größe"},
        [1, 2],
        "2020-01-01",
    ),
    "Latin-1": (
        "date,größe\n2020-01-01,1\n2020-01-02,2\n".encode("latin-1"),
        {"column": "größe"},
        [1, 2],
        "2020-01-01",
    ),
    "--encoding": (
        "v\u0119\n1\n2\n".encode("cp1250"),
        {"column": "v\u0119", "encoding": "cp1250"},
        [1, 2],
        "1",
    ),
    "Windows lines": ("date,v\r\n2020-01-01,1\r\n2020-01-02,2\r\n", {}, [1, 2], "2020-01-01"),
    "old Macintosh lines": ("date,v\r2020-01-01,1\r2020-01-02,2", {}, [1, 2], "2020-01-01"),
    "quotes": (
        '"date","note","v"\n2020-01-01,"a, ""b""\nc","1"\n2020-01-02,"","2"\n',
        {},
        [1, 2],
        "2020-01-01",
    ),
    "blank lines": ("v\n10\n\n40\n\n\n", {}, [10, 40], "1"),
    "lines of delimiters": (
        "date,v,w\n2020-01-01,1,\n2020-01-02,2,\n,,\n",
        {},
        [1, 2],
        "2020-01-01",
    ),
    "a count as time": ("time,v\n3,3\n1,1\n2,2\n", {}, [1, 2, 3], "1"),
}


@pytest.mark.parametrize("name", GOOD)
def test_what_is_read(name: str, tmp_path: Any) -> None:
    content, options, values, first = GOOD[name]
    table = read(tmp_path, content, **options)
    assert len(table.series) == 1
    assert table.series[0].values.tolist() == pytest.approx(values, rel=1e-15)
    assert table.series[0].times(0, 1) == [first]


# -- what is an error: content, options, parts of the message ------------------------------------

SHOPS = "date,shop,v\n" + "".join(f"{d},{s},{k}\n" for k, s in enumerate("abc") for d in DAYS)
BAD: dict[str, tuple[str | bytes, dict[str, Any], list[str]]] = {
    "unquoted thousands": (
        "date,v\n2020-01-01,1,003.62\n",
        {},
        ["2 cells in every row", "got 3 in line 2"],
    ),
    "unquoted decimal comma": (
        "date,v\n2020-01-01,12,5\n2020-01-02,13,5\n",
        {},
        ["got 3 in line 2", "1 more rows"],
    ),
    "a short row": ("date,v\n2020-01-01,1\n2020-01-02\n2020-01-03,4\n", {}, ["got 1 in line 3"]),
    "a footer": (
        "date,v\n2020-01-01,1\n2020-01-02,2\nSource: us\n",
        {},
        ["got 1 in line 4", "footer"],
    ),
    "a footer of two cells": (
        "date,v\n2020-01-01,1\n2020-01-02,2\nTotal,3\n",
        {},
        ["'Total' in column 'date', line 4"],
    ),
    "a word among numbers": (
        "id,date,v\n1,2020-01-01,1\n2,2020-01-02,n.d.\n3,2020-01-03,3\n",
        {},
        ["'n.d.' in column 'v', line 3", "--null"],
    ),
    "ambiguous comma": (
        'date,v\n2020-01-01,"1,003"\n2020-01-02,5\n',
        {},
        ["'1,003' in column 'v', line 2", "--decimal", "--thousands"],
    ),
    "ambiguous dot": (
        "date,v\n2020-01-01,1.234\n2020-01-02,987\n",
        {},
        ["'1.234' in column 'v', line 2", "--thousands"],
    ),
    "two decimal marks": (
        "date;v\n2020-01-01;1,5\n2020-01-02;1.5\n",
        {},
        ["line 2", "line 3", "--decimal"],
    ),
    "no header": ("2020-01-01,1\n2020-01-02,2\n", {}, ["line 1", "--no-header"]),
    "no header, numbers": ("1\n2\n3\n", {}, ["--no-header"]),
    "stacked shops": (SHOPS, {}, ["2020-01-01 in line 2 and line 32", "--series shop"]),
    "two rows at a time": (
        "date,v\n2020-01-01,1\n2020-01-01,3\n2020-01-02,2\n",
        {},
        ["line 2 and line 3", "--duplicates"],
    ),
    "two columns": ("date,a,b\n2020-01-01,4,1\n2020-01-02,6,7\n", {}, ["--column", "a, b"]),
    "two times": (
        "date,seen,v\n2020-01-01,2020-01-01,1\n2020-01-02,2020-01-02,3\n",
        {},
        ["--time", "date and seen"],
    ),
    "rows out of order": ("id,v\n3,4\n1,5\n2,9\n", {}, ["--time id"]),
    "half missing": (
        "date,v\n" + "".join(f"{d},{k if k % 2 else ''}\n" for k, d in enumerate(DAYS)),
        {},
        ["at most 10%", "got 14 of 29 (48%)", "--max-missing"],
    ),
    "none may be missing": (
        "date,v\n2020-01-01,1\n2020-01-02,\n2020-01-03,3\n",
        {"fill": "error"},
        ["no missing value", "--fill"],
    ),
    "1e308": ("date,v\n2020-01-01,1\n2020-01-02,1e308\n", {}, ["at most 1e+100", "line 3"]),
    "inf": ("date,v\n2020-01-01,1\n2020-01-02,inf\n", {}, ["'inf' in column 'v', line 3"]),
    "day or month": (
        "date,v\n01/02/2020,1\n02/02/2020,2\n",
        {},
        ["--time-format", "'%d/%m/%Y'", "'%m/%d/%Y'"],
    ),
    "day and month": (
        "date,v\n13/02/2020,1\n02/13/2020,2\n",
        {},
        ["line 2", "line 3", "one order"],
    ),
    "years of two digits": (
        "date,v\n13.02.20,1\n14.02.20,2\n",
        {},
        ["--time-format", "four digits"],
    ),
    "no such day": (
        "date,v\n2020-02-29,1\n2020-02-30,2\n",
        {},
        ["'2020-02-30' in column 'date', line 3"],
    ),
    "no time": (
        "date,v\n2020-02-29,1\n,2\n2020-03-01,5\n",
        {},
        ["got none in column 'date', line 3"],
    ),
    "mixed steps": (
        "t,v\n2020-01-01 00:00,1\n2020-01-01 01:00,1\n2020-01-01 01:07,2\n2020-01-03 00:00,2\n",
        {},
        ["one step", "--step"],
    ),
    "two zones or none": ("t,v\n2020-01-01T00:00Z,1\n2020-01-01T01:00,1\n", {}, ["line 3", "zone"]),
    "an open quote": ('date,v\n2020-01-01,"1\n2020-01-02,2\n', {}, ["never closed in line 2"]),
    "a quote in a cell": (
        'date,n,v\n2020-01-01,5" pipe,1\n2020-01-02,x",2\n',
        {},
        ["quote", "line 2"],
    ),
    "names twice": ("v,v\n1,2\n", {}, ["'v' twice"]),
    "no such column": ("a\n1\n", {"column": "b"}, ["--column: expected one of a, got 'b'"]),
    "one column, two uses": ("a,b\n1,2\n", {"column": "a", "known": "a"}, ["--known", "--column"]),
    "words": ("a\nx\ny\n", {}, ["column of numbers, got none in a"]),
    "words, named": ("a\nx\ny\n", {"column": "a"}, ["'x' in column 'a', line 2"]),
    "one time": ("date,v\n2020-01-01,1\n", {}, ["two times", "line 2"]),
    "a vast time": ("time,v\n1e40,1\n2,3\n", {}, ["below 1e15", "line 2"]),
    "an empty header": (",\n2020-01-01,1\n", {}, ["empty cells in line 1"]),
    "empty": ("", {}, ["empty file"]),
    "only a header": ("a,b\n", {}, ["got no row"]),
    "a spreadsheet": (b"PK\x03\x04....", {}, [".xlsx"]),
    "no text": (b"a,b\n\0\0\0\1\2", {}, ["no text"]),
    "bad encoding": (b"v\n1\n", {"encoding": "klingon"}, ["--encoding", "'klingon'"]),
    "not this encoding": (b"v\xff\n1\n", {"encoding": "utf-8"}, ["--encoding", "byte 1"]),
    "bad delimiter": ("a\n1\n", {"delimiter": ";;"}, ["--delimiter"]),
    "bad decimal": ("a\n1\n", {"decimal": "x"}, ["--decimal"]),
    "bad fill": ("a\n1\n", {"fill": "zero"}, ["--fill"]),
    "bad step": ("a\n1\n", {"step": "fortnight"}, ["--step"]),
    "bad share": ("a\n1\n", {"max_missing": 1.5}, ["--max-missing"]),
    "bad format": (
        "date,v\n2020-01-01,1\n",
        {"time": "date", "time_format": "%d/%m/%Y"},
        ["--time-format", "line 2"],
    ),
    "times in a form that is not known": (
        "date,v\nThu 2020-01-02,2\nWed 2020-01-01,1\n",
        {},
        ["--time: expected times that are known, got 'Thu 2020-01-02' in column 'date', line 2"],
    ),
    "digits of another script": (
        "date,v\n2020-01-01,1\n2020-01-02,\uff11\uff12\n2020-01-03,4\n",
        {},
        ["expected numbers", "in column 'v', line 3"],
    ),
    "dates of another script": (
        "day,v\n2020-01-01,1\n\u0662\u0660\u0662\u0660-01-02,2\n2020-01-03,4\n",
        {},
        ["times in the digits 0 to 9", "in column 'day', line 3"],
    ),
    "all dates of another script": (
        "day,v\n\u0662\u0660\u0662\u0660-01-01,1\n\u0662\u0660\u0662\u0660-01-02,2\n",
        {},
        ["times in the digits 0 to 9", "in column 'day', line 2"],
    ),
    "a count beyond int64": (
        "time,v\n1,1\n10000000000000000000,2\n",
        {"column": "v"},
        ["below 2**63", "'10000000000000000000' in column 'time', line 3"],
    ),
    "seconds beyond int64": (
        "time,v\n1,1\n10000000000000000000,2\n",
        {"column": "v", "time": "time", "time_format": "s"},
        ["below 2**63", "line 3"],
    ),
    "seconds that wrap around": (
        "time,v\n18446744073710,1\n18446744073711,2\n",
        {"column": "v", "time": "time", "time_format": "s"},
        ["years of 1 to 9999", "line 2"],
    ),
    "--step without times": ("v\n1\n2\n", {"step": "week"}, ["--step: expected a time column"]),
    "--duplicates without times": (
        "v\n1\n2\n",
        {"duplicates": "sum"},
        ["--duplicates: expected a time column with it, got none"],
    ),
    "--time-format without times": (
        "date,v\n2020-01-01,1\n2020-01-02,2\n",
        {"time": "", "time_format": "%d"},
        ["--time-format: expected a time column with it, got none"],
    ),
    "--timezone without times": (
        "v\n1\n2\n",
        {"timezone": "Europe/Berlin"},
        ["--timezone: expected a time column with it, got none"],
    ),
    "--timezone of numbers": (
        "time,v\n1,1\n2,2\n",
        {"column": "v", "timezone": "Europe/Berlin"},
        ["--timezone: expected times of a calendar"],
    ),
    "bad zone beside zones": (
        "date,v\n2020-01-01T00:00Z,1\n2020-01-01T01:00Z,1\n",
        {"timezone": "Mars/Base"},
        ["--timezone: expected a name", "'Mars/Base'"],
    ),
    "no zone": (
        "date,v\n2020-01-01 00:00,1\n2020-01-01 01:00,1\n",
        {"timezone": ""},
        ["--timezone: expected a name"],
    ),
    "zeros for a step": ("v\n1\n", {"step": "000day"}, ["--step", "'000day'"]),
    "a vast step": ("v\n1\n", {"step": "9" * 20 + "day"}, ["--step", "below 10,000 years"]),
    "a long step": ("v\n1\n", {"step": "9" * 5000 + "day"}, ["--step", "below 10,000 years"]),
    "an encoding that nothing is in": (
        b"v\n1\n",
        {"encoding": "undefined"},
        ["--encoding", "t.csv"],
    ),
    "not punycode": (b"v\n1-\\\n", {"encoding": "punycode"}, ["--encoding", "t.csv"]),
    "surrogates": (b"v\n\\ud800\n", {"encoding": "unicode_escape"}, ["--encoding", "t.csv"]),
    "two letters for a tab": ("a\n1\n", {"delimiter": "\\t"}, ["--delimiter", r"a tab, $'\t'"]),
    "bad zone": (
        "date,v\n2020-01-01 00:00,1\n2020-01-01 01:00,1\n",
        {"timezone": "Mars/Base"},
        ["--timezone"],
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_refused(name: str, tmp_path: Any) -> None:
    content, options, parts = BAD[name]
    with pytest.raises(ValueError) as e:
        read(tmp_path, content, **options)
    for part in parts:
        assert part in str(e.value)


# -- time: cells, options, step, the times of the last row and of the one after -------------------

TIMES: dict[str, tuple[list[Any], dict[str, Any], str, list[str]]] = {
    "months": (["1949-01", "1949-02", "1949-03"], {}, "1 month", ["1949-03", "1949-04"]),
    "first of the month": (
        ["2020-01-01", "2020-02-01", "2020-03-01"],
        {},
        "1 month",
        ["2020-03-01", "2020-04-01"],
    ),
    "end of the month": (
        ["2020-01-31", "2020-02-29", "2020-03-31"],
        {},
        "1 month",
        ["2020-03-31", "2020-04-30"],
    ),
    "named months": (["Nov 1949", "Dec 1949", "Jan 1950"], {}, "1 month", ["1950-01", "1950-02"]),
    "quarters": (["1959Q1", "1959Q2", "1959Q3"], {}, "1 quarter", ["1959Q3", "1959Q4"]),
    "years": ([1700, 1701, 1702], {}, "1 year", ["1702", "1703"]),
    "years of floats": (["1700.0", "1701.0", "1702.0"], {}, "1 year", ["1702", "1703"]),
    "weeks": (["2020-W52", "2020-W53", "2021-W01"], {}, "1 week", ["2021-01-04", "2021-01-11"]),
    "days": (["2020-02-28", "2020-02-29", "2020-03-01"], {}, "1 day", ["2020-03-01", "2020-03-02"]),
    "day first": (
        ["30/01/2020", "31/01/2020", "01/02/2020"],
        {},
        "1 day",
        ["2020-02-01", "2020-02-02"],
    ),
    "month first": (
        ["1/30/2020", "1/31/2020", "2/1/2020"],
        {},
        "1 day",
        ["2020-02-01", "2020-02-02"],
    ),
    "dots": (["01.02.2020", "02.02.2020", "03.02.2020"], {}, "1 day", ["2020-02-03", "2020-02-04"]),
    "format": (
        ["01/02/20", "02/02/20"],
        {"time_format": "%m/%d/%y"},
        "1 month",
        ["2020-02-02", "2020-03-02"],
    ),
    "format of months": (
        ["Jan-49", "Feb-49"],
        {"time_format": "%b-%y"},
        "1 month",
        ["2049-02", "2049-03"],
    ),
    "no marks": ([20200130, 20200131, 20200201], {}, "1 day", ["2020-02-01", "2020-02-02"]),
    "epoch": (
        [1600000000, 1600000060, 1600000120],
        {},
        "1 minute",
        ["2020-09-13T12:28:40Z", "2020-09-13T12:29:40Z"],
    ),
    "epoch of milliseconds": (
        [1600000000000, 1600003600000],
        {},
        "1 hour",
        ["2020-09-13T13:26:40Z", "2020-09-13T14:26:40Z"],
    ),
    "half of the day": (
        ["1/13/2020 11:00 AM", "1/13/2020 12:00 PM", "1/13/2020 1:00 PM"],
        {},
        "1 hour",
        ["2020-01-13T13:00:00", "2020-01-13T14:00:00"],
    ),
    "one offset": (
        ["2020-01-01T00:00+01:00", "2020-01-01T01:00+01:00"],
        {},
        "1 hour",
        ["2020-01-01T01:00:00+01:00", "2020-01-01T02:00:00+01:00"],
    ),
    "summer time in offsets": (
        ["2020-03-29T01:00+01:00", "2020-03-29T03:00+02:00", "2020-03-29T04:00+02:00"],
        {},
        "1 hour",
        ["2020-03-29T02:00:00Z", "2020-03-29T03:00:00Z"],
    ),
    "days of a zone": (
        ["2020-03-28T00:00+01:00", "2020-03-29T00:00+01:00", "2020-03-30T00:00+02:00"],
        {},
        "1 day",
        ["2020-03-30", "2020-03-31"],
    ),
    "clocks put back": (
        ["2020-10-25 01:00", "2020-10-25 02:00", "2020-10-25 02:00", "2020-10-25 03:00"],
        {"timezone": "Europe/Berlin"},
        "1 hour",
        ["2020-10-25T03:00:00+01:00", "2020-10-25T04:00:00+01:00"],
    ),
    "clocks put forward": (
        ["2020-03-29 01:00", "2020-03-29 03:00", "2020-03-29 04:00"],
        {"timezone": "Europe/Berlin"},
        "1 hour",
        ["2020-03-29T04:00:00+02:00", "2020-03-29T05:00:00+02:00"],
    ),
    "business days": (
        [str(d) for d in np.busday_offset("2020-01-01", np.arange(10))],
        {},
        "1 business day",
        ["2020-01-14", "2020-01-15"],
    ),
    "clocks that shake": (
        [
            "2020-01-01 00:00:02",
            "2020-01-01 00:10:00",
            "2020-01-01 00:20:05",
            "2020-01-01 00:29:59",
        ],
        {},
        "10 minutes",
        ["2020-01-01T00:30:00", "2020-01-01T00:40:00"],
    ),
    "a count": ([0, 1, 2, 3], {"time": "time"}, "1", ["3", "4"]),
    "a large count": ([12345678901, 12345678902], {}, "1", ["12345678902", "12345678903"]),
    "hours alone": (
        ["2020-01-01T22", "2020-01-01T23"],
        {},
        "1 hour",
        ["2020-01-01T23:00:00", "2020-01-02T00:00:00"],
    ),
    "format of days with names": (
        ["Wed 2020-01-01", "Thu 2020-01-02"],
        {"time_format": "%a %Y-%m-%d"},
        "1 day",
        ["2020-01-02", "2020-01-03"],
    ),
    "seconds with a sign": (
        ["+5", "+6"],
        {"time_format": "s"},
        "1 second",
        ["1970-01-01T00:00:06Z", "1970-01-01T00:00:07Z"],
    ),
}


@pytest.mark.parametrize("name", TIMES)
def test_times(name: str, tmp_path: Any) -> None:
    cells, options, step, want = TIMES[name]
    content = "time,v\n" + "".join(f"{c},{k * k}\n" for k, c in enumerate(cells))
    table = read(tmp_path, content, **{"column": "v", **options})
    n = len(cells)
    assert str(table.step) == step
    assert table.series[0].values.tolist() == [k * k for k in range(n)]
    assert table.series[0].times(n - 1, n + 1) == want


def test_what_is_said(tmp_path: Any) -> None:
    table = read(tmp_path, "month,v\n1949-03,5\n1949-01,3\n1949-02,\n1949-05,7\n", max_missing=0.5)
    assert [line.replace(str(tmp_path), "") for line in table.lines()] == [
        "read     4 rows of /t.csv: 1949-01 to 1949-05 (column month), step 1 month",
        "column   v: 3 to 7; missing 2 of 5, filled: linear",
    ]
    assert table.notes == ("rows were not in order: sorted by month", "1 steps without a row")
    no_time = read(tmp_path, "v\n1\n2\n")
    assert "the order of the rows counts" in no_time.lines()[0]
    assert "read as cp1252" in read(tmp_path, b"gr\xf6\xdfe\n1\n2\n").notes


def test_several_series(tmp_path: Any) -> None:
    table = read(tmp_path, SHOPS, series="shop")
    assert [s.name for s in table.series] == ["a", "b", "c"]
    assert [set(s.values) for s in table.series] == [{0.0}, {1.0}, {2.0}]
    wide = "date,a,b\n2020-01-01,,1\n2020-01-02,2,3\n2020-01-03,4,5\n"
    table = read(tmp_path, wide, column=("a", "b"))
    assert {s.name: (s.values.tolist(), s.times(0, 1)) for s in table.series} == {
        "a": ([2, 4], ["2020-01-02"]),
        "b": ([1, 3, 5], ["2020-01-01"]),
    }
    mixed = "date,s,v\n2020-01-01,a,1\n2020-01-02,a,2\n2020-01-01,b,1\n2020-01-08,b,2\n"
    with pytest.raises(
        ValueError,
        match="--step: expected one step in all series, got 1 day in 'a' and 1 week in 'b'",
    ):
        read(tmp_path, mixed, series="s")


def test_numbers_as_names_and_times(tmp_path: Any) -> None:
    """Whole numbers have no point; those beyond 64 bits, and NaN, have no whole number."""
    pl = pytest.importorskip("polars", reason="polars is not installed")
    frame = pl.DataFrame({"s": [1.0, 1.0, 1e300, 1e300], "v": [1.0, 2, 3, 4]})
    assert [float(s.name) for s in tables.read(frame, series="s").series] == [1, 1e300]
    whole = frame.with_columns(s=pl.Series([1.0, 1.0, 2.0, 2.0]))
    assert [s.name for s in tables.read(whole, series="s").series] == ["1", "2"]
    none = frame.with_columns(s=pl.Series([1.0, 1.0, float("nan"), 2.0]))
    with pytest.raises(ValueError, match="--series: expected a name in every row"):
        tables.read(none, series="s")
    with pytest.raises(ValueError, match="expected a time in every row, got none in column 's'"):
        tables.read(none, time="s", column="v")
    with pytest.raises(ValueError, match="--series: expected one of s, v, got ''"):
        tables.read(frame, series="")


@pytest.mark.parametrize("kind", ["csv", "parquet", "frame", "pandas", "pandas with missing"])
def test_whole_numbers_are_names_as_they_are(kind: str, tmp_path: Any) -> None:
    """float64 would make one series of two."""
    pl = pytest.importorskip("polars", reason="polars is not installed")
    names = [2**53, 2**53, 2**53 + 1, 2**53 + 1]
    source = pl.DataFrame({"s": names, "t": [1, 2, 1, 2], "v": [1.0, 2.0, 3.0, 4.0]})
    if kind == "csv":
        source.write_csv(tmp_path / "a")
    elif kind == "parquet":
        source.write_parquet(tmp_path / "a")
    elif kind.startswith("pandas"):
        pd = pytest.importorskip("pandas", reason="pandas is not installed")
        source = pd.DataFrame({"s": names, "t": [1, 2, 1, 2], "v": [1.0, 2.0, 3.0, 4.0]})
        if kind == "pandas with missing":
            source["s"] = pd.array(names, dtype="Int64")
            source["w"] = pd.array([1, None, 2, 3], dtype="Int64")
    path = tmp_path / "a" if kind in ("csv", "parquet") else source
    table = tables.read(path, series="s", time="t", column="v")
    assert {s.name: s.values.tolist() for s in table.series} == {
        "9007199254740992": [1, 2],
        "9007199254740993": [3, 4],
    }
    with pytest.raises(ValueError, match=r"got 1 in .* and .*; --series s if that column tells"):
        tables.read(path, time="t", column="v")


def test_rows_after_the_last_value_are_the_future_of_inputs(tmp_path: Any) -> None:
    content = "date,v,p\n2020-01-01,1,1\n2020-01-02,2,1\n2020-01-03,,0\n"
    (known,) = read(tmp_path, content, column="v", known="p").notes
    assert known == "1 rows after the last value of v: the future"
    assert read(tmp_path, content, column="v").notes == (
        "1 rows after the last value of v left out",
    )


def test_times_of_whole_numbers_are_exact() -> None:
    """Nanoseconds since 1970 have more digits than float64."""
    pl = pytest.importorskip("polars", reason="polars is not installed")
    times = [1600000000000001000, 1600000000000002000]
    table = tables.read(pl.DataFrame({"time": times, "v": [1, 5]}), column="v")
    assert table.series[0].times(0, 2) == [
        "2020-09-13T12:26:40.000001Z",
        "2020-09-13T12:26:40.000002Z",
    ]


def test_a_column_called_time_may_be_passed_over(tmp_path: Any) -> None:
    table = read(tmp_path, "date,v\nThu 2020-01-02,2\nWed 2020-01-01,1\n", time="")
    assert (table.time, table.series[0].values.tolist()) == (None, [2, 1])
    assert read(tmp_path, "date,v\n,2\n-,1\n").time is None  # nothing is in it


def test_several_business_days(tmp_path: Any) -> None:
    days = [str(d) for d in np.busday_offset("2020-01-01", np.arange(10))]
    content = "date,v\n" + "".join(f"{d},{k}\n" for k, d in enumerate(days))
    table = read(tmp_path, content, step="2 business days")
    assert table.series[0].values.tolist() == [0.5, 2.5, 4.5, 6.5, 8.5]
    assert table.series[0].times(0, 2) == [days[0], days[2]]


ADVICE = {
    "decimal mark": 'd,v\n2020-01-01,"1,003"\n2020-01-02,5\n',
    "two marks": "d;v\n2020-01-01;1,5\n2020-01-02;1.5\n",
    "dot": "d,v\n2020-01-01,1.234\n2020-01-02,987\n",
    "missing": "d,v\n2020-01-01,1\n2020-01-02,\n2020-01-03,3\n",
    "word": "d,v\n2020-01-01,1\n2020-01-02,n.d.\n2020-01-03,3\n",
    "duplicates": "d,v\n2020-01-01,1\n2020-01-01,3\n2020-01-02,2\n",
    "stacked": SHOPS.replace("date", "d"),
    "header": "1,2\n3,4\n",
    "widths": "d,v\n2020-01-01,1\n2020-01-02\n2020-01-03,3\n",
    "day or month": "d,v\n01/02/2020,1\n02/02/2020,2\n",
    "two digits": "d,v\n13.02.20,1\n14.02.20,2\n",
    "no times": "d,v\nx,1\ny,2\n",
    "a footer": "d,v\n2020-01-01,1\n2020-01-02,2\nTotal,3\n",
    "steps": "d,v\n2020-01-01 00:00,1\n2020-01-01 01:00,1\n2020-01-01 01:07,2\n2020-01-03,2\n",
    "gaps": "d,v\n2000-01-01 00:00,1\n2000-01-01 00:01,1\n2020-01-01 00:00,2\n",
    "column": "d,w\n2020-01-01,1\n2020-01-02,2\n",
}


@pytest.mark.parametrize("name", ADVICE)
def test_errors_name_no_option_that_the_command_lacks(name: str, tmp_path: Any) -> None:
    options = {"column": "v", "time": "d", "max_missing": 0.0}
    with pytest.raises(ValueError, match=r"--[a-z]"):
        read(tmp_path, ADVICE[name], **options)
    with pytest.raises(ValueError) as e:
        read(tmp_path, ADVICE[name], command={}, **options)
    assert "--" not in str(e.value)
    assert str(e.value).startswith("FILE: expected ")


def test_known_and_observed(tmp_path: Any) -> None:
    content = (
        "date,v,promo,rain\n2020-01-01,1,no,5\n2020-01-02,2,yes,6\n"
        "2020-01-03,,yes,\n2020-01-04,,no,\n2020-01-05,,,\n"
    )
    table = read(tmp_path, content, known="promo", observed="rain")
    (one,) = table.series
    assert one.values.tolist() == [1, 2]
    assert one.known.tolist() == [[0], [1], [1], [0]]
    assert one.observed.tolist() == [[5], [6]]
    assert "known promo; observed rain" in table.lines()[1]


def test_frames(tmp_path: Any) -> None:
    import polars as pl

    days = [datetime.date(2020, 1, k) for k in (3, 1, 2)]
    frame = pl.DataFrame({"day": days, "v": [3, 1, 2], "kind": ["x", "y", "z"]})
    frame.write_parquet(tmp_path / "named.csv")  # told by its content
    for source in (frame, frame.lazy(), tmp_path / "named.csv"):
        table = tables.read(source)
        assert table.series[0].values.tolist() == [1, 2, 3]
        assert table.series[0].times(2, 4) == ["2020-01-03", "2020-01-04"]
        assert str(table.step) == "1 day"
    hours = pl.DataFrame(
        {"t": [datetime.datetime(2020, 1, 1, h) for h in (0, 1)], "v": [1.0, None]}
    )
    zoned = hours.with_columns(
        pl.col("t").dt.replace_time_zone("Europe/Berlin"), pl.Series("v", [1.0, 2.0])
    )
    assert tables.read(zoned).series[0].times(1, 3) == [
        "2020-01-01T01:00:00+01:00",
        "2020-01-01T02:00:00+01:00",
    ]
    with pytest.raises(ValueError, match="row 2"):
        tables.read(pl.DataFrame({"v": [1.0, float("inf")]}))
    with pytest.raises(
        TypeError, match="source: expected a path or a frame of pandas, Polars or Arrow, got list"
    ):
        tables.read([1, 2])


def test_pandas_and_arrow() -> None:
    pd = pytest.importorskip("pandas", reason="pandas is not installed")
    index = pd.date_range("2020-01-31", periods=3, freq=pd.offsets.MonthEnd())
    for source in (
        pd.Series([1.0, 2.0, 4.0], index=index, name="v"),
        pd.DataFrame({"v": [1, 2, 4]}, index=index),
        pd.DataFrame({"date": index.astype(str), "v": [1, 2, 4]}),
        pd.DataFrame({"v": [1.0, 2.0, 4.0]}, index=index.tz_localize("Europe/Berlin")),
    ):
        table = tables.read(source)
        assert table.series[0].values.tolist() == [1, 2, 4]
        assert table.series[0].times(2, 4) == ["2020-03-31", "2020-04-30"]
    periods = pd.Series([1.0, 2.0], index=pd.period_range("1959Q1", periods=2, freq="Q"), name="v")
    assert tables.read(periods).series[0].times(1, 3) == ["1959Q2", "1959Q3"]
    pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    table = tables.read(pa.table({"t": ["2020-01-01", "2020-01-02"], "v": [1, 5]}))
    assert table.series[0].values.tolist() == [1, 5]


def test_only_regular_files(tmp_path: Any) -> None:
    os.symlink("/dev/zero", tmp_path / "zero")
    os.mkfifo(tmp_path / "pipe")
    for name in ("zero", "pipe", "."):
        with pytest.raises(ValueError, match="expected a regular file"):
            tables.read(tmp_path / name)


def test_the_next_file_is_read_like_the_first(tmp_path: Any) -> None:
    first = read(
        tmp_path, "d;v;w\n31/01/2020;1,003;2,5\n01/02/2020;2;1\n02/02/2020;3;1\n", column="v"
    )
    assert first.series[0].values.tolist() == [1.003, 2, 3]
    again = read(
        tmp_path, "d;w;v\n03/02/2020;7;4,001\n04/02/2020;8;5\n05/02/2020;8;5\n", like=first.facts
    )
    assert again.series[0].values.tolist() == [4.001, 5, 5]
    assert again.series[0].times(0, 1) == ["2020-02-03"]
    with pytest.raises(ValueError, match="expected steps of 1 day, as in the training, got 1 week"):
        read(tmp_path, "d;w;v\n03/02/2020;7;4\n10/02/2020;8;5\n17/02/2020;8;5\n", like=first.facts)
    with pytest.raises(ValueError, match="--column: expected one of"):
        read(tmp_path, "d;w\n03/02/2020;7\n", like=first.facts)


@pytest.mark.parametrize("kind", ["quoted", "plain"])
def test_lines_of_a_large_file(kind: str, tmp_path: Any) -> None:
    q = '"' if kind == "quoted" else ""
    hours = np.datetime64("2000-01-01T00") + np.arange(50_000).astype("timedelta64[h]")
    rows = [f"{hour},{q}{k % 977}.5{q}" for k, hour in enumerate(hours)]
    table = read(tmp_path, "t,v\n" + "\n".join(rows) + "\n")
    assert len(table.series[0].values) == 50_000
    assert table.series[0].values[1234] == 1234 % 977 + 0.5
    rows[40_000] += ",7"
    with pytest.raises(ValueError, match="got 3 in line 40002"):
        read(tmp_path, "t,v\n" + "\n".join(rows) + "\n")


def test_line_breaks_in_cells_do_not_depend_on_spaces_elsewhere(tmp_path: Any) -> None:
    content = 't,"v\n"\n2020-01-01,"1\n"\n2020-01-02,2\n2020-01-03,3\n'
    for text in (content, content.replace("\n", "\r\n"), content + " "):
        table = read(tmp_path, text, time="t")
        assert [s.values.tolist() for s in table.series] == [[1, 2, 3]]
        assert table.facts["options"]["column"] == ("v",)


def test_errors_are_short_however_long_cells_and_names_are(tmp_path: Any) -> None:
    path, cell, name = tmp_path / "a.csv", "1.2.3 " * 900, "n" * 5000
    wide = ",".join(f"{k}{name}" for k in range(50))
    dates = "\n2020-01-01,1\n2020-01-02,2\n"
    texts = {
        "numbers": (f"date,v\n2020-01-01,1\n2020-01-02,{cell}\n", {"column": "v"}),
        "names": (f"date,{name}\n2020-01-01,1\n2020-01-02,x\n", {"column": name}),
        "columns": (wide + "\n" + ",".join("x" * 50) + "\n", {}),
        "column": (wide + "\n" + ",".join("1" * 50) + "\n", {"column": "v"}),
        "times": (f"{name},v{dates}{cell},3\n", {"time": name}),
        "no time": (f"{name},v\n{cell},1\n{cell},2\n", {"time": name}),
        "large": (f"date,{name}\n2020-01-01,1\n2020-01-02,1e300\n", {"column": name}),
        "missing": (f"date,{name}\n2020-01-01,1\n2020-01-02,\n2020-01-03,3\n", {"fill": "error"}),
        "twice": (f"date,s,v\n2020-01-01,{name},1\n2020-01-01,{name},2\n", {"series": "s"}),
        "repeated": (f"{name},{name}\n1,2\n", {}),
        "no names": (",".join("9" * 3000 for _ in range(4)) + "\n1,2,3,4\n", {}),
        "widths": (f"a,b\n1,2\n{name},{name},{name}\n", {}),
    }
    for kind, (text, options) in texts.items():
        path.write_text(text)
        with pytest.raises(ValueError) as e:
            tables.read(path, **options)
        assert len(str(e.value)) < 2000, kind


@pytest.mark.parametrize("order", ["as they are", "newest first", "side by side"])
def test_the_doubled_hour_is_found_in_each_series(order: str) -> None:
    """Every series has its own first and second row of the hour that clocks show twice."""
    import polars as pl

    clocks = ["01:00", "02:00", "02:00", "03:00"]
    times = [f"2020-10-25 {clock}" for clock in clocks]
    frame = pl.DataFrame({"time": times * 2, "s": ["a"] * 4 + ["b"] * 4, "v": [*range(4)] * 2})
    if order == "newest first":
        frame = frame.reverse()
    elif order == "side by side":
        frame = frame[[0, 4, 1, 5, 2, 6, 3, 7]]
    for table in (frame, frame.with_columns(pl.col("time").str.to_datetime("%Y-%m-%d %H:%M"))):
        read = tables.read(table, column="v", series="s", timezone="Europe/Berlin", step="hour")
        assert [s.values.tolist() for s in read.series] == [[0, 1, 2, 3]] * 2


@pytest.mark.parametrize(
    ("start", "step", "labels", "said"),
    [
        (1700000030, 0.5, ["1700000031", "1700000031.5"], "0.5"),
        (1700000030, 0.1, ["1700000030.2", "1700000030.3"], "0.1"),
        (1e14, 0.5, ["100000000000001", "100000000000001.5"], "0.5"),
        (0, 1000000.25, ["2000000.5", "3000000.75"], "1000000.25"),
        (0, 0.1, ["0.2", "0.3"], "0.1"),
    ],
)
def test_fractional_times_keep_their_digits(
    start: float, step: float, labels: list[str], said: str
) -> None:
    import polars as pl

    frame = pl.DataFrame({"t": [start + k * step for k in range(50)], "v": [1.0, 2.0] * 25})
    table = tables.read(frame, time="t")
    assert (table.series[0].times(2, 4), str(table.step)) == (labels, said)
    times = table.series[0].times(0, 100)
    assert len(set(times)) == 100
    assert np.allclose([float(t) for t in times], [start + k * step for k in range(100)], 1e-14)


@pytest.mark.parametrize("start", [0, 1700000000])
def test_series_whose_steps_differ_by_rounding_have_one_step(start: int) -> None:
    import polars as pl

    times = [start + begin + 0.1 * k for begin in (0, 10) for k in range(20)]
    frame = pl.DataFrame({"t": times, "s": ["a"] * 20 + ["b"] * 20, "v": [1.0, 2.0] * 20})
    table = tables.read(frame, time="t", series="s", column="v")
    assert [s.times(19, 21) for s in table.series] == [
        [f"{start + 1}.9", f"{start + 2}"],
        [f"{start + 11}.9", f"{start + 12}"],
    ]


@pytest.mark.parametrize("names", ["ab", "ba"])
def test_a_dot_beside_small_numbers_is_unclear_in_every_order_of_columns(
    names: str, tmp_path: Any
) -> None:
    columns = {"a": ["1.234", "2.345"], "b": ["2.345", "7"]}
    rows = "".join(",".join(columns[n][k] for n in names) + "\n" for k in range(2))
    with pytest.raises(ValueError, match=r"in one way, got '2\.345' in column 'b', line 2; --dec"):
        read(tmp_path, ",".join(names) + "\n" + rows, column=("a", "b"))


@pytest.mark.parametrize("kind", ["Time", "Duration", "Object", "List"])
def test_a_column_called_time_of_another_type_is_not_passed_over(kind: str, tmp_path: Any) -> None:
    import polars as pl

    cells: list[Any] = [None, datetime.time(3), datetime.time(1)]
    if kind == "Duration":
        cells = [None, datetime.timedelta(hours=3), datetime.timedelta(hours=1)]
    elif kind == "List":
        cells = [None, [3], [1]]
    column = pl.Series("time", cells, dtype=pl.Object if kind == "Object" else None)
    frame = pl.DataFrame({"time": column, "v": [1.0, 2.0, 3.0]})
    source: Any = frame
    if kind in {"Time", "Duration"}:
        source = tmp_path / "t.parquet"
        frame.write_parquet(source)
    with pytest.raises(ValueError, match=r"--time: expected times that are known, got .*, row 2;"):
        tables.read(source)
    with pytest.raises(ValueError, match=f"--time: expected a column of text.*'time' of {kind}"):
        tables.read(source, time="time")
    assert tables.read(source, time="").series[0].values.tolist() == [1, 2, 3]
    dated = frame.with_columns(date=pl.Series(DAYS[:3]))
    assert tables.read(dated).time == "date"


@pytest.mark.parametrize(("rule", "values"), [("first", [1, 2, 4, 5]), ("last", [1, 3, 4, 5])])
def test_missing_cells_do_not_count_among_several_rows(rule: str, values: list[float]) -> None:
    import polars as pl

    cells = [None, 1, 2, 3, 4, None, 5]
    frame = pl.DataFrame({"t": [1, 1, 2, 2, 3, 3, 4], "v": cells})
    table = tables.read(frame, time="t", column="v", duplicates=rule)
    assert table.series[0].values.tolist() == values
    none = pl.DataFrame({"t": [1, 2, 2, 3], "v": [1, None, None, 3]})
    (one,) = tables.read(none, time="t", duplicates=rule, max_missing=0.5).series
    assert (one.values.tolist(), one.missing) == ([1, 2, 3], 1)
