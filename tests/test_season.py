"""The season of a series is found, and none is claimed where there is none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ostinato.tasks.season import find_season

PERIODS = (7, 12, 24, 48, 52, 96, 168, 336)
SHAPES = ("sine", "sawtooth", "pulses")


def wave(shape: str, rows: int, period: int, phase: int) -> Any:
    """A season between -1 and 1."""
    place = ((np.arange(rows) + phase) / period) % 1
    if shape == "sine":
        return np.sin(2 * np.pi * place)
    if shape == "sawtooth":
        return 2 * place - 1
    return np.where(place < 0.25, 1.0, -1.0)


def right(shape: str, period: int, tries: int, noise: float = 0.5) -> int:
    """How often the period is found in six of it with noise of a share of the amplitude."""
    count = 0
    for seed in range(tries):
        r = np.random.default_rng(1000 * seed + period)
        values = wave(shape, 6 * period, period, int(r.integers(period)))
        values = values + noise * r.normal(size=len(values))
        count += find_season(values).period == period
    return count


def claimed(kind: str, rows: int, tries: int) -> int:
    """How often a season is claimed where there is none."""
    count = 0
    for seed in range(tries):
        values = np.random.default_rng(77 * rows + seed).normal(size=rows)
        values = values.cumsum() if kind == "walk" else values
        count += find_season(values).period != 1
    return count


@pytest.mark.parametrize("period", PERIODS)
def test_a_noisy_season_is_found(period: int) -> None:
    assert right("sine", period, 5) >= 4


@pytest.mark.parametrize("shape", SHAPES)
def test_other_shapes(shape: str) -> None:
    assert right(shape, 24, 5) == 5


@pytest.mark.parametrize("period", [24, 48, 96, 168])
def test_little_noise_is_no_harm(period: int) -> None:
    """Seasons that were missed or became 155 to 158 when differences were looked at."""
    assert right("sine", period, 4, 0.02) == 4


@pytest.mark.parametrize("kind", ["white", "walk"])
@pytest.mark.parametrize("rows", [50, 200, 1000])
def test_none_is_claimed_on_noise(kind: str, rows: int) -> None:
    assert claimed(kind, rows, 8) <= 1


TRENDED = (7.0, 12.0, 24.0, 48.0, 365.25 / 7, 96.0, 168.0, 336.0, 365.25)
CALENDARS: dict[float, tuple[float | None, str | None]] = {
    7.0: (None, "day"),
    12.0: (None, "month"),
    24.0: (None, "hour"),
    48.0: (1800.0, None),
    365.25 / 7: (None, "week"),
    96.0: (900.0, None),
    168.0: (None, "hour"),
    336.0: (1800.0, None),
    365.25: (None, "day"),
}


def others(seed: int) -> tuple[int, int]:
    """A season of any period, shape, length, trend and noise: what is right and what is found."""
    r = np.random.default_rng(seed)
    period = float(r.choice(TRENDED))
    rows = max(int(min(r.uniform(4, 30) * period, 6000)), 30)
    t = np.arange(rows)
    place = t / period + r.uniform()
    values = np.sin(2 * np.pi * place)
    shape = r.integers(3)
    if shape == 1:
        values = values + 0.4 * np.sin(4 * np.pi * place + r.uniform(0, 6))
    if shape == 2:
        values = 2 * (place % 1) - 1
    values = values + r.uniform(0.05, 0.5) * r.normal(size=rows)
    values = values + r.choice([0.0, 2.0, 8.0]) * t / rows + r.choice([0.0, 4.0]) * (t / rows) ** 2
    seconds, calendar = CALENDARS[period] if r.random() < 0.5 else (None, None)
    return round(period), find_season(values, seconds, calendar).period


def wrong(first: int, tries: int) -> list[tuple[int, int, int]]:
    """The seeds with multiples and divisors of a season in its place, or anything else."""
    found = ((seed, *others(seed)) for seed in range(first, first + tries))
    return [f for f in found if f[1] != f[2]]


@pytest.mark.parametrize("calendar", [None, "month"])
def test_no_multiple_is_claimed_by_chance(calendar: str | None) -> None:
    """Seeds 0 and 12 gave 24 and 36, whose harmonics stood out a little of so little noise."""
    t = np.arange(120)
    for seed in range(20):
        noise = np.random.default_rng(seed).normal(size=120)
        values = 100 + 0.5 * t + 20 * np.sin(2 * np.pi * t / 12) + noise
        assert find_season(values, calendar=calendar).period == 12


@pytest.mark.parametrize("period", [7, 12, 24, 52])
@pytest.mark.parametrize("error", [0.0, 1e-15, 1e-9])
def test_rounding_decides_nothing(period: int, error: float) -> None:
    """An exact season is explained by its multiples as well, up to the last bits."""
    t = np.arange(9 * period + 5)
    for seed in range(5):
        r = np.random.default_rng(seed)
        values = np.sin(2 * np.pi * (t + r.integers(period)) / period) + r.integers(3) * t / 100
        assert find_season(values + error * r.normal(size=len(t))).period == period


def test_neither_multiples_nor_divisors() -> None:
    assert len(wrong(0, 12)) <= 1


@pytest.mark.soak
def test_neither_multiples_nor_divisors_in_nineteen_of_twenty() -> None:
    assert len(wrong(1000, 200)) <= 10


@pytest.mark.soak
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("period", PERIODS)
def test_nineteen_of_twenty(shape: str, period: int) -> None:
    assert right(shape, period, 20) >= 19


@pytest.mark.soak
@pytest.mark.parametrize("kind", ["white", "walk"])
@pytest.mark.parametrize("rows", [50, 100, 200, 500, 1000, 2000])
def test_none_in_nineteen_of_twenty(kind: str, rows: int) -> None:
    assert claimed(kind, rows, 40) <= 2


def test_the_calendar_names_the_season_and_is_preferred() -> None:
    t = np.arange(52 * 30)
    values = np.sin(2 * np.pi * t / 52.18) + t / 400
    values = values + 0.2 * np.random.default_rng(0).normal(size=len(t))
    found = find_season(values, calendar="week")
    assert found.period == 52
    assert "a year of weeks" in found.why
    hours = np.arange(24 * 40)
    assert find_season(np.sin(2 * np.pi * hours / 24), 3600.0).why.startswith("24 (a day of hours)")


def test_a_week_of_days_that_differ_is_the_season() -> None:
    r = np.random.default_rng(0)
    day = np.sin(2 * np.pi * np.arange(48) / 48)
    week = np.concatenate([day * (2.0 if d < 5 else 0.7) + (d < 5) for d in range(7)])
    values = np.tile(week, 10) + 0.1 * r.normal(size=3360)
    assert find_season(values, 1800.0).period == 336


def test_missing_values_do_not_hide_it() -> None:
    r = np.random.default_rng(0)
    values = np.sin(2 * np.pi * np.arange(240) / 12) + 0.2 * r.normal(size=240)
    values[r.random(240) < 0.2] = np.nan
    values[100:120] = np.nan
    assert find_season(values).period == 12


@pytest.mark.parametrize("scale", [1e308, 1e-300, -1.0])
def test_any_scale(scale: float) -> None:
    values = np.sin(2 * np.pi * np.arange(240) / 12) * scale
    assert find_season(values).period == 12


def test_what_has_none() -> None:
    for values in (np.full(100, 3.0), np.full(100, np.nan), np.arange(4.0), np.arange(100.0)):
        found = find_season(values)
        assert found.period == 1
        assert found.why.startswith("none")


def test_packaged_series() -> None:
    """Carbon dioxide by the week was 53."""
    sm = pytest.importorskip("statsmodels.api")
    co2 = sm.datasets.co2.load_pandas().data["co2"].to_numpy(float)
    assert find_season(co2, calendar="week").period == 52
    assert find_season(co2).period == 52
    path = Path(sm.datasets.__file__).parent / "elec_equip" / "elec_equip.csv"
    equipment = np.loadtxt(path, delimiter=",", skiprows=1, usecols=-1)
    for rows in (len(equipment), len(equipment) - 48):  # its quarters are strong: 3
        assert find_season(equipment[:rows], calendar="month").period == 12
    sunspots = sm.datasets.sunspots.load_pandas().data["SUNACTIVITY"].to_numpy(float)
    assert find_season(sunspots, calendar="year").period == 11


def test_errors() -> None:
    with pytest.raises(ValueError, match="values: expected finite numbers"):
        find_season(np.array([1.0, np.inf]))
    with pytest.raises(TypeError, match="values: expected numbers"):
        find_season(np.array(["a", "b"]))
    with pytest.raises(ValueError, match="calendar: expected one of"):
        find_season(np.zeros(100), calendar="fortnight")
    with pytest.raises(ValueError, match="step_seconds: expected a number above 0"):
        find_season(np.zeros(100), step_seconds=0.0)
