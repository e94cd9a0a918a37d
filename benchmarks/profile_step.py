"""Where the time of the main job's training step goes.

Run ``python benchmarks/profile_step.py [HIDDEN ...]``.

Writes docs/performance-profile.md, which docs/performance.md takes in.
"""

from __future__ import annotations

import cProfile
import sys
from pathlib import Path

import ostinato as ost
from ostinato.tasks import corpora, text

KERNELS = ("recurrent kernels: forward", "recurrent kernels: backward")
KINDS = {  # native calls by what they are for
    KERNELS[0]: (),
    KERNELS[1]: (),
    "packing of the weights": ("_pack",),
    "output layer": ("ostinato._core.forward>", "ostinato._core.run_backward>"),
    "softmax cross entropy": ("softmax_cross_entropy_",),
    "embedding": ("embedding_",),
    "optimiser and clipping": ("_core.adam_runs_", "_core.square_sum"),
}


def profile(hidden: int) -> dict[str, float]:
    """Seconds a step by kind."""
    words = corpora.shakespeare()[:600_000]
    chars = text.CharModel.fresh("".join(sorted(set(words))), text.TextOptions(hidden=hidden))
    trainer = ost.Trainer(
        chars.model,
        ost.losses.CrossEntropy(),
        ost.optim.AdamW(1e-3, betas=(0.9, 0.99)),
        clip_norm=1.0,
    )
    loader = ost.data.StreamLoader(chars.encode(words), text.BATCH, text.WINDOW)
    trainer.fit(loader, steps=10, progress=False)
    watch = cProfile.Profile()
    watch.enable()
    trainer.fit(loader, steps=100, progress=False)
    watch.disable()
    seconds = dict.fromkeys([*KINDS, "Python and NumPy"], 0.0)
    for entry in watch.getstats():
        name = entry.code if isinstance(entry.code, str) else entry.code.co_name
        if not isinstance(entry.code, str):
            # The time of native calls with keywords is their caller's.
            name = {"_forward": KERNELS[0], "_through_tape": KERNELS[1]}.get(name, name)
            if name in KERNELS:
                seconds[name] += entry.inlinetime / 100
                continue
        kind = next(
            (k for k, marks in KINDS.items() if any(m in name for m in marks)), "Python and NumPy"
        )
        seconds[kind] += entry.inlinetime / 100
    return seconds


def main(sizes: list[int]) -> None:
    """Print and write the table."""
    tables = {h: profile(h) for h in sizes}
    about = (
        "The table has the shares of a training step of `python -m ostinato train text` (batch "
        "32, windows of\n"
        "64 characters), by profile:"
    )
    lines = ["## The main job's training step", "", about, ""]
    lines += [
        "| what | " + " | ".join(f"H = {h}" for h in sizes) + " |",
        "|---" * (1 + len(sizes)) + "|",
    ]
    for kind in next(iter(tables.values())):
        lines.append(
            f"| {kind} | "
            + " | ".join(f"{100 * t[kind] / sum(t.values()):.1f}%" for t in tables.values())
            + " |"
        )
    rest = [
        1 - sum(v for k, v in t.items() if k.startswith("recurrent")) / sum(t.values())
        for t in tables.values()
    ]
    lines += [
        "",
        "Outside the recurrent kernels: "
        + ", ".join(f"{100 * r:.1f}% at H = {h}" for r, h in zip(rest, sizes))
        + ".",
        "",
    ]
    print("\n".join(lines))
    (Path(__file__).parent.parent / "docs" / "performance-profile.md").write_text(
        "\n".join(lines) + "\n"
    )


if __name__ == "__main__":
    main([int(a) for a in sys.argv[1:]] or [320, 512])
