"""``train tag``: a tag for each token, learned in both directions."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ostinato import safetensors
from ostinato.__main__ import main
from ostinato.tasks import _application, tag
from ostinato.tasks._tagger import Tagger, TaggerOptions

SMALL = ["--epochs", "1", "--hidden", "8"]


def quiet(line: str) -> None:
    """Take a line and show nothing."""


RUN = _application.Run(None, None, None, quiet)


def next_is_vowel(count: int = 300, seed: int = 0) -> tag.Tagged:
    """Return letters that are tagged by the letter behind them: what comes before says nothing."""
    rng = np.random.default_rng(seed)
    tokens, tags = [], []
    for _ in range(count):
        letters = rng.choice(list("abcdefgh"), rng.integers(2, 9)).tolist()
        tokens.append(letters)
        tags.append(["V" if c in "ae" else "C" for c in [*letters[1:], "x"]])
    return tag.Tagged(tokens, tags)


def conll(data: tag.Tagged) -> str:
    return "\n".join(
        "".join(f"{a}\t{b}\n" for a, b in zip(*pair)) for pair in zip(data.tokens, data.tags)
    )


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.conll").write_text(conll(next_is_vowel()))
    return tmp_path


def test_both_directions_know_what_follows() -> None:
    options = tag.TagOptions(hidden=16, epochs=12, batch=16, rate=1e-2, dropout=0.0)
    tagger, figures = tag.train(next_is_vowel(), options, RUN)
    assert figures["test_sequences"] == 30
    assert figures["both"]["accuracy"] > 0.99
    assert figures["one"]["accuracy"] < 0.9
    # A letter does not tell its tag, so the commonest one is all that is known of it.
    assert figures["most_frequent"]["accuracy"] < 0.9
    assert figures["both"]["ambiguous_accuracy"] > 0.99
    assert tagger.predict([["b", "a", "c"], [], ["a", "b"]]) == [["V", "C", "C"], [], ["C", "C"]]


def test_accuracies() -> None:
    data = tag.Tagged([["a", "b"], ["a", "c"]], [["X", "Y"], ["Z", "Y"]])
    assert tag._ambiguous(data) == {"a"}
    found = [["X", "Y"], ["X", "X"]]
    assert tag._accuracies(found, data, {"a"}) == {
        "accuracy": 0.5,
        "ambiguous_accuracy": 0.5,
        "sequences": 0.5,
    }


def test_tokens_that_occur_once_stand_for_unknown_ones() -> None:
    sentences = [["often", "often"], ["once", "wonce", "often"]]
    tagger = Tagger.fresh(sentences, [["A", "B"], ["A", "A", "B"]], TaggerOptions(hidden=4))
    assert tagger.features == [["often"], ["nce"]]  # and the ending that two of them have
    x = tagger.encode([["often", "once", "never", "xnce"]]).rows
    assert x.tolist() == [[1, 0], [0, 1], [0, 0], [0, 1]]
    short = Tagger.fresh([["a", "b", "a"]], [["A", "B", "A"]], TaggerOptions(hidden=4))
    assert len(short.features) == 1


def test_read(here: Path) -> None:
    (here / "b.txt").write_text(
        "# a comment\n#hash\tX\n1 I\u00e9 PRON\n\n\n2\tis\tVERB\n\nEOS\n3 so ADV\n3 far ADV\nEOS\n",
        encoding="utf-8",
    )
    data = tag.read(["b.txt"], 1)
    assert data.tokens == [["#hash", "1"], ["2"], ["3", "3"]]
    assert data.tags == [["X", "PRON"], ["VERB"], ["ADV", "ADV"]]
    with pytest.raises(ValueError, match=r"expected 3 columns or more, got 2 in line 2 of b\.txt"):
        tag.read(["b.txt"], 2, 3)


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("# a comment\n#\n# # B-NP\na X\n# # B-NP\n# X\nb X\n", ["a", "#", "#", "b"]),
        ("#\tX\n# X\n", ["#", "#"]),
        ("a X\nEOS\n# a comment\nb X\n", ["a", "b"]),
    ],
)
def test_comments_are_before_a_sequence(text: str, tokens: list[str], here: Path) -> None:
    (here / "b.txt").write_text(text)
    data = tag.read(["b.txt"])
    assert [token for some in data.tokens for token in some] == tokens
    assert [token for some in tag._untagged("b.txt", 1) for token in some] == tokens


def test_tokens_and_tags_are_in_two_columns(here: Path) -> None:
    with pytest.raises(ValueError, match="token_column: expected another column than that of"):
        tag.read(["a.conll"], 2, 2)
    with pytest.raises(
        ValueError,
        match=r"3 columns or more, got 2 in line 1 of .*in the last one, behind column 2",
    ):
        tag.read(["a.conll"], 2)
    assert tag.read(["a.conll"], 2, 1).tokens == tag.read(["a.conll"]).tags


def test_stress_of_the_dictionary() -> None:
    try:
        data = tag.stress()
    except ImportError as error:
        pytest.skip(str(error))
    assert len(data.tokens) == len({tuple(t) for t in data.tokens}) > 100_000
    assert {t for tags in data.tags for t in tags} == {"-", "0", "1", "2"}
    k = list(data.tokens).index(["EH", "L", "AH", "F", "AH", "N", "T"])  # elephant
    assert data.tags[k] == ["1", "-", "0", "-", "0", "-", "-"]


def test_without_the_package_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tag, "DICTIONARY", ("no-such-package", "a", "words"))
    with pytest.raises(ImportError, match="pip install --no-deps no-such-package"):
        tag.stress()


def test_commands(here: Path, capsys: Any) -> None:
    pytest.importorskip(
        "matplotlib", reason="matplotlib is not installed: pip install 'ostinato[data]'"
    )
    options = ["--epochs", "3", "--hidden", "8", "--batch", "16"]
    train = ["train", "tag", "a.conll", "--save", "m", "--plot", "p.png", "--json"]
    assert main([*train, *options]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert (figures["task"], figures["sequences"], figures["tags"]) == ("tag", 300, 2)
    assert set(figures["both"]) == {"accuracy", "ambiguous_accuracy", "sequences"}
    assert (here / "p.png").read_bytes().startswith(b"\x89PNG")
    assert main(["predict", "m", "b a c", "a", "--json"]) == 0
    first = json.loads(capsys.readouterr().out)
    assert [len(s["tags"]) for s in first["sequences"]] == [3, 1]
    (here / "new.txt").write_text("b\na\nc\n\na\n")
    assert main(["predict", "m", "@new.txt", "--json", "--out", "o.conll"]) == 0
    assert json.loads(capsys.readouterr().out) == first
    written = tag.read(["o.conll"])
    assert written.tokens == [["b", "a", "c"], ["a"]]
    assert written.tags == [s["tags"] for s in first["sequences"]]
    assert main(["evaluate", "m", "a.conll", "--json"]) == 0
    accuracy = json.loads(capsys.readouterr().out)["both"]["accuracy"]
    data = next_is_vowel()
    found = Tagger.load("m")[0].predict(data.tokens)
    right = [a == b for x, y in zip(found, data.tags) for a, b in zip(x, y)]
    assert accuracy == pytest.approx(np.mean(right))
    # The same training gives the same model.
    assert main(["train", "tag", "a.conll", "--only-both", "--json", *options]) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["both"] == figures["both"]
    assert "one" not in again


BAD: dict[str, tuple[list[str], str]] = {
    "one tag": (["train", "tag", "one.conll"], "at least 2 different tags, got 'X' alone"),
    "few": (["train", "tag", "few.conll"], "expected at least 20 sequences, got 3"),
    "empty": (["train", "tag", "empty.conll"], "expected lines of a token and a tag, got none"),
    "no tag": (["train", "tag", "bare.conll"], "expected 2 columns or more, got 1 in line 2"),
    "an empty column": (
        ["train", "tag", "gap.conll"],
        "expected a text in every column, got an empty one in line 1",
    ),
    "columns": (
        ["train", "tag", "a.conll", "--tag-column", "9"],
        "expected 9 columns or more, got 2 in line 1",
    ),
    "one column": (
        ["train", "tag", "a.conll", "--token-column", "2", "--tag-column", "2"],
        "ostinato: --token-column: expected another column than that of the tags, got 2 for both",
    ),
    "columns of nothing": (
        ["train", "tag", "--tag-column", "2"],
        "--tag-column: expected DATA with it, got none",
    ),
    "a result": (
        ["predict", "m", "  ", "--out", "a.json"],
        "--out: expected a name that ends in .tsv, .txt or .conll, got 'a.json'",
    ),
    "no text": (["train", "tag", "bytes.conll"], "expected text in UTF-8"),
    "no file": (["train", "tag", "none.conll"], "none.conll"),
    "unknown tag": (["evaluate", "m", "other.conll"], "expected tags that were trained on (C, V)"),
    "no data": (["evaluate", "m"], "expected a file with tokens and tags, got none"),
    "no input": (["predict", "m", "  "], "INPUT: expected tokens between spaces"),
    "a picture": (["predict", "m", "a", "--plot", "p.png"], "--plot: expected none"),
    "damaged": (["predict", "damaged", "a"], "damaged"),
    "promises": (["predict", "large", "a"], "whose parameters fit its options"),
    "tags": (["predict", "twice", "a"], "usable options, tokens and tags"),
}


@pytest.fixture(scope="module")
def bad(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bad")
    data = next_is_vowel()
    (folder / "a.conll").write_text(conll(data))
    (folder / "one.conll").write_text("a X\nb X\n\n" * 30)
    (folder / "few.conll").write_text(conll(data.part(range(3))))
    (folder / "empty.conll").write_text("\n# nothing\n\n")
    (folder / "bare.conll").write_text("a X\nb\n")
    (folder / "gap.conll").write_text("a\t\n")
    (folder / "bytes.conll").write_bytes(b"a\xff X\n")
    (folder / "other.conll").write_text("a\tV\nb\tQ\n")
    for name in ("m", "damaged", "large", "twice"):
        (folder / name).mkdir()
    facts = {"columns": [1, 0], "source": "file", "ambiguous": ["a"]}
    Tagger.fresh(data.tokens, data.tags, TaggerOptions(hidden=4)).save(folder / "m", facts)
    file = folder / "m" / "model.safetensors"
    content = file.read_bytes()
    (folder / "damaged" / "model.safetensors").write_bytes(content[:-9] + b"x" + content[-8:])
    tensors, text = safetensors.load(file)
    for name, change in (("large", {"hidden": 10**9}), ("twice", {})):
        own = json.loads(text["ostinato"])
        own["options"] |= change
        own["tags"] = ["C", "C"] if name == "twice" else own["tags"]
        safetensors.save(
            folder / name / "model.safetensors", tensors, {"ostinato": json.dumps(own)}
        )
    return folder


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name: str, bad: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(bad)
    before = sorted(bad.rglob("*"))
    command, words = BAD[name]
    assert main([*command, *(SMALL if command[0] == "train" else [])]) == 2
    assert words in capsys.readouterr().err
    assert sorted(bad.rglob("*")) == before


def test_the_model_is_saved_before_it_is_measured(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(tag, "_report", interrupted)
    options = ["--epochs", "1", "--hidden", "4", "--only-both"]
    assert main(["train", "tag", "a.conll", "--save", "m", *options]) == 130
    assert Tagger.load("m")[0].tags == ["C", "V"]


def test_without_tokens_of_several_tags_no_share_of_them_is_told(here: Path, capsys: Any) -> None:
    Path("plain.conll").write_text("a\tV\nb\tC\n\n" * 30)
    options = ["--epochs", "1", "--hidden", "4", "--json"]
    assert main(["train", "tag", "plain.conll", *options]) == 0
    out = capsys.readouterr()
    assert json.loads(out.out)["both"]["ambiguous_accuracy"] is None
    assert "none has several tags" in out.err


def test_evaluate_counts_the_tokens_that_training_counted(here: Path, capsys: Any) -> None:
    options = ["--epochs", "1", "--hidden", "4", "--only-both"]
    assert main(["train", "tag", "a.conll", "--save", "m", *options]) == 0
    Path("short.conll").write_text("a\tV\n")
    capsys.readouterr()
    assert main(["evaluate", "m", "short.conll", "--json"]) == 0
    both = json.loads(capsys.readouterr().out)["both"]
    # In this file it has one tag, in what was trained on two.
    assert both["ambiguous_accuracy"] == both["accuracy"]


def test_predict_reads_lines(here: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    options = ["--epochs", "1", "--hidden", "4", "--only-both"]
    assert main(["train", "tag", "a.conll", "--save", "m", *options]) == 0
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"a b\n\nc\n")))
    capsys.readouterr()
    assert main(["predict", "m", "-", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["sequences"]
    assert [one["tokens"] for one in found] == [["a", "b"], ["c"]]
    # An argument names a file, a line does not.
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"a\n@a.conll\n")))
    assert main(["predict", "m", "-", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["sequences"]
    assert [one["tokens"] for one in found] == [["a"], ["@a.conll"]]
    assert main(["predict", "m", "a \x1b[2J"]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "\\x1b[2J" in out


def test_epochs_are_reported_when_they_end(capsys: Any) -> None:
    lines: list[str] = []

    def stopped(line: str) -> None:
        lines.append(line)
        raise KeyboardInterrupt

    data = next_is_vowel(40)
    tagger = Tagger.fresh(data.tokens, data.tags, TaggerOptions(hidden=4, epochs=3))
    with pytest.raises(KeyboardInterrupt):
        tagger.fit(data.tokens, data.tags, report=stopped)
    assert len(lines) == 1
    assert lines[0].startswith("epoch   1")
