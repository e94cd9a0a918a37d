"""The command that recognises speech, on tones that spell words, and on Debian's clips."""

from __future__ import annotations

import gzip
import json
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ostinato as ost
from ostinato import audio
from ostinato.cli import main
from ostinato.tasks import _clips, transcribe
from ostinato.tasks._application import load
from ostinato.tasks._recognizer import Augmented, Recognizer, TranscribeOptions

TONES = {"a": 350, "b": 600, "c": 1000, "d": 1600, "e": 2500}
FAST = TranscribeOptions(
    hidden=24, layers=1, epochs=30, batch=4, rate=0.02, dropout=0.0, held_out=0.15
)


def spoken(text: str, rate: int = 8000) -> np.ndarray:
    """Return a tone for each letter, a pause for a space."""
    rng = np.random.default_rng(len(text))
    parts = [np.zeros(rate // 20)]
    for c in text:
        t = np.arange(round(0.12 * rate)) / rate
        tone = np.sin(2 * np.pi * TONES.get(c, 0) * t) * np.hanning(len(t))
        parts += [0.3 * tone, np.zeros(rate // 25)]
    x = np.concatenate(parts)
    return x + 0.001 * rng.normal(size=len(x))


def write(path: Path, x: np.ndarray, *, rate: int = 8000, channels: int = 1) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((np.repeat(x, channels) * 32767).astype("<i2").tobytes())
    return str(path)


def texts(count: int) -> list[str]:
    rng = np.random.default_rng(0)
    word = [
        ["".join(rng.choice(list("abcde"), rng.integers(1, 4))) for _ in range(2)]
        for _ in range(count)
    ]
    return [" ".join(w[: 1 + k % 2]) for k, w in enumerate(word)]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Write 40 clips, and their transcripts in either form."""
    folder = tmp_path_factory.mktemp("speech")
    lines = ["; tones", ""]
    for k, text in enumerate(texts(40)):
        write(folder / "clips" / f"sub/{k}.wav", spoken(text))
        lines.append(f"sub/{k}.wav\t{text.upper()}!" if k % 2 else f"sub/{k}: {text} [noise]")
    (folder / "transcripts.txt").write_text("\n".join(lines), encoding="utf-8")
    return [str(folder / "clips"), str(folder / "transcripts.txt")]


def clips_of(data: list[str], **options: Any) -> tuple[list[_clips.Clip], list[str]]:
    said: list[str] = []
    return _clips.read_clips(data, 8000, say=said.append, **options), said


@pytest.fixture(scope="module")
def recognizer(data: list[str]) -> Recognizer:
    some, _ = transcribe.divide(clips_of(data)[0], FAST)
    return transcribe.train(some, FAST, report=lambda line: None)


@pytest.fixture(scope="module")
def saved(recognizer: Recognizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    recognizer.save(folder)
    return folder


# -- quality ---------------------------------------------------------------------------------------


def test_held_out_clips_are_recognised(recognizer: Recognizer, data: list[str]) -> None:
    _, held_out = transcribe.divide(clips_of(data)[0], FAST)
    figures, found = transcribe.measure(recognizer, held_out)
    assert figures["clips"] == len(held_out) >= 5
    assert figures["cer"] < 0.15
    assert figures["cer"] == ost.metrics.cer([c.text for c in held_out], found)


def test_spaces_without_words_are_no_words() -> None:
    options = TranscribeOptions(hidden=4)
    one = Recognizer(options, " ab", np.zeros(40), np.ones(40))
    path = 9 * np.eye(4)[[1, 0, 2, 0, 1, 0, 1, 0, 3, 1, 0]]  # space a space space b space
    found = transcribe.words(one, path, " a  b ")
    assert [w["word"] for w in found] == ["a", "b"]
    assert found == [
        {"word": "a", "begin": 0.06, "end": 0.09},
        {"word": "b", "begin": 0.24, "end": 0.27},
    ]


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 44100])
def test_times_of_words_do_not_drift(rate: int) -> None:
    """A hop is a whole number of samples, which is 10 ms at some rates alone."""
    options = TranscribeOptions(hidden=4, layers=1, sample_rate=rate)
    one = Recognizer(options, " a", np.zeros(40), np.ones(40))
    rows = len(one.features(np.zeros(20 * rate)))
    assert abs(rows * one.hop - 20) < 0.03
    path = 9 * np.eye(3)[[0] * 600 + [2, 0]]
    (word,) = transcribe.words(one, path, "a")
    assert word["begin"] == pytest.approx(600 * one.step, abs=1e-3)
    assert one.step == 3 * one.hop == 3 * round(rate / 100) / rate


def test_words_are_where_they_were_said(recognizer: Recognizer) -> None:
    x = spoken("ab ed")
    logits = recognizer.logits([recognizer.features(x)])[0]
    first, second = transcribe.words(recognizer, logits, "ab ed")
    assert (first["word"], second["word"]) == ("ab", "ed")
    # Letters take 0.16 s each, after 0.05 s.
    assert abs(first["begin"] - 0.05) < 0.1
    assert abs(second["begin"] - (0.05 + 3 * 0.16)) < 0.1
    assert first["end"] <= second["begin"]
    assert transcribe.words(recognizer, logits, "") == []


def test_texts_are_in_one_part_alone(data: list[str]) -> None:
    clips = clips_of(data)[0]
    train, held_out = transcribe.divide(clips, FAST)
    assert not {c.text for c in train} & {c.text for c in held_out}
    assert len(train) + len(held_out) == len(clips)
    half = TranscribeOptions(held_out=0.15, part=0.5)
    assert len(transcribe.divide(clips, half)[0]) < 0.7 * len(train)
    assert transcribe.divide(clips, half)[1] == held_out  # whatever the part
    texts = {c.text for c in clips}
    for part, count in ((0, 0), (1, 1), (1000, len(texts) // 10)):
        found = transcribe.divide(clips, TranscribeOptions(held_out=part))[1]
        assert len({c.text for c in found}) == max(count, part > 0)
    with pytest.raises(ValueError, match="at least 2 different texts, got 1"):
        transcribe.divide(clips[:1], FAST)


def test_equal_seeds_give_equal_batches(recognizer: Recognizer, data: list[str]) -> None:
    loader = Augmented(clips_of(data)[0][:10], recognizer)
    assert len(loader) == 3
    runs = [list(loader.batches(epoch)) for epoch in (0, 0, 1)]
    flat = [np.concatenate([x for batch, _ in run for x in batch]) for run in runs]
    assert np.array_equal(flat[0], flat[1])
    assert flat[0].shape != flat[2].shape or not np.array_equal(flat[0], flat[2])
    assert len(runs[0]) == len(loader)
    assert all(
        np.array_equal(a, b)
        for (a, *_), b in zip([x for x, _ in loader.batches(0, 1)], [x[0] for x, _ in runs[0][1:]])
    )


# -- the saved model -------------------------------------------------------------------------------


def test_a_saved_model_says_the_same(recognizer: Recognizer, saved: Path) -> None:
    again = Recognizer.load(saved)
    x = recognizer.features(spoken("ad be"))
    assert np.array_equal(again.features(spoken("ad be")), x)
    ours, theirs = recognizer.logits([x]), again.logits([x])
    assert np.array_equal(ours[0], theirs[0])
    assert again.search(theirs) == recognizer.search(ours)
    assert np.array_equal(again.trained, recognizer.trained)


def damaged(saved: Path, to: Path, **facts: Any) -> Path:
    arrays, text = ost.safetensors.load(saved / "model.safetensors")
    known = json.loads(text["ostinato"])
    for name, value in facts.items():
        if name == "arrays":
            arrays = value(arrays)
        elif name == "options":
            known["options"].update(value)
        else:
            known[name] = value
    ost.safetensors.save(to / "model.safetensors", arrays, {"ostinato": json.dumps(known)})
    return to


def without(name: str) -> Any:
    return lambda arrays: {n: a for n, a in arrays.items() if n != name}


def replacing(name: str, value: Any) -> Any:
    return lambda arrays: {**arrays, name: value}


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"alphabet": "aa"}, "alphabet"),
        ({"alphabet": 3}, "alphabet"),
        ({"options": {"hidden": 10**9}}, "is promised"),
        ({"options": {"layers": 10**9}}, "usable options"),
        ({"options": {"order": 10**9}}, "usable options"),
        ({"options": {"width": 10**9}}, "usable options"),
        ({"options": {"hidden": -1}}, "usable options"),
        ({"options": {"sample_rate": 10**9}}, "usable options"),
        ({"options": {"digits": "xx"}}, "usable options"),
        ({"options": {"color": 1}}, "unknown option"),
        ({"options": {"bands": "many"}}, "bands"),
        ({"arrays": without("head.bias")}, "head.bias"),
        ({"arrays": without("features.scale")}, "features.scale"),
        ({"arrays": without("trained")}, "trained"),
        ({"arrays": without("language.0.counts")}, "language model"),
        ({"arrays": replacing("features.scale", np.zeros(40, np.float32))}, "scales above 0"),
        ({"arrays": replacing("head.bias", np.full(7, np.nan, np.float32))}, "head.bias"),
        ({"arrays": replacing("language.0.counts", np.zeros(3, np.int64))}, "language model"),
    ],
    ids=[
        "twice",
        "number",
        "hidden",
        "layers",
        "order",
        "width",
        "negative",
        "rate",
        "digits",
        "newer",
        "type",
        "no-bias",
        "no-scale",
        "no-keys",
        "no-counts",
        "zero-scale",
        "nan",
        "bad-counts",
    ],
)
def test_damaged_models_are_refused(
    saved: Path, tmp_path: Path, facts: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message) as e:
        Recognizer.load(damaged(saved, tmp_path, **facts))
    assert "DIR: expected" in str(e.value)


def test_models_of_others_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="DIR: expected a folder"):
        Recognizer.load(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"\x00" * 100)
    with pytest.raises(ValueError):
        Recognizer.load(tmp_path)


# -- the command -----------------------------------------------------------------------------------


def test_the_command(data: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib", reason="pip install 'ostinato[data]'")
    model, picture = tmp_path / "m", tmp_path / "p.png"
    arguments = ["train", "transcribe", *data, "--hidden", "8", "--layers", "1", "--epochs", "2"]
    assert main([*arguments, "--save", str(model), "--plot", str(picture), "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert set(figures) >= {"cer", "wer", "cer_greedy", "clips", "texts", "seconds", "parameters"}
    assert picture.read_bytes()[:4] == b"\x89PNG"
    assert main(["evaluate", str(model), *data, "--json"]) == 0
    out = capsys.readouterr()
    assert json.loads(out.out)["cer"] == figures["cer"]  # on the clips that were held out
    assert "clips that the model was trained on are left out" in out.err


def test_predict(saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib", reason="pip install 'ostinato[data]'")
    text = texts(40)[1]
    files = [
        write(tmp_path / "one.wav", spoken(text)),
        write(tmp_path / "two.wav", spoken(text, 16000), rate=16000, channels=2),
        write(tmp_path / "none.wav", np.zeros(4000)),
    ]
    out, picture = tmp_path / "out.tsv", tmp_path / "p.png"
    command = ["predict", str(saved), *files, "--json", "--out", str(out), "--plot", str(picture)]
    assert main(command) == 0
    captured = capsys.readouterr()
    found = json.loads(captured.out)["transcripts"]
    assert found[2]["text"] == ""
    for r in found[:2]:
        assert ost.metrics.cer([text], [r["text"]]) <= 0.25
        assert " ".join(w["word"] for w in r["words"]) == r["text"]
    assert "16000 Hz is resampled to 8000 Hz" in captured.err
    assert "2 channels are averaged" in captured.err
    assert "silent: " in captured.err
    assert out.read_text().splitlines()[0] == f"{files[0]}\t{found[0]['text']}"
    assert picture.read_bytes()[:4] == b"\x89PNG"


def test_bad_input_of_predict(
    saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def error(*inputs: str) -> str:
        assert main(["predict", str(saved), *inputs]) == 2
        return capsys.readouterr().err

    assert "INPUT: expected WAV files, got none" in error()
    line = error("none.wav", "--out", str(tmp_path / "a.csv"))
    assert "--out: expected a name that ends in .tsv or .txt, got" in line
    assert "INPUT: expected at least 25 ms" in error(write(tmp_path / "e.wav", np.zeros(0)))
    (tmp_path / "t.wav").write_text("no sound")
    assert "INPUT: expected a WAV file of whole numbers" in error(str(tmp_path / "t.wav"))
    odd = write(tmp_path / "odd.wav", np.ones(300), rate=2**31 - 1)
    assert "INPUT: expected a usual rate, got 2147483647 Hz" in error(odd)
    assert "no-such.wav" in error(str(tmp_path / "no-such.wav"))


def test_only_clips_that_it_knows(
    recognizer: Recognizer,
    saved: Path,
    data: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    clips = {c.key: c.name for c in clips_of(data)[0]}
    known = [clips[k] for k in recognizer.trained.tolist()]
    (tmp_path / "some.tsv").write_text("\n".join(f"{n}\tab" for n in known))
    assert main(["evaluate", str(saved), data[0], str(tmp_path / "some.tsv")]) == 2
    assert "clips that the model was not trained on" in capsys.readouterr().err


# -- transcripts -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "options", "wanted"),
    [
        ("Login   incorrect.", {}, "login incorrect"),
        ("dot [.] (beep) <tone> end", {}, "dot end"),
        ("DON'T; stop-now", {}, "don't stop now"),
        ("Press 1, 2 or 10.", {"digits": "en"}, "press one two or 10"),
        ("Marque 0: 28.8 k", {"digits": "es"}, "marque cero 28 8 k"),
        ("Press 1", {}, "press 1"),
        ("Último señor", {"strip_accents": True}, "ultimo senor"),
        ("U\u0301ltimo", {}, "último"),
        ("[beep]", {}, ""),
    ],
)
def test_what_is_said(text: str, options: dict[str, Any], wanted: str) -> None:
    assert _clips.written(text, **options) == wanted


def test_files_of_transcripts(tmp_path: Path) -> None:
    path = tmp_path / "t.gz"
    path.write_bytes(gzip.compress("\ufeff; a\na/b: One: two\nc.wav\tThrée: x\n\n".encode()))
    assert _clips.read_transcripts(path) == [("a/b", "One: two"), ("c", "Thrée: x")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "at least one transcript"),
        (b"; only a remark\n", "at least one transcript"),
        (b"a: b\nno mark\n", "line 2"),
        (b": text\n", "line 1"),
        (b"a: \xff\xfe\n", "UTF-8"),
        (b"\x1f\x8bno gzip", "damaged"),
        (gzip.compress(b"a: b\n" * 100)[:-12], "ends early"),
    ],
    ids=["empty", "remark", "line", "name", "bytes", "gzip", "cut"],
)
def test_bad_transcripts(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "t.txt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as e:
        _clips.read_transcripts(path)
    assert "t.txt" in str(e.value)


def test_transcripts_that_unpack_to_too_much(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_clips, "LARGEST", 1000)
    path = tmp_path / "t.gz"
    path.write_bytes(gzip.compress(b"a: b\n" * 1000))
    with pytest.raises(ValueError, match="at most 1000 bytes"):
        _clips.read_transcripts(path)


# -- clips -----------------------------------------------------------------------------------------


def test_what_is_left_out_is_said(tmp_path: Path) -> None:
    folder = tmp_path / "clips"
    lengths = {"good": 4000, "digits": 4000, "empty": 0, "long": 16000, "untold": 4000}
    for name, n in lengths.items():
        write(folder / f"{name}.wav", 0.1 * np.ones(n))
    write(folder / "silent.wav", np.zeros(4000))
    write(folder / "twice.wav", 0.1 * np.ones(4000))
    write(folder / "other.wav", 0.1 * np.ones(8000), rate=16000, channels=2)
    names = ["good", "empty", "long", "silent", "missing", "other"]
    lines = [f"{n}: ab" for n in names]
    lines += ["digits: dial 500", "untold: [tone]", "twice: a", "twice: b", "good: AB"]
    file = tmp_path / "t.txt"
    file.write_text("\n".join(lines))
    write(folder / "extra.wav", np.ones(10))
    clips, said = clips_of([str(file), str(folder)], digits="en", longest=1.5)
    assert [(c.name, c.text, len(c.samples)) for c in clips] == [
        ("good", "ab", 4000),
        ("other", "ab", 4000),
    ]
    told = "\n".join(said)
    for reason in (
        "empty: empty",
        "silent: silent",
        "longer than 1.5 s (--longest): long",
        "with a transcript but no file: missing",
        "without a letter in its transcript: untold",
        "with two different transcripts: twice",
        "without a transcript: extra",
        "16000 Hz is resampled to 8000 Hz",
        "2 channels are averaged",
        "number of several digits",
    ):
        assert reason in told


def test_clips_shorter_than_their_texts(tmp_path: Path) -> None:
    texts = {"a": "ab", "b": "abcde" * 20, "c": "bc"}
    clips = [_clips.Clip(n, spoken("abc"), t) for n, t in texts.items()]
    said: list[str] = []
    options = TranscribeOptions(hidden=4, layers=1, epochs=1)
    recognizer = transcribe.train(clips, options, report=said.append)
    assert "left out, shorter than its text allows: b" in said
    assert recognizer.alphabet == "abc"
    with pytest.raises(ValueError, match="clips long enough for their texts"):
        transcribe.train(clips[1:2], options, report=said.append)


@pytest.mark.parametrize("case", ["outside", "none", "two", "file", "gone", "damaged"])
def test_bad_data(tmp_path: Path, data: list[str], case: str) -> None:
    file, folder = tmp_path / "t.txt", Path(data[0])
    given, message = [str(folder), str(file)], ""
    file.write_text("a: b")
    if case == "outside":
        write(tmp_path / "x.wav", spoken("a"))
        file.write_text(f"../{tmp_path.name}/x: b")
        given, message = [str(tmp_path / "sub"), str(file)], "names of files in"
        (tmp_path / "sub").mkdir()
        file.write_text("../x: b")
    elif case == "none":
        message = "at least one clip"
    elif case == "two":
        given, message = [str(folder), str(folder)], "got 2 folders and 0 files"
    elif case == "file":
        given, message = [str(file)], "got 0 folders and 1 files"
    elif case == "gone":
        given, message = [str(tmp_path / "no"), str(file)], "found no"
    else:
        (tmp_path / "bad").mkdir()
        (tmp_path / "bad" / "a.wav").write_bytes(b"no sound")
        given, message = [str(tmp_path / "bad"), str(file)], "DATA: expected a WAV file"
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        clips_of(given)


def test_without_data(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(_clips, "INSTALLED", (str(tmp_path / "no"), str(tmp_path / "none")))
    with pytest.raises(FileNotFoundError, match="asterisk-core-sounds-en-wav"):
        clips_of([])


def test_options_are_checked(data: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "transcribe", *data, "--part", "2"]) == 2
    assert "part: expected a number above 0 and at most 1" in capsys.readouterr().err
    assert main(["train", "transcribe", *data, "--sample-rate", "100"]) == 2
    assert "--sample-rate: expected 4000 to 192000" in capsys.readouterr().err
    assert load("transcribe").options is TranscribeOptions


def test_clips_of_debian() -> None:
    """The real files, where they are installed."""
    if not all(Path(p).exists() for p in _clips.INSTALLED):
        pytest.skip("Debian's asterisk-core-sounds-en-wav and -en are not installed")
    clips, _ = clips_of([], digits="en")
    assert len(clips) > 500
    texts = {c.name: c.text for c in clips}
    assert texts["activated"] == "activated"
    assert audio.read_wav(Path(_clips.INSTALLED[0]) / "activated.wav").rate == 8000
