"""The benchmark's machinery, and its targets on made-up figures."""

from __future__ import annotations

import importlib.util
import sys
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ostinato.tasks import bench
from ostinato.tasks.contenders import CONTENDERS, Case, arrays, make, settings_of

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def report(monkeypatch: pytest.MonkeyPatch) -> Any:
    if not BENCHMARKS.exists():
        pytest.skip("no benchmarks beside the tests")
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    sys.modules.pop("report", None)
    return importlib.import_module("report")


def test_a_case_counts_its_work() -> None:
    assert Case("lstm", "infer", 2, 16, 5).flops == 2 * 4 * 16 * 32 * 5 * 2
    assert Case("gru", "train", 2, 16, 5, 8).flops == 3 * 2 * 3 * 16 * 24 * 5 * 2
    assert (
        Case("rnn", "infer", 1, 16, 5, layers=2, bidirectional=True).flops
        == 2 * 2 * 16 * (32 + 48) * 5
    )
    assert (
        Case("gru", "infer", 1, 8, variant="reset_before", precision="bfloat16").name
        == "gru-infer-B1-H8-reset_before-bfloat16"
    )
    assert settings_of("ostinato:threads=1,precision=int8") == {"threads": "1", "precision": "int8"}
    assert settings_of("torch") == {}
    assert len(bench.FULL) == 216
    assert all(c.flops < 1.05 * bench.LONGEST or c.steps == 10 for c in bench.FULL)


@pytest.mark.parametrize("variant", ["", "peephole", "layer_norm", "reset_before"])
@pytest.mark.parametrize("precision", ["float32", "float64", "bfloat16"])
def test_our_contender_runs_every_case(precision: str, variant: str) -> None:
    cell = "gru" if variant == "reset_before" else "lstm"
    case = Case(cell, "train", 3, 8, 4, precision=precision, variant=variant)
    answers = make("ostinato", case, 1)()
    assert set(answers) == {"y", "dx", "weight_ih", "weight_hh", "bias_ih", "bias_hh"}
    assert answers["y"].dtype == case.dtype
    assert np.array_equal(make("ostinato:threads=2", case, 1)()["y"], answers["y"])


def test_a_projected_case() -> None:
    """P is H / 2: the answers hold the projection's gradient, and its products are counted."""
    case = Case("lstm", "train", 3, 8, 4, variant="projected")
    answers = make("ostinato", case, 1)()
    assert answers["y"].shape == (4, 3, 4)
    assert answers["weight_hr"].shape == (4, 8)
    assert (
        Case("lstm", "infer", 3, 8, 4, variant="projected").flops
        == 2 * (4 * 8 * 12 + 4 * 8) * 4 * 3
    )


def test_a_stream_beside_its_whole_sequence() -> None:
    case = Case("lstm", "step", 1, 16, 1, 4)
    step = make("ostinato", case, 1)
    first = step()["y"].copy()
    assert not np.array_equal(step()["y"], first)
    assert arrays(case)["x"].shape == (1, 1, 4)


def test_answers_of_another_shape_are_no_answers() -> None:
    """They were spread over ours."""
    case, y = Case("gru", "infer", 2, 4, 3), np.ones((3, 2, 4))
    assert bench._compare({"y": y}, {"y": y}, "torch", case) == 0
    with pytest.raises(ValueError, match=r"expected y of torch of shape \(3, 2, 4\), got"):
        bench._compare({"y": y}, {"y": y[..., :1]}, "torch", case)


PEERS = [
    p
    for p, modules in {
        "torch": ["torch"],
        "onnxruntime": ["onnxruntime", "onnx"],
        "keras": ["tensorflow"],
        "jax": ["jax"],
    }.items()
    if all(importlib.util.find_spec(m) for m in modules)
]


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        (name, mode)
        for name in ("ostinato", "torch", "onnxruntime")
        for mode in ("infer", "train")
        if mode in CONTENDERS[name][2] and name in ("ostinato", *PEERS)
    ],
)
def test_a_contender_keeps_no_weights_of_the_case(name: str, mode: str) -> None:
    """They would count as memory of the layer, which has its own."""
    case = Case("gru", mode, 2, 8, 5)
    a = arrays(case)
    kept = [weakref.ref(a[n]) for n in case.weights]
    run = CONTENDERS[name][0](case, a, 1, {})
    del a
    run()
    assert [ref() for ref in kept] == [None] * len(case.weights)


@pytest.mark.skipif(not PEERS, reason="no peer is installed")
def test_peers_give_the_same_answers() -> None:
    cases = [Case(c, m, 2, 8, 5) for c in ("lstm", "gru", "rnn") for m in ("infer", "train")]
    figures = bench.run(cases, rounds=1, peers=PEERS)
    for row in figures["cases"]:
        assert set(row["ratio"]) == {
            p for p in PEERS if row["mode"] == "infer" or p != "onnxruntime"
        }
        assert set(row["memory"]) == {"ostinato", *row["ratio"]}


def test_a_contender_that_fails_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    c = bench.Contender("nobody")
    try:
        with pytest.raises(
            ChildProcessError,
            match=r"nobody: the contender's process ended with status 1: (.|\n)*KeyError",
        ):
            c.ask(
                do="prepare",
                case={"cell": "gru", "mode": "infer", "batch": 1, "hidden": 2},
                threads=1,
                answers="x",
            )
    finally:
        c.close()


def figures(ratio: float, share: float, memory: int) -> dict[str, Any]:
    rows = [
        {
            **{
                "cell": c,
                "mode": m,
                "batch": b,
                "hidden": h,
                "name": f"{c}-{m}-B{b}-H{h}",
                "steps": 100,
                "of_peak": share,
            },
            **{
                "ratio": {"torch": ratio, "jax": 9.0},
                "memory": {"ostinato": memory, "torch": 50_000_000},
                "peak_gflops": 100.0,
            },
            "gflops": 200 * share,
        }
        for c in ("lstm", "gru", "rnn")
        for m in ("infer", "train")
        for b in (1, 16)
        for h in (128, 256)
    ]
    return {
        "cases": rows,
        "threads": 2,
        "versions": {"torch": "2"},
        "machine": {"cpu": "a", "kernels": {"chosen": "b"}},
    }


def test_targets(
    report: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    good, bad = figures(5.0, 0.9, 40_000_000), figures(0.9, 0.5, 90_000_000)
    assert all(met for name, _, _, met in report.targets(good) if "onnxruntime" not in name)
    assert not any(met for _, _, _, met in report.targets(bad))
    assert report.lost(good["cases"]) == []
    assert len(report.lost(bad["cases"])) == 24
    assert "lstm-infer-B1-H128 (torch 0.90x)" in report.targets_table(bad)
    assert "lstm-train-B1-H128 (90 MB to 50)" in report.targets_table(bad)
    monkeypatch.setattr(report, "DOCS", tmp_path)
    report.write(good)
    assert (
        "| train, B >= 16, H = 128: share of peak | 75% | 90% | met |"
        in (tmp_path / "performance.md").read_text()
    )
    assert {p.name for p in tmp_path.glob("*.png")} == {
        "performance-heat.png",
        "performance-roofline.png",
    }
    assert "geometric mean" in capsys.readouterr().out
    report.write(bad, "performance-other")
    assert (
        (tmp_path / "performance-other.md").read_text().startswith("# Performance with b kernels\n")
    )
    assert (tmp_path / "performance-other-heat.png").exists()
