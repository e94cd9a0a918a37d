"""The examples in short form: each runs, and shows what it is there to show."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


def load(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_simple_rnn_regression(capsys: pytest.CaptureFixture[str]) -> None:
    assert load("simple_rnn_regression").main() < 0.05
    assert "0.1 0.2 0.3 -> 0." in capsys.readouterr().out


def test_adding_problem() -> None:
    """Short: T = 30, where the LSTM needs some hundred steps."""
    module = load("adding_problem")
    errors = module.main(steps=600, length=30)
    assert errors["LSTM"] < 0.25 * module.BASELINE
    assert errors["LSTM"] < errors["tanh RNN"]


def test_sequential_digits() -> None:
    pytest.importorskip(
        "sklearn", reason="scikit-learn is not installed: pip install 'ostinato[test]'"
    )
    assert load("sequential_digits").main(epochs=8) > 0.6


def test_bidirectional_tagger() -> None:
    scores = load("bidirectional_tagger").main(epochs=2, files=25)
    assert scores["both ways"] > scores["forward"] > 0.8


def test_translate(capsys: pytest.CaptureFixture[str]) -> None:
    assert load("translate").main(count=3000, epochs=4) > 0.9
    assert "->   2005-07-19" in capsys.readouterr().out


def test_parse() -> None:
    scores = load("parse").main(count=2000, epochs=6)
    assert scores["tree"] > 0.85
    assert scores["sequence"] < 0.75


def test_all_examples_are_tested() -> None:
    tested = {
        "simple_rnn_regression",
        "adding_problem",
        "sequential_digits",
        "bidirectional_tagger",
        "translate",
        "parse",
    }
    assert {p.stem for p in EXAMPLES.glob("*.py")} == tested
