"""``train series`` and ``forecast``, as a user types them, and in Python."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

pytest.importorskip("polars", reason="Polars is not installed: pip install 'ostinato[data]'")
from ostinato import safetensors
from ostinato.__main__ import main
from ostinato.tasks import series
from ostinato.tasks.forecaster import ForecastOptions

SMALL = ["--epochs", "1", "--members", "1"]
QUICK = ForecastOptions(horizon=6, epochs=1, members=1)


def quiet(line: str) -> None:
    """Take a line and show nothing."""


def months(n: int, begin: int = 1949 * 12) -> list[str]:
    return [f"{(begin + k) // 12}-{(begin + k) % 12 + 1:02d}" for k in range(n)]


def seasonal(n: int = 120, seed: int = 0) -> Any:
    t = np.arange(n)
    return (
        100 + 0.5 * t + 20 * np.sin(2 * np.pi * t / 12) + np.random.default_rng(seed).normal(size=n)
    )


def write(path: Any, columns: dict[str, Any]) -> None:
    rows = zip(*columns.values())
    path.write_text(
        ",".join(columns) + "\n" + "".join(",".join(map(str, row)) + "\n" for row in rows)
    )


@pytest.fixture
def here(tmp_path: Any, monkeypatch: Any) -> Any:
    """A folder with a monthly series, ``m.csv``."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "m.csv", {"month": months(120), "sales": seasonal().round(3)})
    return tmp_path


def run(*args: str) -> int:
    return main([*args])


def test_train_and_forecast(here: Any, capsys: Any) -> None:
    assert run("train", "series", "m.csv", "--save", "d/m", "--json", *SMALL) == 0
    out, err = capsys.readouterr()
    figures = json.loads(out)  # and nothing else
    values = seasonal().round(3)
    assert err.splitlines()[:2] == [
        "read     120 rows of m.csv: 1949-01 to 1958-12 (column month), step 1 month",
        f"column   sales: {values.min():.6g} to {values.max():.6g}; missing 0 of 120",
    ]
    assert err.splitlines()[2].startswith("season   12")
    assert (figures["season"], figures["horizon"], figures["column"], figures["step"]) == (
        12,
        12,
        "sales",
        "1 month",
    )
    assert figures["mae"] < figures["naive_mae"]
    (one,) = figures["series"]
    assert one["times"] == months(12, 1959 * 12)
    assert (one["start"], one["end"], one["rows"], one["missing"]) == ("1949-01", "1958-12", 120, 0)
    assert os.listdir(here / "d" / "m") == ["model.safetensors"]
    assert sorted(os.listdir(here)) == ["d", "m.csv"]  # no picture that nobody asked for
    assert run("forecast", "d/m", "m.csv", "--json") == 0
    after = json.loads(capsys.readouterr().out)["series"][0]
    assert after["name"] == "sales"
    assert {k: after[k] for k in ("times", "median", "low", "high")} == {
        k: one[k] for k in ("times", "median", "low", "high")
    }
    truth = 100 + 0.5 * np.arange(120, 132) + 20 * np.sin(2 * np.pi * np.arange(120, 132) / 12)
    assert np.abs(np.array(one["median"]) - truth).mean() < 5
    assert (np.array(one["low"]) <= one["median"]).all()
    assert (np.array(one["median"]) <= one["high"]).all()


def test_train_forecast_is_train_series(here: Any, capsys: Any) -> None:
    """The command's name is ``train forecast``; the first one is kept."""
    figures = []
    for name in ("forecast", "series"):
        assert run("train", name, "m.csv", "--save", name, "--json", *SMALL) == 0
        figures.append(json.loads(capsys.readouterr().out) | {"seconds": 0})
    assert figures[0] == figures[1]
    files = [(here / name / "model.safetensors").read_bytes() for name in ("forecast", "series")]
    assert files[0] == files[1]
    assert run("forecast", "forecast", "m.csv", "--json") == 0


def test_newest_first_forecasts_what_comes_next(here: Any) -> None:
    columns = {"month": months(300)[::-1], "v": np.arange(300)[::-1]}
    write(here / "r.csv", columns)
    figures = series.train_series(here / "r.csv", QUICK, report=quiet)
    (one,) = figures["series"]
    assert one["times"][0] == "1974-01"
    assert one["median"] == pytest.approx(range(300, 306), abs=2)


def test_out_and_plot(here: Any, capsys: Any) -> None:
    pytest.importorskip(
        "matplotlib", reason="matplotlib is not installed: pip install 'ostinato[data]'"
    )
    assert (
        run("train", "series", "m.csv", "--save", "m", "--plot", "p.png", "--horizon", "3", *SMALL)
        == 0
    )
    assert (here / "p.png").read_bytes().startswith(b"\x89PNG")
    capsys.readouterr()
    assert run("forecast", "m", "m.csv") == 0
    table = capsys.readouterr().out
    assert table.splitlines()[0] == "series,time,median,low,high"
    assert [row.split(",")[:2] for row in table.splitlines()[1:]] == [
        ["sales", t] for t in months(3, 1959 * 12)
    ]
    assert run("forecast", "m", "m.csv", "--out", "f.csv", "--plot", "q.png") == 0
    assert capsys.readouterr().out == ""
    assert (here / "f.csv").read_text() == table
    assert (here / "q.png").read_bytes().startswith(b"\x89PNG")
    assert run("forecast", "m", "m.csv", "--out", "f.json") == 0
    assert json.loads((here / "f.json").read_text())["series"][0]["times"] == months(3, 1959 * 12)


MISTAKES: dict[str, tuple[list[str], str]] = {
    "model": (["train", "series", "m.csv", "--save", "old"], "--overwrite"),
    "picture": (["train", "series", "m.csv", "--plot", "old.png", "--save", "new"], "--overwrite"),
    "picture's folder": (
        ["train", "series", "m.csv", "--plot", "no/p.png", "--save", "new"],
        "--plot: expected a folder at",
    ),
    "picture's name": (
        ["train", "series", "m.csv", "--plot", "p.csv"],
        "--plot: expected a name that ends in .png",
    ),
    "out": (["forecast", "old", "m.csv", "--out", "old.csv"], "--overwrite"),
    "out's name": (
        ["forecast", "old", "m.csv", "--out", "f.txt"],
        "--out: expected a name that ends in .csv or .json",
    ),
    "no file": (
        ["train", "series", "nothing.csv", "--save", "new"],
        "FILE: expected a file, found none at nothing.csv",
    ),
    "words": (
        ["train", "series", "words.csv", "--save", "new"],
        "FILE: expected a column of numbers",
    ),
    "short": (["train", "series", "short.csv", "--time", "", "--save", "new"], "expected at least"),
    "horizon": (
        ["train", "series", "m.csv", "--horizon", "0", "--save", "new"],
        "--horizon: expected a whole number of at least 1, got 0",
    ),
    "long horizon": (
        ["train", "series", "m.csv", "--horizon", "90", "--save", "new", *SMALL],
        "expected at least",
    ),
    "season": (
        ["train", "series", "m.csv", "--season", "0", "--save", "new"],
        "--season: expected a whole number of at least 1",
    ),
    "long season": (
        ["train", "series", "m.csv", "--season", "80", "--save", "new", *SMALL],
        "two seasons of 80",
    ),
    "epochs": (
        ["train", "series", "m.csv", "--epochs", "0"],
        "--epochs: expected a whole number of at least 1, got 0",
    ),
    "cell": (
        ["train", "series", "m.csv", "--cell", "tcn"],
        "argument --cell: invalid choice: 'tcn'",
    ),
    "no model": (["forecast", "empty", "m.csv"], "DIR: expected a folder with model.safetensors"),
    "foreign": (["forecast", "foreign", "m.csv"], "DIR: expected a model for series"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_one_line_and_leave_nothing(name: str, here: Any, capsys: Any) -> None:
    (here / "words.csv").write_text("a\nx\ny\n")
    (here / "short.csv").write_text("a\n1\n5\n3\n")
    for folder, content in (
        ("old", b"a model"),
        ("foreign", b"\x02\0\0\0\0\0\0\0{}"),
        ("empty", None),
    ):
        (here / folder).mkdir()
        if content is not None:
            (here / folder / "model.safetensors").write_bytes(content)
    for file in ("old.png", "old.csv"):
        (here / file).write_bytes(b"mine")
    before = sorted(os.listdir(here))
    args, message = MISTAKES[name]
    try:
        status = run(*args)
    except SystemExit as e:  # argparse's own
        status = int(e.code or 0)
    assert status == 2
    err = capsys.readouterr().err
    assert message in err
    assert "Traceback" not in err
    assert sorted(os.listdir(here)) == before
    assert (here / "old" / "model.safetensors").read_bytes() == b"a model"
    assert (here / "old.png").read_bytes() == (here / "old.csv").read_bytes() == b"mine"


def test_overwrite(here: Any) -> None:
    pytest.importorskip(
        "matplotlib", reason="matplotlib is not installed: pip install 'ostinato[data]'"
    )
    train = ["train", "series", "m.csv", "--save", "m", "--plot", "p.png", *SMALL]
    assert run(*train) == 0
    assert run(*train) == 2
    (here / "p.png").write_bytes(b"")
    assert run(*train, "--overwrite") == 0
    assert (here / "p.png").read_bytes().startswith(b"\x89PNG")
    assert run("forecast", "m", "m.csv", "--out", "f.csv") == 0
    assert run("forecast", "m", "m.csv", "--out", "f.csv") == 2
    assert run("forecast", "m", "m.csv", "--out", "f.csv", "--overwrite") == 0


def test_another_step_is_refused(here: Any, capsys: Any) -> None:
    assert run("train", "series", "m.csv", "--save", "m", *SMALL) == 0
    days = np.datetime64("2020-01-01") + np.arange(120).astype("timedelta64[D]")
    write(here / "days.csv", {"month": days, "sales": seasonal()})
    assert run("forecast", "m", "days.csv") == 2
    assert "expected steps of 1 month, as in the training, got 1 day" in capsys.readouterr().err


def test_one_model_of_several_series(here: Any, capsys: Any) -> None:
    stacked = {
        "month": months(96) * 2,
        "shop": ["north"] * 96 + ["south"] * 96,
        "v": np.concatenate([seasonal(96, 1), 5 * seasonal(96, 2)]).round(3),
    }
    write(here / "s.csv", stacked)
    assert run("train", "series", "s.csv", *SMALL) == 2
    assert "--series shop" in capsys.readouterr().err
    assert (
        run("train", "series", "s.csv", "--series", "shop", "--save", "m", "--horizon", "4", *SMALL)
        == 0
    )
    capsys.readouterr()
    assert run("forecast", "m", "s.csv", "--json") == 0
    north, south = json.loads(capsys.readouterr().out)["series"]
    assert (north["name"], south["name"]) == ("north", "south")
    assert north["times"] == south["times"] == months(4, 1957 * 12)
    assert np.mean(south["median"]) == pytest.approx(5 * np.mean(north["median"]), rel=0.1)
    write(here / "w.csv", {"month": months(96), "a": stacked["v"][:96], "b": stacked["v"][96:]})
    figures = series.train_series(here / "w.csv", QUICK, column=("a", "b"), report=quiet)
    assert [s["name"] for s in figures["series"]] == ["a", "b"]
    assert figures["column"] == ["a", "b"]


def test_inputs_that_are_known_ahead(here: Any, capsys: Any) -> None:
    rng = np.random.default_rng(3)
    promo, rain = rng.integers(0, 2, 132), rng.normal(size=132).round(3)
    values = [f"{v:.3f}" for v in seasonal(120) + 30 * promo[:120]]
    known = {"month": months(132), "v": values + [""] * 12, "promo": promo, "rain": rain}
    write(here / "k.csv", known)
    options = ["--known", "promo", "--observed", "rain", "--horizon", "12", *SMALL]
    assert run("train", "series", "k.csv", "--save", "m", "--json", *options) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["series"][0]["times"] == months(12, 1959 * 12)
    assert run("forecast", "m", "k.csv", "--json") == 0
    assert (
        json.loads(capsys.readouterr().out)["series"][0]["median"] == figures["series"][0]["median"]
    )
    write(here / "short.csv", {name: list(column)[:125] for name, column in known.items()})
    assert run("forecast", "m", "short.csv") == 2
    assert (
        "FILE: expected 12 rows with promo after the last value of v, to 1959-12, got 5"
        in capsys.readouterr().err
    )


def test_rows_without_time(here: Any) -> None:
    write(here / "n.csv", {"v": seasonal()})
    lines: list[str] = []
    figures = series.train_series(here / "n.csv", QUICK, season=12, report=lines.append)
    assert sum("order of the rows" in line for line in lines) == 1
    assert "season   12: given" in lines
    assert (figures["step"], figures["series"][0]["times"]) == (
        None,
        [str(k) for k in range(121, 127)],
    )


def test_a_shorter_file_with_the_same_end(here: Any, capsys: Any) -> None:
    """What came long before the end changes little.

    Where a file begins in the season changes nothing.
    """
    assert run("train", "series", "m.csv", "--save", "m", "--horizon", "6", *SMALL) == 0
    lines = (here / "m.csv").read_text().splitlines(keepends=True)
    (here / "later.csv").write_text("".join(lines[:1] + lines[30:]))
    capsys.readouterr()
    medians = []
    for file in ("m.csv", "later.csv"):
        assert run("forecast", "m", file, "--json") == 0
        medians.append(json.loads(capsys.readouterr().out)["series"][0]["median"])
    assert medians[1] == pytest.approx(medians[0], rel=0.05)


def test_the_command_line_itself(here: Any) -> None:
    command = [sys.executable, "-m", "ostinato", "train", "series", "m.csv", "--json", *SMALL]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=here)
    assert json.loads(done.stdout)["season"] == 12
    assert "season" in done.stderr


DAMAGES: dict[str, Any] = {
    "no reader": lambda facts: facts.pop("reader"),
    "no options": lambda facts: facts["reader"].pop("options"),
    "an unknown option": lambda facts: facts["reader"]["options"].update(flavour="sweet"),
    "an option of another kind": lambda facts: facts["reader"]["options"].update(column=[3]),
    "a mark": lambda facts: facts["reader"]["marks"].update(decimal="x"),
    "a step": lambda facts: facts["reader"]["step"].update(count=0),
    "a unit": lambda facts: facts["reader"]["step"].update(unit="moon"),
    "no model": lambda facts: facts.update(model=[]),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_model_is_one_line(name: str, here: Any, capsys: Any) -> None:
    assert run("train", "series", "m.csv", "--save", "m", *SMALL) == 0
    path = here / "m" / "model.safetensors"
    tensors, metadata = safetensors.load(path)
    facts = json.loads(metadata["ostinato"])
    DAMAGES[name](facts)
    safetensors.save(path, tensors, {"ostinato": json.dumps(facts)})
    capsys.readouterr()
    assert run("forecast", "m", "m.csv") == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines()[-1].startswith("ostinato: DIR: expected a model")


def test_the_median_need_not_be_the_middle_quantile(tmp_path: Any) -> None:
    import polars as pl

    frame = pl.DataFrame({"month": months(120), "sales": seasonal()})
    options = ForecastOptions(horizon=6, epochs=1, members=1, quantiles=(0.5, 0.7, 0.9))
    trained = series.train_series(frame, options, season=12, save=tmp_path / "m", report=quiet)
    (one,) = trained["series"]
    (later,) = series.forecast(tmp_path / "m", frame)["series"]
    assert one["median"] == one["low"] == later["median"] == later["low"]
    assert later["low"] != later["high"]


def test_csv_has_the_numbers_of_json() -> None:
    values = [1e10 + 0.125, 1e10 + 0.25, 0.1, 1e-300]
    names = ("median", "low", "high")
    one = {"name": "v", "times": ["0", "1", "2", "3"], **dict.fromkeys(names, values)}
    rows = [row.split(",") for row in series.as_csv({"series": [one]}).splitlines()[1:]]
    assert [[float(v) for v in row[2:]] for row in rows] == [[v] * 3 for v in values]
    assert rows[0][2] == "10000000000.125"


@pytest.mark.parametrize("fill", ["linear", "previous"])
def test_filled_rows_are_no_truth_and_see_nothing_after_an_origin(fill: str) -> None:
    import polars as pl

    t = np.arange(200)
    values = 10.0 * (t // 4)
    for origin in (184, 188, 192, 196):
        values[origin - 2 : origin] = np.nan
    frame = pl.DataFrame({"t": t, "v": values, "seen": values + 1})
    options = ForecastOptions(horizon=4, epochs=1, members=1)
    given: dict[str, Any] = {"season": 1, "report": quiet, "column": "v", "fill": fill}
    assert series.train_series(frame, options, **given)["naive_mae"] == 10
    given["observed"] = "seen"
    first = series.train_series(frame, options, **given)
    # What lies behind the last origin changes no forecast from it, though gaps end there.
    later = frame.with_columns(pl.when(pl.col("t") < 196).then("seen").otherwise(1e6).alias("seen"))
    again = series.train_series(later, options, **given)
    assert [first[k] for k in ("mae", "coverage")] == [again[k] for k in ("mae", "coverage")]
