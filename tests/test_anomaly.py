"""``train anomaly``: places of a series that a network did not expect."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("polars", reason="Polars is not installed: pip install 'ostinato[data]'")
from ostinato import metrics, safetensors
from ostinato.__main__ import main
from ostinato.tasks import anomaly
from ostinato.tasks._surprise import (
    Detector,
    DetectorOptions,
    Place,
    moving_mean,
    moving_zscore,
    places,
)

SMALL = ["--steps", "150", "--hidden", "12", "--window", "50", "--smooth", "5"]
QUICK = DetectorOptions(steps=150, hidden=12, window=50, smooth=5)


def wave(n: int = 1600, seed: int = 0) -> Any:
    t = np.arange(n)
    noise = np.random.default_rng(seed).normal(size=n)
    return 20 + 5 * np.sin(t / 6) + 2 * np.sin(t / 17) + 0.05 * noise


def with_anomaly(n: int = 1600) -> tuple[Any, Any]:
    """Return a wave that shakes for 8 rows, within the values that it has, and the labels."""
    values, label = wave(n), np.zeros(n, int)
    values[1200:1208] += np.tile([2.0, -2.0], 4)
    label[1200:1208] = 1
    return values, label


def write(path: Path, **columns: Any) -> None:
    rows = zip(*columns.values())
    path.write_text("\n".join(",".join(map(str, row)) for row in (columns, *rows)) + "\n")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    values, label = with_anomaly()
    write(tmp_path / "w.csv", v=values.round(4), bad=label)
    write(tmp_path / "new.csv", v=values[800:].round(4))
    return tmp_path


def test_the_anomaly_is_ranked_first() -> None:
    values, label = with_anomaly()
    detector = Detector(QUICK).fit(values[:800])
    score = detector.score(values[800:], before=values[:800])
    found = places(score, 3, 5)
    assert found[0].begin < 408
    assert found[0].end > 400
    assert found[0].score > 3 * found[1].score
    series = anomaly.Labelled(values[800:], label[800:] == 1, [], {})
    figures = anomaly.compared(score, series, values[:800], QUICK)
    assert figures["rank"] == 1
    assert figures["average_precision"] > 0.7
    assert figures["average_precision"] > figures["zscore_average_precision"] + 0.3


def test_normal_rows_score_below_one_and_beginnings_have_no_score() -> None:
    values = wave()
    detector = Detector(QUICK).fit(values[:800])
    alone = detector.score(values[800:])
    assert (alone[:25] == 0).all()
    assert np.median(alone[25:]) < 0.6
    behind = detector.score(values[800:], before=values[:800])
    assert (behind > 0).all()
    assert behind[300:] == pytest.approx(alone[300:], rel=1e-3)


def test_labelled_rows_are_not_trained_on() -> None:
    values = wave(900)
    spoilt = values.copy()
    spoilt[300:310] = 500.0
    normal = np.ones(900, bool)
    normal[300:310] = False
    detector = Detector(QUICK).fit(spoilt, normal)
    assert detector.mean == pytest.approx(values[normal].mean())
    assert detector.score(wave(1200)[900:], before=values).max() < 3
    with pytest.raises(ValueError, match="windows of 50 rows that are all normal, got none"):
        Detector(QUICK).fit(values, np.arange(900) % 40 > 0)


@pytest.mark.parametrize(("bump", "at"), [(3.0, 1400), (-3.0, 1400), (30.0, 1195)])
def test_labelled_rows_do_not_change_the_score_of_one(bump: float, at: int) -> None:
    """Neither themselves, nor by the mean of scores, nor by what is predicted from them."""
    noise = np.random.default_rng(0).normal(size=1900)
    values = np.sin(np.arange(1900) / 9) + 0.05 * noise
    values[1700:1705] += 1
    spoilt, normal = values[:1500].copy(), np.ones(1500, bool)
    spoilt[at : at + 5] += bump
    normal[at : at + 5] = False
    options = DetectorOptions(steps=60, hidden=8, window=40, smooth=10)
    plain, labelled = Detector(options).fit(values[:1500]), Detector(options).fit(spoilt, normal)
    assert labelled.limit == pytest.approx(plain.limit, rel=0.5)
    assert labelled.score(values[1500:], before=spoilt).max() > 3


def test_which_rows_the_score_of_one_is_measured_on() -> None:
    detector = Detector(DetectorOptions(horizon=2, window=20))  # 10 rows without a score
    normal = np.ones(60, bool)
    normal[[3, 40]] = False
    rows = np.flatnonzero(detector._counting(normal, 30)).tolist()
    assert rows == [*range(14, 40), *range(51, 60)]
    normal[48] = False  # so that a single row is left, and with the horizon alone many
    rows = np.flatnonzero(detector._counting(normal, 40)).tolist()
    assert rows == [*range(10, 40), *range(43, 48), *range(51, 60)]
    normal = np.arange(60) % 3 > 0
    rows = np.flatnonzero(detector._counting(normal, 40)).tolist()
    assert rows == [k for k in range(10, 60) if k % 3]


def test_the_first_rows_that_have_a_score_are_averaged_alone() -> None:
    detector = Detector(QUICK).fit(wave()[:800])
    values = wave()[800:1100].copy()
    values[27:31] += 3
    score = detector.score(values)
    assert (score[:25] == 0).all()
    behind = detector.score(values[25:], before=values[:25])
    np.testing.assert_allclose(score[25:], behind, rtol=1e-6)
    some = detector.score(values[10:], before=values[:10])
    np.testing.assert_allclose(some, score[10:], rtol=1e-6)


def test_written_numbers_are_read_as_they_were(tmp_path: Path) -> None:
    values = np.array([0.1, 3.0, 1 / 3, 123456789.12345678, 5e-324, 1e300])
    anomaly._save(anomaly.Labelled(values, None, list("abcdef"), {}), values / 7, tmp_path / "s")
    rows = list(csv.DictReader((tmp_path / "s").read_text().splitlines()))
    assert [float(row["value"]) for row in rows] == values.tolist()
    assert [float(row["score"]) for row in rows] == (values / 7).tolist()
    assert [row["value"] for row in rows[:2]] == ["0.1", "3"]


def test_moving_zscore_and_mean() -> None:
    values = np.random.default_rng(0).normal(size=50)
    z = moving_zscore(values, 10)
    for t in range(10, 50):
        part = values[t - 10 : t]
        assert z[t] == pytest.approx(abs(values[t] - part.mean()) / part.std())
    assert (moving_zscore(np.ones(30), 5) == 0).all()
    flat = np.append(np.full(30, 0.1), 0.2)  # whose standard deviation is 1e-17
    assert (moving_zscore(flat, 7) == 0).all()
    assert (moving_zscore(values[:5], 10) == 0).all()
    large = np.append([1e20], np.ones(9))  # which the sums of later rows do not hold
    assert (moving_mean(large, 3)[2:] == 1).all()
    assert moving_mean(values[:0], 3).shape == (0,)
    assert moving_mean(values[:0], 3, values[:0] > 0).shape == (0,)
    counts = np.array([False, False, True, True, False])
    assert moving_mean(np.array([9.0, 9, 1, 3, 9]), 3, counts).tolist() == [0, 1, 2, 2, 3]
    for width in (1, 4, 5):
        mean = moving_mean(values, width)
        for t in (0, 1, 20, 49):
            part = values[max(t - (width - 1) // 2, 0) : t + width // 2 + 1]
            assert mean[t] == pytest.approx(part.mean())


def test_what_is_worth_saying_is_said(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Rows that are left out change which row a number is."""
    values, label = with_anomaly()
    cells = ["", "", *values.round(4), ""]
    write(here / "late.csv", v=cells, bad=[0, 0, *label, 0])
    notes = [
        "2 rows before the first value of v left out",
        "1 rows after the last value of v left out",
    ]
    commands = [
        ["train", "anomaly", "late.csv", "--column", "v", "--label", "bad", "--fill", "linear"],
        ["predict", "m", "late.csv"],
        ["evaluate", "m", "late.csv"],
    ]
    commands[0] += ["--save", "m", *SMALL[:1], "2", *SMALL[2:]]
    for command in commands:
        assert main([*command, "--json"]) == 0
        shown = capsys.readouterr()
        assert json.loads(shown.out)["notes"] == notes
        assert [shown.err.count(note) for note in notes] == [1, 1]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("v\n1\nx\n2\n", "mend the cell"),
        ('v\n"1,003"\n5\n', "write the numbers as 1234.5"),
        ("1\n2\n", "write names into the first line"),
        ("v,w\n1,2\n3\n4,5\n", "mend the line"),
    ],
)
def test_errors_name_options_of_the_command(
    text: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.csv").write_text(text)
    assert main(["train", "anomaly", str(tmp_path / "a.csv")]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert "--" not in error


def test_places() -> None:
    score = np.array([0, 5, 9, 5, 4, 0, 0, 0, 6, 2, 0, 1.0])
    assert places(score, 9, 1) == [Place(2, 1, 4, 9.0), Place(8, 8, 9, 6.0), Place(11, 11, 12, 1.0)]
    assert places(score, 9, 5) == [Place(2, 1, 4, 9.0), Place(11, 11, 12, 1.0)]
    assert len(places(score, 1, 1)) == 1
    assert places(np.zeros(4), 3, 1) == []


def kdd() -> tuple[Any, Any]:
    try:
        paths, options = anomaly._paths((), anomaly.AnomalyOptions())
    except ImportError as error:
        pytest.skip(str(error))
    own, test = anomaly._parts(paths, options)
    return own, test


def test_the_anomaly_of_kdd_tsad_135() -> None:
    own, test = kdd()
    assert (len(own.values), len(test.values), int(test.label.sum())) == (1200, 7501, 12)
    options = DetectorOptions(steps=300)
    score = Detector(options).fit(own.values).score(test.values)
    figures = anomaly.compared(score, test, None, options)
    assert figures["rank"] == 1
    assert figures["average_precision"] > 0.3
    assert figures["zscore_average_precision"] < 0.05


def test_commands(here: Path, capsys: Any) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    train = ["train", "anomaly", "w.csv", "--column", "v", "--label", "bad", "--save", "m"]
    assert main([*train, "--plot", "p.png", "--json", *SMALL]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert (figures["task"], figures["rows"], figures["rank"]) == ("anomaly", 800, 1)
    first = figures["places"][0]
    assert first["rank"] == 1
    assert 1195 <= int(first["time"]) < 1212
    assert (here / "p.png").read_bytes().startswith(b"\x89PNG")
    # A file without the labels.
    assert main(["predict", "m", "new.csv", "--json", "--out", "s.csv", "--plot", "q.png"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert abs(found["places"][0]["row"] - first["row"]) <= 2
    assert "rank" not in found
    rows = list(csv.DictReader((here / "s.csv").read_text().splitlines()))
    assert len(rows) == 800
    best = max(range(800), key=lambda k: float(rows[k]["score"]))
    assert best == found["places"][0]["row"]
    assert main(["evaluate", "m", "w.csv", "--json"]) == 0
    evaluated = json.loads(capsys.readouterr().out)
    assert (evaluated["rank"], evaluated["anomalous_rows"]) == (1, 8)
    # A saved model scores the same, and so does the same training.
    detector, facts = Detector.load("m")
    series = anomaly.read("w.csv", like=facts["reading"], label="bad")
    score = detector.score(series.values)
    assert metrics.average_precision(series.label, score) == evaluated["average_precision"]
    assert main([*train[:-2], "--json", *SMALL]) == 0
    assert json.loads(capsys.readouterr().out) == figures


def test_two_files_and_a_compressed_one(here: Path, capsys: Any) -> None:
    values, _ = with_anomaly()
    text = "v\n" + "\n".join(f"{v:.4f}" for v in values[:800]) + "\n"
    (here / "normal.csv.gz").write_bytes(gzip.compress(text.encode()))
    assert main(["train", "anomaly", "normal.csv.gz", "new.csv", "--json", *SMALL]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["rows"] == 800
    assert 395 <= found["places"][0]["row"] < 412


def test_arrays_that_cannot_be_used() -> None:
    detector = Detector(QUICK)
    with pytest.raises(RuntimeError, match="call fit first"):
        detector.score(wave())
    with pytest.raises(ValueError, match="values: expected finite numbers, got nan in row 3"):
        detector.fit(np.array([1.0, 2.0, 3.0, np.nan] * 200))
    with pytest.raises(
        ValueError, match=r"values: expected at least \d+ rows to train on .* got 9"
    ):
        detector.fit(np.arange(9.0))
    with pytest.raises(ValueError, match="values: expected rows that vary, got 3 in all"):
        detector.fit(np.full(900, 3.0))
    rows = np.where(np.arange(900) % 90 < 45, 0.1, 5.0)
    with pytest.raises(ValueError, match="values: expected normal rows that vary, got none"):
        detector.fit(rows, rows == 0.1)
    with pytest.raises(TypeError, match="values: expected real numbers"):
        detector.fit(np.ones(900, complex))
    with pytest.raises(ValueError, match="horizon: expected at most 64, got 65"):
        Detector(DetectorOptions(horizon=65))
    detector.fit(wave(400))
    with pytest.raises(ValueError, match="values: expected at least one row"):
        detector.score(np.zeros(0))
    with pytest.raises(ValueError, match="before: expected finite numbers, got inf in row 0"):
        detector.score(wave(), before=np.array([np.inf]))


BAD: dict[str, tuple[list[str], str]] = {
    "constant": (["train", "anomaly", "flat.csv", "--column", "v"], "expected rows that vary, got"),
    "short": (["train", "anomaly", "short.csv"], "rows to train on (--window 50)"),
    "missing": (["train", "anomaly", "gap.csv"], "--fill"),
    "text": (["train", "anomaly", "text.csv", "--column", "v"], "expected numbers, got 'high'"),
    "labels": (
        ["train", "anomaly", "odd.csv", "--column", "v", "--label", "bad"],
        "--label: expected a column of 0 and 1",
    ),
    "column": (["train", "anomaly", "w.csv", "--column", "x"], "expected one of v, bad, got 'x'"),
    "three files": (["train", "anomaly", "w.csv", "w.csv", "w.csv"], "got 3"),
    "a column without a file": (
        ["train", "anomaly", "--column", "v"],
        "expected none without FILE",
    ),
    "no file": (["train", "anomaly", "none.csv"], "none.csv"),
    "gzip": (["train", "anomaly", "bad.csv.gz"], "expected a file that gzip reads"),
    "horizon": (["train", "anomaly", "w.csv", "--column", "v", "--horizon", "99"], "at most 64"),
    "no label": (["evaluate", "plain", "w.csv"], "trained with --label, got one without"),
    "nothing anomalous": (["evaluate", "m", "calm.csv"], "expected rows that are labelled"),
    "no data": (["evaluate", "m"], "expected one file with labels, got 0"),
    "no input": (["predict", "m"], "INPUT: expected one CSV or Parquet file, got 0"),
    "other columns": (
        ["predict", "m", "short.csv"],
        "expected a column 'v', as in the training, got w",
    ),
    "out": (
        ["predict", "m", "w.csv", "--out", "s.txt"],
        "--out: expected a name that ends in .csv",
    ),
    "damaged": (["predict", "damaged", "w.csv"], "damaged"),
    "promises": (["predict", "large", "w.csv"], "whose parameters fit its options"),
    "scales": (["predict", "scales", "w.csv"], "usable options and scales"),
    "reading": (["predict", "reading", "w.csv"], "says how its table was read"),
}


@pytest.fixture(scope="module")
def bad(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bad")
    values, label = with_anomaly()
    write(folder / "w.csv", v=values.round(4), bad=label)
    write(folder / "calm.csv", v=values.round(4), bad=0 * label)
    write(folder / "odd.csv", v=values.round(4), bad=2 * label)
    write(folder / "flat.csv", v=[3] * 800 + [4] * 800, w=range(1600))
    write(folder / "short.csv", w=values[:60].round(4))
    cells = [f"{v:.4f}" for v in values]
    (folder / "gap.csv").write_text("v,w\n" + "\n".join([*cells[:9], ",", *cells[9:]]) + "\n")
    write(folder / "gap.csv", v=[*cells[:9], "", *cells[9:]], w=[0] * 1601)
    write(folder / "text.csv", v=[*cells[:9], "high", *cells[9:]], w=range(1601))
    (folder / "bad.csv.gz").write_bytes(gzip.compress(b"v\n1\n2\n")[:-9])
    for name in ("m", "plain", "damaged", "large", "scales", "reading"):
        (folder / name).mkdir()
    detector = Detector(DetectorOptions(steps=2, hidden=4, window=50)).fit(values)
    reading = anomaly.read(folder / "w.csv", column="v", label="bad").facts
    facts = {"reading": reading, "label": "bad", "example": "", "share": 0.5}
    detector.save(folder / "m", facts)
    detector.save(folder / "plain", {**facts, "label": ""})
    detector.save(folder / "reading", {**facts, "reading": None})
    content = (folder / "m" / "model.safetensors").read_bytes()
    (folder / "damaged" / "model.safetensors").write_bytes(content[:-9] + b"x" + content[-8:])
    tensors, text = safetensors.load(folder / "m" / "model.safetensors")
    for name, change in (
        ("large", {"options": {"hidden": 10**9}}),
        ("scales", {"inverse": [[1.0]]}),
    ):
        own = {**json.loads(text["ostinato"]), **change}
        safetensors.save(
            folder / name / "model.safetensors", tensors, {"ostinato": json.dumps(own)}
        )
    return folder


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name: str, bad: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(bad)
    before = sorted(bad.rglob("*"))
    command, words = BAD[name]
    options = [*SMALL, "--save", "fresh"] if command[0] == "train" else []
    assert main([*command, *options]) == 2
    assert words in capsys.readouterr().err
    assert sorted(bad.rglob("*")) == before


def test_without_the_package_the_error_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setitem(anomaly.EXAMPLES, "kdd", ("no-such-package", ("a",), ("", "v", "")))
    assert main(["train", "anomaly"]) == 2
    assert "pip install --no-deps no-such-package" in capsys.readouterr().err


def test_the_model_is_saved_before_rows_are_scored(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(anomaly, "_found", interrupted)
    assert main(["train", "anomaly", "w.csv", "--column", "v", "--save", "m", *SMALL]) == 130
    assert Detector.load("m")[1]["label"] == ""


@pytest.mark.parametrize(("held_out", "rows"), [(0.25, 400), (100, 100), (800, 160)])
def test_rows_that_are_held_out(here: Path, held_out: float, rows: int) -> None:
    own, test = anomaly._parts(["w.csv"], anomaly.AnomalyOptions(column="v", held_out=held_out))
    assert (len(own.values), len(test.values)) == (1600 - rows, rows)


def test_options_that_would_not_count(here: Path, capsys: Any) -> None:
    for given, message in (
        (["w.csv", "--example", "ecg"], "--example: expected none beside FILE, got 'ecg'"),
        (["w.csv", "w.csv", "--share", "0.3"], "--held-out: expected none with a file to train"),
    ):
        assert main(["train", "anomaly", *given]) == 2
        assert message in capsys.readouterr().err
