"""Write targets, figures and pictures from a result of run.py.

Run ``python benchmarks/report.py FILE.json``; with ``--page performance-avx2`` it writes the page
of another machine.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

DOCS = Path(__file__).parent.parent / "docs"
MAIN_PAGE = "performance"
# Where nothing is said of how the figures were measured.
SHARED = "The machine is shared: read the ratios, and the shares of the peak."
NOISE = 0.97  # a point counts as lost below this share of the fastest peer's speed
Row = dict[str, Any]


def geometric_mean(values: Iterable[float]) -> float:
    """NaN for nothing."""
    v = list(values)
    return float(np.exp(np.mean(np.log(v)))) if v else float("nan")


def _share(cases: list[Row], mode: str, keep: Callable[[Row], bool]) -> float:
    shares = [c["of_peak"] for c in cases if c["mode"] == mode and c["batch"] >= 16 and keep(c)]
    return float(np.median(shares)) if shares else float("nan")


def _mean(cases: list[Row], peer: str, cell: str | None, mode: str) -> float:
    chosen = [
        c
        for c in cases
        if c["mode"] == mode and (cell is None or c["cell"] == cell) and peer in c["ratio"]
    ]
    return geometric_mean(c["ratio"][peer] for c in chosen)


def _worst(rows: list[Row], peer: str, keep: Callable[[Row], bool] = lambda r: True) -> float:
    return min(
        (r["ratio"][peer] for r in rows if peer in r["ratio"] and keep(r)), default=float("nan")
    )


def lost(cases: list[Row]) -> list[str]:
    """Return the points where a peer is faster, beyond the noise.

    Name, peer, our speed over its.
    """
    out = []
    for c in cases:
        peer, ratio = min(c["ratio"].items(), key=lambda item: item[1], default=("", np.inf))
        if ratio < NOISE:
            out.append(f"{c['name']} ({peer} {ratio:.2f}x)")
    return out


def heavier(cases: list[Row]) -> list[str]:
    """Return the training steps whose memory peak is above torch's, with both."""
    slack = 1 << 20  # what the allocator rounds up
    return [
        f"{c['name']} ({c['memory']['ostinato'] / 1e6:.0f} MB to {c['memory']['torch'] / 1e6:.0f})"
        for c in cases
        if c["mode"] == "train"
        and "torch" in c["memory"]
        and c["memory"]["ostinato"] > c["memory"]["torch"] + slack
    ]


class _Targets(list[tuple[str, float, str, bool]]):
    """Name, target, figure as text, and whether it is met."""

    def at_least(self, name: str, target: float, value: float, unit: str = "x") -> None:
        """Append a figure that should reach its target."""
        text = f"{100 * value:.0f}%" if unit == "%" else f"{value:.2f}x"
        self.append((name, target, text, bool(value >= target - 0.005)))


def targets(figures: Row) -> list[tuple[str, float, str, bool]]:
    """Return name, target, figure as text, and whether it is met."""
    out, x = _Targets(), figures.get("extras", {})
    _grid_targets(out, figures["cases"])
    if x:
        _stream_targets(out, x)
        _precision_targets(out, x)
        _machine_targets(out, x)
    return out


def _grid_targets(out: _Targets, cases: list[Row]) -> None:
    """Append the targets of the grid: shares of the peak, means over peers, memory."""
    for mode, at128, large in (("infer", 0.80, 0.88), ("train", 0.75, 0.83)):
        out.at_least(
            f"{mode}, B >= 16, H = 128: share of peak",
            at128,
            _share(cases, mode, lambda c: c["hidden"] == 128),
            "%",
        )
        out.at_least(
            f"{mode}, B >= 16, H >= 256: share of peak",
            large,
            _share(cases, mode, lambda c: c["hidden"] >= 256),
            "%",
        )
    means = {
        ("torch", "lstm"): (1.4, 1.7),
        ("torch", "gru"): (2.7, 4.0),
        ("torch", "rnn"): (2.5, 4.5),
        ("onnxruntime", "lstm"): (1.2, None),
        ("onnxruntime", None): (1.4, None),
    }
    for (peer, cell), wanted in means.items():
        for mode, target in zip(("infer", "train"), wanted):
            if target:
                mean = _mean(cases, peer, cell, mode)
                out.at_least(
                    f"{cell or 'all cells'}, {mode}: geometric mean over {peer}", target, mean
                )
    points = sum(bool(c["ratio"]) for c in cases)
    out.append(
        (
            f"not slower than the fastest peer at {points} points: lost",
            0,
            str(len(lost(cases))),
            not lost(cases),
        )
    )
    out.append(
        (
            "memory peak of a training step above torch's: points",
            0,
            str(len(heavier(cases))),
            not heavier(cases),
        )
    )


def _stream_targets(out: _Targets, x: Row) -> None:
    """Append the targets of one sequence and of a stream step."""
    for threads, target in ((1, 0.85), (2, 0.75)):
        shares = [r["share"] for r in x["one_sequence"] if r["threads"] == threads]
        out.at_least(
            f"B = 1, weights in L2, {threads} threads: share of read bandwidth",
            target,
            float(np.median(shares)),
            "%",
        )
    step = x["step"][0]["ratio"]
    bf16 = step["ostinato:precision=bfloat16"]  # how many times faster float32 is, so below 1
    if "onnxruntime" in step:
        out.at_least("stream step, float32, over ONNX Runtime's run", 3, step["onnxruntime"])
        out.at_least(
            "stream step, bfloat16, over ONNX Runtime's run", 4, step["onnxruntime"] / bf16
        )
    if "torch" in step:
        out.at_least("stream step, float32, over a torch call", 20, step["torch"])


def _precision_targets(out: _Targets, x: Row) -> None:
    """Append the targets of bfloat16 and int8."""
    low, f32 = x["bfloat16"], "ostinato:precision=float32"
    infer = [r for r in low if r["mode"] == "infer"]
    out.at_least(
        "bfloat16 over our float32, inference, B >= 32: median",
        1.7,
        float(np.median([r["ratio"][f32] for r in infer if r["batch"] >= 32])),
    )
    out.at_least(
        "bfloat16 over our float32, inference, B = 1: median",
        1.8,
        float(np.median([r["ratio"][f32] for r in infer if r["batch"] == 1])),
    )
    out.at_least(
        "bfloat16 over our float32, training: median",
        1.4,
        float(np.median([r["ratio"][f32] for r in low if r["mode"] == "train"])),
    )
    out.at_least(
        "bfloat16 over torch's, LSTM, B >= 32: worst",
        1.05,
        _worst(low, "torch", lambda r: r["cell"] == "lstm" and r["batch"] >= 32),
    )
    out.at_least(
        "bfloat16 over torch's, GRU, RNN, B <= 4: worst",
        1.3,
        _worst(low, "torch", lambda r: r["cell"] != "lstm" or r["batch"] <= 4),
    )
    out.at_least(
        "int8 over our bfloat16, B = 1, H >= 512: median",
        1.5,
        float(np.median([r["ratio"]["ostinato:precision=bfloat16"] for r in x["int8"]])),
    )


def _machine_targets(out: _Targets, x: Row) -> None:
    """Append the targets of threads, a busy machine, the import and the wheel."""
    one = "ostinato:threads=1"
    both = [r["ratio"][one] for r in x["side_by_side"] if r["bidirectional"]]
    out.at_least(
        "two directions on two threads over one thread, B = 1: median", 1.8, float(np.median(both))
    )
    out.at_least("busy machine: two threads over one thread: worst", 0.9, _worst(x["busy"], one))
    spare = x["footprint"]
    out.append(
        (
            "import, ms after numpy",
            30,
            f"{1e3 * spare['import_seconds']:.0f}",
            spare["import_seconds"] <= 0.030,
        )
    )
    out.append(("wheel, MB", 3, f"{spare['wheel_bytes'] / 1e6:.1f}", spare["wheel_bytes"] < 3e6))


def targets_table(figures: Row) -> str:
    """Return the targets as Markdown, and the points that fall short by name."""
    lines = ["| what | target | measured | |", "|---|---|---|---|"]
    for name, target, text, met in targets(figures):
        wanted = (
            f"{100 * target:.0f}%"
            if text.endswith("%")
            else f"{target:g}x"
            if text.endswith("x")
            else f"{target:g}"
        )
        lines.append(f"| {name} | {wanted} | {text} | {'met' if met else '**short**'} |")
    for title, names in (
        ("Slower than a peer", lost(figures["cases"])),
        ("More memory than torch", heavier(figures["cases"])),
    ):
        if names:
            lines += ["", f"{title}: {', '.join(names)}."]
    return "\n".join(lines)


def grid(figures: Row) -> str:
    """Return every point of the grid as Markdown: share of peak and ratios."""
    peers = [
        p
        for p in ("torch", "onnxruntime", "keras", "jax")
        if any(p in c["ratio"] for c in figures["cases"])
    ]
    lines = [
        "| case | T | of peak | " + " | ".join(f"x {p}" for p in peers) + " |",
        "|---" * (3 + len(peers)) + "|",
    ]
    for c in figures["cases"]:
        cells = " | ".join(f"{c['ratio'][p]:.2f}" if p in c["ratio"] else "-" for p in peers)
        lines.append(f"| {c['name']} | {c['steps']} | {100 * c['of_peak']:.0f}% | {cells} |")
    return "\n".join(lines)


GROUPS = {
    "step": "one step of a stream",
    "bfloat16": "bfloat16",
    "int8": "int8",
    "side_by_side": "two directions, or a stack of layers",
    "float64": "float64",
    "variants": "variants, and the plain cell",
    "projected": "projected, and not",
    "busy": "one core is busy",
}


OTHERS = """## Precisions, streams, directions, a busy machine

In the names, `both` are two directions, `L2` is a stack of two layers, and a share above 100% of
the peak of float32 is that of products of fewer bits. "One core is busy" is beside a program that
computes without end on one of the cores.

"""


def others(figures: Row) -> str:
    """Return the section of the extras as Markdown, row by row; "" if there are none."""
    if "extras" not in figures:
        return ""
    lines = ["| what | case | of peak | how many times faster than |", "|---|---|---|---|"]
    for group, rows in figures["extras"].items():
        for r in rows if isinstance(rows, list) else ():
            if "ratio" in r:
                ratios = ", ".join(f"{named(n)}: {v:.2f}" for n, v in r["ratio"].items()) or "-"
                share = f"{100 * r['of_peak']:.0f}%"
                lines.append(f"| {GROUPS[group]} | {r['name']} | {share} | {ratios} |")
    return OTHERS + "\n".join(lines) + "\n"


def named(contender: str) -> str:
    """Return what a reader calls a contender."""
    name, _, option = contender.partition(":")
    key, _, value = option.partition("=")
    if key == "precision":
        return f"ours in {value}"
    if key == "threads":
        return f"ours on {value} thread{'' if value == '1' else 's'}"
    return name


CELLS = ("lstm", "gru", "rnn")


def pictures(figures: Row, folder: Path, page: str) -> None:
    """Draw a heat map of the speed-up over the fastest peer, and a roofline, of a page."""
    import matplotlib as mpl

    mpl.use("Agg")
    cases = [c for c in figures["cases"] if c["ratio"]]
    _heat_map(cases, folder / f"{page}-heat.png")
    _roofline(cases, figures["threads"], folder / f"{page}-roofline.png")


def _heat_map(cases: list[Row], path: Path) -> None:
    """Draw how many times faster than the fastest peer each point of the grid is."""
    import matplotlib.pyplot as plt

    batches, hidden = (sorted({c[k] for c in cases}) for k in ("batch", "hidden"))
    figure, axes = plt.subplots(2, 3, figsize=(13, 7), layout="constrained", squeeze=False)
    for row, mode in zip(axes, ("infer", "train")):
        for axis, cell in zip(row, CELLS):
            values = np.full((len(batches), len(hidden)), np.nan)
            for c in cases:
                if c["cell"] == cell and c["mode"] == mode:
                    values[batches.index(c["batch"]), hidden.index(c["hidden"])] = min(
                        c["ratio"].values()
                    )
            # As fast as the fastest peer is white, and slower ones are red: blue and red differ for
            # all eyes.
            image = axis.imshow(
                np.log2(values), cmap="RdBu", vmin=-3, vmax=3, origin="lower", aspect="auto"
            )
            for (i, k), v in np.ndenumerate(values):
                if np.isfinite(v):
                    axis.text(
                        k,
                        i,
                        f"{v:.1f}" if v < 10 else f"{v:.0f}",
                        ha="center",
                        va="center",
                        fontsize=11,
                        color="white" if abs(np.log2(v)) > 2 else "black",
                    )
            axis.set(
                title=f"{cell.upper()}, {mode}",
                xlabel="H",
                ylabel="B",
                xticks=range(len(hidden)),
                yticks=range(len(batches)),
            )
            axis.set_xticklabels(hidden)
            axis.set_yticklabels(batches)
    bar = figure.colorbar(image, ax=axes, label="times as fast as the fastest peer")
    bar.set_ticks(range(-3, 4), labels=["1/8", "1/4", "1/2", "1", "2", "4", "8"])
    figure.savefig(path, dpi=80)
    plt.close(figure)


def _roofline(cases: list[Row], threads: int, path: Path) -> None:
    """Draw the rate of inference in float32 by batch size below its roofline."""
    import matplotlib.pyplot as plt
    from matplotlib.ticker import MaxNLocator

    figure, axis = plt.subplots(figsize=(8, 5), layout="constrained")
    peak = float(np.median([c["peak_gflops"] for c in cases])) * threads
    low = (
        0.5 * 113 / 117 * peak
    )  # B = 1 from L2: 113 GB/s at two operations every four bytes, beside 117 GFLOP/s
    rows = np.logspace(0, np.log2(128), 60, base=2)
    recurrent = np.minimum(peak, low * rows)
    axis.loglog(
        rows,
        2 / (1 / peak + 1 / recurrent),
        color="black",
        label="roofline: half ahead of time, half from L2",
    )
    for cell, mark in zip(CELLS, "osD"):
        points = [
            c
            for c in cases
            if c["cell"] == cell and c["mode"] == "infer" and c["hidden"] in (128, 256)
        ]
        axis.loglog(
            [c["batch"] for c in points],
            [c["gflops"] for c in points],
            mark,
            alpha=0.7,
            label=f"{cell.upper()}, H = 128, 256",
        )
    axis.set(
        xlabel="B: rows that use a weight after it is read",
        ylabel="GFLOP/s",
        title="Inference in float32 and the roofline",
    )
    batches = sorted({c["batch"] for c in cases})
    axis.set_xticks(batches, labels=[str(b) for b in batches])
    axis.minorticks_off()  # which have powers of ten as labels
    axis.yaxis.set_major_locator(MaxNLocator(10))
    axis.yaxis.set_major_formatter("{x:.0f}")
    axis.legend()
    figure.savefig(path, dpi=80)
    plt.close(figure)


def write(figures: Row, page: str = MAIN_PAGE) -> None:
    """Print the targets; write a page of docs and its pictures."""
    table, versions = (
        targets_table(figures),
        ", ".join(f"{k} {v}" for k, v in figures["versions"].items()),
    )
    print(table)
    machine = figures["machine"]
    profile, use = ((DOCS / f"{page}-{part}.md") for part in ("profile", "use"))
    chosen = machine["kernels"]["chosen"]
    title = "Performance" if page == MAIN_PAGE else f"Performance with {chosen} kernels"
    text = f"""# {title}

`python benchmarks/report.py` writes this page; [benchmarks/README.md](../benchmarks/README.md)
describes the method. Machine: {machine["cpu"]}, {figures["threads"]} threads, kernel set
{chosen};
{versions}.
`lstm-train-B32-H256` is a training step of an LSTM of 256 units (and as many inputs) with 32
sequences, `infer` a call without gradients. Rows are float32 with T = 100 unless they say
otherwise; T is smaller where a case would take seconds. The peak is that of multiplying and adding
on all threads, in float32 or, where a row says so, in float64; it is measured in the same run.
{figures.get("note", SHARED)}

## Targets

{table}

![How many times faster than the fastest peer]({page}-heat.png)

![Roofline]({page}-roofline.png)

{use.read_text() if use.exists() else ""}
{profile.read_text() if profile.exists() else ""}
{others(figures)}
## The grid

The columns say how many times faster ostinato is than each peer. A training step counts as three
forward passes.

{grid(figures)}
"""
    (DOCS / f"{page}.md").write_text(text)
    pictures(figures, DOCS, page)


def main() -> None:
    """Write the page of a file of results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--page", default=MAIN_PAGE, help="the page of docs, without .md")
    args = parser.parse_args()
    write(json.loads(args.file.read_text()), args.page)


if __name__ == "__main__":
    main()
