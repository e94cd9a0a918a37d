"""ListOps and the command ``train parse``: expressions, training, predictions, bad input."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ostinato as ost
from ostinato import safetensors
from ostinato.cli import main
from ostinato.tasks import _application, listops, models, parse
from ostinato.tasks.parse import ParseOptions

SMALL = {"examples": 40, "held_out": 10, "epochs": 1, "hidden": 8, "embedding": 4}


# -- expressions -----------------------------------------------------------------------------------

VALUES = {
    "7": 7,
    "[MAX 2 9 0]": 9,
    "[MIN 2 9 1]": 1,
    "[MED 9 1 2]": 2,
    "[MED 1 2 5 8]": 3,  # 3.5, rounded down
    "[SM 9 8 7]": 4,
    "[MAX 2 [SM 9 9 [MIN 3 4]] [MED 0 1]]": 2,
}


@pytest.mark.parametrize("text", VALUES)
def test_values(text: str) -> None:
    e = listops.read(text)
    assert listops.value(e)[0] == VALUES[text]
    assert e.text() == text


def test_an_expression_as_tree_and_sequence() -> None:
    e = listops.read("  [ MAX 2 (MIN\t4 7 )0 ] ")
    assert e.labels == ["[MAX", "2", "[MIN", "4", "7", "0"]
    assert e.parents == [-1, 0, 0, 2, 2, 0]
    assert e.tokens == ["[MAX", "2", "[MIN", "4", "7", "]", "0", "]"]
    assert [e.text(k) for k in (0, 2, 3)] == ["[MAX 2 [MIN 4 7] 0]", "[MIN 4 7]", "4"]
    assert e.height == 2
    assert listops.read("x").height == 0
    deep = "[a " * 3000 + "b" + "]" * 3000
    assert listops.read(deep).height == 3000


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected an expression such as"),
        (" ", "expected an expression such as"),
        ("[", "expected an expression such as"),
        ("[]", "expected a label behind a bracket, got ']'"),
        ("[[a b]]", r"expected a label behind a bracket, got '\['"),
        ("[a", "expected an expression .* got the end before ']'"),
        ("(a [b c)", "expected ']', got '\\)'"),
        ("a]", "expected one expression, got ']' behind its end"),
        ("]", "expected an expression, got ']'"),
        ("1 2", "expected one expression, got '2' behind its end"),
        ("[a b] [c d]", r"expected one expression, got '\[' behind its end"),
    ],
    ids=range(11),
)
def test_what_is_no_expression(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"line 3: {message}"):
        listops.read(text, "line 3")


@pytest.mark.parametrize("text", ["[ADD 1 2]", "[MAX 1 12]", "[MAX]", "MAX", "[5 1]", "٣"])
def test_what_is_no_listops(text: str) -> None:
    with pytest.raises(ValueError, match="expression: expected digits and MIN, MAX, MED, SM"):
        listops.value(listops.read(text))


def test_generated_expressions() -> None:
    made = listops.generate(300, seed=3, max_depth=3, max_args=4, max_length=30)
    texts = [e.text() for e in made]
    assert len(set(texts)) == 300
    assert max(e.height for e in made) == 3
    assert max(len(e.tokens) for e in made) <= 30
    degrees = [np.bincount(np.array(e.parents)[1:])[np.unique(e.parents[1:])] for e in made]
    assert set(np.concatenate(degrees)) == {2, 3, 4}
    assert {e.labels[0] for e in made} == {"[MAX", "[MIN", "[MED", "[SM"}
    assert (
        texts
        == [
            e.text() for e in listops.generate(301, seed=3, max_depth=3, max_args=4, max_length=30)
        ][:300]
    )
    assert texts != [
        e.text() for e in listops.generate(300, seed=4, max_depth=3, max_args=4, max_length=30)
    ]
    # A quarter of the arguments are operators, unless they would be too deep.
    free = listops.generate(2000, seed=0, max_length=10_000)
    inner = sum(sum(t.startswith("[") for t in e.labels) - 1 for e in free)
    assert inner / sum(len(e.labels) - 1 for e in free) == pytest.approx(0.25, abs=0.02)


def test_the_generator_is_the_same_everywhere() -> None:
    """What is held out of a saved model is generated anew when it is evaluated."""
    assert [e.text() for e in listops.generate(3, seed=0)] == [
        "[SM 2 4 3 5 5]",
        "[MAX 2 9 9 7 6]",
        "[MAX 6 9]",
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_args": 1}, "max_args: expected at least 2, got 1"),
        ({"max_depth": 0}, "max_depth: expected at least 1, got 0"),
        ({"max_length": 3}, "max_length: expected at least 4, got 3"),
        ({"max_depth": 1, "max_args": 2}, "examples: expected at most 400, the distinct"),
    ],
    ids=["args", "depth", "length", "count"],
)
def test_bad_options_of_listops(options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        listops.generate(1000, **options)


# -- the command -----------------------------------------------------------------------------------


def run(capsys: pytest.CaptureFixture[str], *args: Any) -> Any:
    """Return the figures of a command."""
    assert main([*map(str, args), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def fails(capsys: pytest.CaptureFixture[str], *args: Any) -> str:
    """Return the error of a command."""
    assert main([*map(str, args)]) == 2
    return capsys.readouterr().err.strip()


def file_of(path: Path, count: int, seed: int = 0, **options: Any) -> Path:
    """Write expressions of two arguments with the larger digit as their label."""
    made = listops.generate(count, seed=seed, max_depth=1, **options)
    lines = (f"{'high' if listops.value(e)[0] > 4 else 'low'}\t{e.text()}\n" for e in made)
    path.write_text("".join(lines), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model of ListOps."""
    at = tmp_path_factory.mktemp("parse") / "model"
    _application.train("parse", [], ParseOptions(**SMALL), save=at, report=lambda line: None)
    return at


@pytest.mark.parametrize("model", ["tree", "lstm"])
def test_it_learns(model: str, tmp_path: Path) -> None:
    """MAX and MIN of digits are soon learned; the most common value is right in a fifth."""
    options = ParseOptions(model=model, hidden=24, embedding=8, epochs=8, rate=0.02, batch=32)
    made = [e for e in listops.generate(3000, max_depth=1, max_args=3) if "SM" not in e.labels[0]]
    path = tmp_path / "digits.tsv"
    path.write_text("".join(f"{listops.value(e)[0]}\t{e.text()}\n" for e in made))
    figures = _application.train("parse", [str(path)], options, report=lambda line: None)
    assert figures["most_common"] < 0.3
    assert figures["accuracy"] > (0.9 if model == "tree" else 0.5)


@pytest.mark.parametrize("targets", ["root", "nodes"])
@pytest.mark.parametrize("model", ["tree", "lstm"])
def test_train_predict_evaluate(
    model: str, targets: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    own = [f"--{n.replace('_', '-')}={v}" for n, v in SMALL.items()] + ["--targets", targets]
    where, bars, tree, out = (tmp_path / n for n in ("m", "bars.png", "tree.png", "out.tsv"))
    figures = run(capsys, "train", "parse", "--model", model, *own, "--save", where, "--plot", bars)
    assert figures["examples"] == 10
    assert figures["classes"] == 10
    assert sum(f["count"] for f in figures["by_height"].values()) == 10
    again = run(capsys, "evaluate", where)
    assert again["accuracy"] == figures["accuracy"]
    assert again["by_height"] == figures["by_height"]
    text = "[MAX 2 9 [MIN 4 7] 0]"
    found = run(capsys, "predict", where, text, "3", "--plot", tree, "--out", out)["predictions"]
    assert [p["expression"] for p in found] == [text, "3"]
    assert found[0]["value"] == "9"
    assert [n["expression"] for n in found[0]["nodes"]][3] == "[MIN 4 7]"
    assert [n["value"] for n in found[0]["nodes"]] == ["9", "2", "9", "4", "4", "7", "0"]
    assert found[0]["nodes"][0]["label"] == found[0]["label"]
    inner = run(capsys, "predict", where, "[MIN 4 7]")["predictions"][0]
    assert found[0]["nodes"][3]["label"] == inner["label"]
    assert out.read_text() == f"{found[0]['label']}\t{text}\n{found[1]['label']}\t3\n"
    for picture in (bars, tree):
        assert picture.read_bytes().startswith(b"\x89PNG")
    # What predict wrote, evaluate and predict read.
    assert run(capsys, "evaluate", where, out)["accuracy"] == 1.0
    same = run(capsys, "predict", where, out)["predictions"]
    assert [p["label"] for p in same] == [p["label"] for p in found]


def test_a_loaded_model_is_the_same(folder: Path) -> None:
    parser = parse.load(folder)
    made = listops.generate(300, seed=9)
    whole = parser.probabilities(made)
    assert np.array_equal(parse.load(folder).probabilities(made), whole)
    np.testing.assert_allclose(whole.sum(1), 1, rtol=1e-5)
    assert np.array_equal(parser.probabilities(made[7:9]), whole[7:9])  # for any batch
    assert parser.probabilities([]).shape == (0, 10)


def test_a_model_of_before_is_read(folder: Path, tmp_path: Path) -> None:
    """It had a share of files beside the number of expressions of ListOps."""
    tensors, facts = models.load_model(folder, "parse")
    facts["options"] |= {"fraction": 0.1, "held_out": 10}
    text = json.dumps({**facts, "task": "parse"})
    safetensors.save(tmp_path / "model.safetensors", tensors, {"ostinato": text})
    made = listops.generate(30, seed=9)
    np.testing.assert_array_equal(
        parse.load(tmp_path).probabilities(made), parse.load(folder).probabilities(made)
    )


def test_runs_with_one_seed_are_equal() -> None:
    options = ParseOptions(**SMALL)
    first, second = (parse.train([], options, quiet()) for _ in range(2))
    assert {n: v for n, v in first.items() if n != "seconds"} == {
        n: v for n, v in second.items() if n != "seconds"
    }


def quiet() -> _application.Run:
    return _application.Run(None, None, None, lambda line: None)


def test_the_parts_of_listops_have_nothing_in_common() -> None:
    few, many = (parse._of_listops(ParseOptions(examples=n, held_out=50)) for n in (100, 400))
    texts = [{e.text() for e in part.expressions} for part in many]
    assert [len(t) for t in texts] == [410, 50, 50]
    assert len(texts[0] | texts[1] | texts[2]) == 510
    assert [e.text() for e in few[2].expressions] == [e.text() for e in many[2].expressions]
    assert {str(k) for k in range(10)} <= texts[0]


def test_ones_own_labels_and_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "own.tsv"
    words = ["good", "bad", "fine", "dull"]
    lines = [
        f"{'+' if w in ('good', 'fine') else '-'}\t(S (NP the film) (VP is {more} {w}))\r\n"
        for w in words
        for more in ("so", "very", "quite", "not", "rather")
    ]
    path.write_text("\ufeff" + "\n".join(lines), encoding="utf-8", newline="")
    where = tmp_path / "m"
    small = ("--hidden", 8, "--embedding", 4, "--epochs", 2, "--children", 3)
    figures = run(capsys, "train", "parse", path, *small, "--save", where)
    assert figures["examples"] == 2
    assert figures["classes"] == 2
    found = run(capsys, "predict", where, "(S (NP the film) (VP is good))")["predictions"][0]
    assert found["label"] in ("+", "-")
    assert "value" not in found
    error = fails(capsys, "predict", where, "(S the film is good)")
    wanted = "INPUT: expected at most 3 arguments (--children), got more in '[S the film is good]'"
    assert wanted in error
    assert "was not trained on ListOps" in fails(capsys, "evaluate", where)


def with_labels_within(path: Path, made: list[listops.Expression]) -> Path:
    """A file of expressions of ListOps whose third column has the values of what is within."""
    lines = []
    for e in made:
        values = listops.value(e)
        within = [str(v) for v, t in zip(values[1:], e.labels[1:]) if t.startswith("[")]
        lines.append(f"{values[0]}\t{e.text()}\t{' '.join(within)}\n")
    path.write_text("".join(lines))
    return path


@pytest.mark.parametrize("model", ["tree", "lstm"])
def test_labels_within_ones_own_expressions(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file with all labels of ListOps teaches what ListOps itself does."""
    made = listops.generate(60, seed=4, max_length=20)
    path = with_labels_within(tmp_path / "own.tsv", made)
    data = parse.read([path])
    tokens = sorted({t for e in made for t in (*e.labels, "]")})
    classes = [str(k) for k in range(10)]
    options = ParseOptions(**SMALL, model=model)
    own, generated = (
        parse.Parser(options, tokens, classes, listops=known)._data(data) for known in (False, True)
    )
    one_level = [k for k, e in enumerate(made) if e.height == 1]  # without brackets within
    assert one_level
    assert all(data.nodes[k] == [] for k in one_level)
    np.testing.assert_array_equal(own[1], generated[1])
    np.testing.assert_array_equal(own[2]["weights"], generated[2]["weights"])
    where = tmp_path / "m"
    small = ("--hidden", 8, "--embedding", 4, "--epochs", 2, "--model", model)
    figures = run(capsys, "train", "parse", path, *small, "--save", where)
    assert figures["targets"] == "nodes"
    assert 0 <= figures["within_accuracy"] <= 1
    again = run(capsys, "evaluate", where, path)
    rest = [(e, n) for e, n in zip(data.expressions, data.nodes) if n]
    parser = parse.load(where)
    right = [a == b for e, n in rest for a, b in zip(parser.nodes(e)[1:], n[1:]) if b]
    assert again["within_accuracy"] == np.mean(right)
    assert run(capsys, "predict", where, path)["predictions"][3]["expression"] == made[3].text()
    figures = run(capsys, "train", "parse", path, *small, "--targets", "root")
    assert figures["targets"] == "root"


def test_labels_within_that_are_not_known(tmp_path: Path) -> None:
    path = tmp_path / "own.tsv"
    path.write_text("+\t(S (NP the film) (VP is good))\t_ y\n-\tbad\n+\t[S good]\t\n")
    data = parse.read([path])
    assert data.nodes == [["+", "", "", "", "y", "", ""], [], []]
    path.write_text("+\t(S (A b) c)\tx\n+\t(S (A b) c)\ty\n")
    with pytest.raises(ValueError, match=r"line 2: expected one label for .*, got others within"):
        parse.read([path])
    for within in ("x y", "x y z w"):
        path.write_text(f"+\t(S (A b) (A c) (B d))\t{within}\n")
        wanted = rf"brackets within .*, or 3, got {len(within.split())}"
        with pytest.raises(ValueError, match=wanted):
            parse.read([path])


def test_bad_files(tmp_path: Path, capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    path = tmp_path / "bad.tsv"
    for content, message in (
        (b"", "DATA: expected lines of a label, a tab and an expression, got"),
        (b"\n\n", "DATA: expected lines of a label"),
        (b"1 [MAX 1 2]\n", "line 1: expected a label, a tab and an expression, got '1 [MAX 1 2]'"),
        (b"\t[MAX 1 2]\n", "line 1: expected a label, a tab and an expression"),
        (b"2\t[MAX 1 2]\n\n2\t[MAX 1\n", "line 3: expected an expression such as"),
        (b"2\t[MAX 1 2]\n1\t[MAX 1  2 ]\n", "line 2: expected one label for '[MAX 1 2]', got '2'"),
        (b"2\t[MAX 1 2]\n\xff\t3\n", "expected text in UTF-8, got"),
        (b"2\t[MAX 1 2]\n", "expected at least 10 different expressions"),
        (b"".join(b"1\t[MAX 1 1 %d]\n" % k for k in range(20)), "at least two labels, got '1'"),
    ):
        path.write_bytes(content)
        assert message in fails(capsys, "train", "parse", path)
    assert "DATA: expected a file, got the folder" in fails(capsys, "train", "parse", tmp_path)
    assert "DATA: expected a file, found none at" in fails(
        capsys, "train", "parse", tmp_path / "none.tsv"
    )
    path.write_text("12\t[MAX 1 2]\n")
    error = fails(capsys, "evaluate", folder, path)
    assert "DATA: expected labels that the model knows, '0, 1, 2," in error
    assert error.endswith("got '12'")
    path.write_text("2\t[ADD 1 2]\n")
    assert "labels that the model was trained on, got 'ADD' in '[ADD 1 2]'" in fails(
        capsys, "evaluate", folder, path
    )


def test_bad_inputs(capsys: pytest.CaptureFixture[str], folder: Path, tmp_path: Path) -> None:
    assert "INPUT: expected texts, or -" in fails(capsys, "predict", folder)
    assert "INPUT 2: expected an expression such as" in fails(
        capsys, "predict", folder, "[MAX 1 2]", "[MAX 1"
    )
    assert "got 'ADD' in '[ADD 1 2]'" in fails(capsys, "predict", folder, "[ADD 1 2]")
    empty = tmp_path / "empty"
    empty.write_text("\n")
    assert "expected lines with expressions" in fails(capsys, "predict", folder, empty)
    large = "[MAX " + " ".join("1" for _ in range(200)) + "]"
    assert "--plot: expected a first expression of at most 120 nodes, got 201" in fails(
        capsys, "predict", folder, large, "--plot", tmp_path / "a.png"
    )


def test_bad_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = file_of(tmp_path / "few.tsv", 30)
    assert "--max-depth: expected no such option with DATA" in fails(
        capsys, "train", "parse", path, "--max-depth", 3
    )
    assert "--held-out takes" in fails(capsys, "train", "parse", path, "--held-out", 0.5)
    assert "--held-out takes" in fails(capsys, "train", "parse", path, "--held-out", 0.001)
    assert "--children: expected 0 with --model lstm" in fails(
        capsys, "train", "parse", "--model", "lstm", "--children", 2
    )
    assert "expected at most 2 arguments (--children)" in fails(
        capsys, "train", "parse", path, "--children", 2, "--epochs", 1
    )
    assert "--plot: expected a name that ends in .png" in fails(
        capsys, "train", "parse", "--plot", tmp_path / "a.jpg"
    )
    where = tmp_path / "m"
    assert "--max-args: expected at least 2" in fails(
        capsys, "train", "parse", "--max-args", 1, "--save", where
    )
    assert not where.exists()


@pytest.mark.parametrize("model", ["tree", "lstm"])
def test_values_within_expressions_are_targets(model: str) -> None:
    options = ParseOptions(**SMALL, model=model)
    made = [listops.read("[MAX 2 [MIN 4 3]]"), listops.read("7")]
    known = sorted({t for e in made for t in e.tokens})
    parser = parse.Parser(options, known, [str(k) for k in range(10)], listops=True)
    x, target, third = parser._data(parse.Examples(made, ["3", "7"]))
    rows = [parser.tokens[k] for k in x.rows]
    seen = [(t, int(y)) for t, y, w in zip(rows, target, third["weights"]) if w]
    if model == "tree":
        assert seen == [("[MAX", 3), ("[MIN", 3), ("7", 7)]
        assert isinstance(x, ost.Trees)
    else:
        assert seen == [("]", 3), ("]", 3), ("7", 7)]
        assert rows == ["[MAX", "2", "[MIN", "4", "3", "]", "]", "7"]


@pytest.mark.parametrize("model", ["tree", "lstm"])
def test_values_within_expressions_teach_the_whole(model: str) -> None:
    """Of MAX and MIN alone, where few expressions are enough."""
    made = listops.generate(2500, max_args=3, max_length=30)
    made = [e for e in made if not {"[SM", "[MED"} & set(e.labels)]
    whole = parse.Examples(made, [str(listops.value(e)[0]) for e in made])
    options = ParseOptions(model=model, hidden=24, epochs=10, rate=0.02, batch=32)
    known = sorted({t for e in made for t in e.tokens})
    parser = parse.Parser(options, known, sorted(set(whole.labels)), listops=True)
    test, valid, rest = whole.cut(len(made) // 10, len(made) // 5)
    assert len(rest) > 300
    history = parser.fit(rest, valid, lambda line: None)
    assert history.rows[-1]["loss"] < 0.5 * history.rows[0]["loss"]
    found = parser.probabilities(test.expressions).argmax(1)
    right = float((found == parser.targets(test.labels)).mean())
    assert right > (0.8 if model == "tree" else 0.45)


@pytest.mark.parametrize("name", ["options", "tokens", "classes", "listops", "size", "weights"])
def test_damaged_models(
    name: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors, text = safetensors.load(folder / "model.safetensors")
    facts = json.loads(text["ostinato"])
    if name == "size":
        facts["options"]["hidden"] = 10**9  # which nothing allocates
    elif name == "weights":
        tensors["tree.bias"] = tensors["tree.bias"] * np.nan
    elif name == "options":
        facts["options"]["model"] = "forest"
    elif name == "tokens":
        facts["tokens"][0] = facts["tokens"][1]
    else:
        facts[name] = "yes" if name == "listops" else []
    safetensors.save(tmp_path / "model.safetensors", tensors, {"ostinato": json.dumps(facts)})
    error = fails(capsys, "predict", tmp_path, "[MAX 1 2]")
    assert error.startswith("ostinato: DIR: expected a model")
    whole = (folder / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    assert fails(capsys, "predict", tmp_path, "[MAX 1 2]").startswith("ostinato: ")


def test_generated_words_are_shown_safely(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, where = tmp_path / "own.tsv", tmp_path / "m"
    lines = [f"a\x1b[2J\t[f x{k} $y]\n" if k % 2 else f"b\t[f x{k} z]\n" for k in range(40)]
    path.write_text("".join(lines))
    small = ("--hidden", 4, "--epochs", 1, "--save", where)
    assert main(["train", "parse", str(path), *map(str, small)]) == 0
    pytest.importorskip("matplotlib")
    assert main(["predict", str(where), "[f x1 $y]", "--plot", str(tmp_path / "a.png")]) == 0
    assert "\x1b" not in capsys.readouterr().out


def test_the_model_is_saved_before_it_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(parse, "_measured", interrupted)
    path = file_of(tmp_path / "few.tsv", 30)
    assert (
        main(["train", "parse", str(path), "--epochs", "1", "--save", str(tmp_path / "m")]) == 130
    )
    assert parse.load(tmp_path / "m").options.epochs == 1


def test_predict_reads_lines(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = io.TextIOWrapper(io.BytesIO(b"[MAX 1 2]\n\n[MIN 3 4]\n"))
    monkeypatch.setattr("sys.stdin", lines)
    assert main(["predict", str(folder), "-", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["task"] == "parse"
    assert [one["value"] for one in found["predictions"]] == ["2", "3"]


def test_lines_of_the_standard_input_are_no_files(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("3").write_text("[MAX 1 2]\n")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"3\n")))
    assert main(["predict", str(folder), "3", "-", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["predictions"]
    assert [one["expression"] for one in found] == ["[MAX 1 2]", "3"]


@pytest.mark.parametrize("text", ["1" * 300, "1 " * 200, "."])
def test_an_expression_is_not_looked_for_on_the_disk(
    text: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = fails(capsys, "predict", folder, text)
    assert re.search(r"^ostinato: INPUT.*: expected (labels|one expression)", line)


@pytest.mark.parametrize("name", ["a.json", "a.csv", "a"])
def test_names_of_results(
    name: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = fails(capsys, "predict", folder, "[ADD 1", "--out", tmp_path / name)
    assert "--out: expected a name that ends in .tsv or .txt, got" in line  # and not the input
    assert not list(tmp_path.iterdir())


def test_unknown_labels_are_called_inputs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "INPUT: expected labels that the model was trained on, got 'none.txt'" in fails(
        capsys, "predict", folder, "none.txt"
    )
