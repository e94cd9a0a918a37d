#!/usr/bin/env python3
"""Count the instructions that a warp executes in a step of the kernels of all steps.

    tools/steps.py            fails where a step takes more than csrc/cuda/steps.json says
    tools/steps.py --keep     keeps the counts of today
    tools/steps.py --kinds    shows what the instructions are
    tools/steps.py NAME ...   only the cases whose names contain one of these

Needs nvcc and nvdisasm (of the same toolkit, or of the wheel nvidia-cuda-nvdisasm), no GPU. A case
is one kernel, compiled for sm_90, and the work of a step: so many matrix instructions, bytes asked
for, special functions, words posted, other stores, asynchronous copies, reads of shared memory,
sums given to peers, asynchronous stores to a cluster and waits for those of others. The step is the
loop with the matrix instructions. Of the ways through it that do all of that work the shortest is
counted, once through every loop inside: what was asked for is there, every row takes part, and
every branch goes one way for the whole warp.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parent.parent
KEPT = ROOT / "csrc" / "cuda" / "steps.json"

# The work of a step: what an instruction adds to each of these.
WORK = (
    "matrix",
    "asked",
    "functions",
    "posts",
    "stores",
    "copies",
    "reads",
    "gifts",
    "sends",
    "waits",
)

KINDS = {
    "matrix": r"HMMA",
    "words of others": r"(LDG|STG)\S*STRONG",
    "other memory": r"LDG|STG|LDC|ULDC|LDGSTS|LDGDEPBAR|DEPBAR|CCTL",
    "shared memory": r"LDS|STS|LDSM",
    "words to a cluster": r"STAS|SYNCS",
    "special functions": r"MUFU",
    "float arithmetic": r"FADD|FMUL|FFMA|FSEL|FMNMX|FCHK",
    "tests": r"ISETP|FSETP|PLOP3|P2R|R2P|UISETP|VOTE|UPLOP3",
    "branches": r"BRA|BSSY|BSYNC|BREAK|WARPSYNC|BMOV|EXIT|CALL|RET|NOP|YIELD|ENDCOLLECTIVE",
    "barriers": r"BAR|MEMBAR|ERRBAR|UCGABAR|FENCE",
    "shuffles": r"SHFL",
    "conversions": r"F2F|F2FP|PRMT|I2F|F2I|HADD2",
    "moves": r"MOV|UMOV|CS2R|S2R|S2UR|R2UR|SEL|USEL",
    "whole numbers": r"U?(IADD3|IMAD|LEA|SHF|LOP3)|IABS|IMNMX|VIADD|VIADDMNMX|VIMNMX",
}


@dataclass(frozen=True)
class Case:
    """A kernel, and the work of a step."""

    name: str
    kernel: str  # in C++
    work: dict[str, int]
    bound: int | None = None  # instructions that a step may take at most


@dataclass
class Instruction:
    """One line of the disassembly."""

    opcode: str
    guarded: bool  # by a predicate
    target: str = ""  # label that a branch goes to
    runs: bool = True  # not for no thread at all: such reads of shared memory only order others

    def work(self) -> tuple[int, ...]:
        """Return what it adds to each part of WORK."""
        op, strong = self.opcode, "STRONG" in self.opcode
        width = next((int(w) // 8 for w in re.findall(r"\.(64|128)\b", op)), 4)
        return (
            op.startswith("HMMA"),
            width * (op.startswith("LDG.") and strong),
            op.startswith("MUFU"),
            op.startswith("STG") and strong,
            op.startswith("STG") and not strong,
            op.startswith("LDGSTS") and self.runs,
            op.startswith("LDS") and self.runs,
            op.startswith("ST.E"),
            op.startswith("STAS"),
            op.startswith("SYNCS.PHASECHK"),
        )

    def kind(self) -> str:
        """Return the name of its kind."""
        return next(
            (k for k, p in KINDS.items() if re.match(rf"({p})(\.|$)", self.opcode)), "others"
        )


@dataclass
class Piece:
    """Instructions without a branch or a label between them."""

    instructions: list[Instruction] = field(default_factory=list)
    after: list[int] = field(default_factory=list)  # pieces that may follow

    def calls(self) -> bool:
        """Whether it calls a function: the slow ways of a division, which a step does not take."""
        return any(i.opcode.startswith("CALL") for i in self.instructions)


def parse(text: str) -> list[Piece]:
    """Return the pieces of one function, in order."""
    pieces, labels = [Piece()], {}
    for line in text.splitlines():
        if found := re.match(r"\s*(\.L_\S+):", line):
            if pieces[-1].instructions:
                pieces.append(Piece())
            labels[found[1]] = len(pieces) - 1
        elif found := re.match(r"\s*/\*[0-9a-f]+\*/\s+(@!?U?P\w+\s+)?([A-Z0-9_.]+)([^;]*);", line):
            target = re.search(r"`\((\.L_\w+)\)", found[3])
            jumps = found[2].startswith("BRA") and target is not None
            # A branch with a predicate among its operands is taken by some as well.
            guarded = found[1] is not None or (
                jumps and re.match(r"\s*!?U?P\d", found[3]) is not None
            )
            runs = (found[1] or "").strip() != "@!PT"
            label = target[1] if jumps and target else ""
            pieces[-1].instructions.append(Instruction(found[2], guarded, label, runs))
            if jumps or found[2].startswith(("EXIT", "RET")):
                pieces.append(Piece())
    for number, piece in enumerate(pieces):
        last = piece.instructions[-1] if piece.instructions else Instruction("NOP", guarded=False)
        ends = (
            last.opcode.startswith(("BRA", "EXIT", "RET"))
            and not last.guarded
            and last.opcode != "BRA.DIV"
        )
        if not ends and number + 1 < len(pieces):
            piece.after.append(number + 1)
        if (
            last.target and last.opcode != "BRA.DIV"
        ):  # those that have come apart there: no warp does
            piece.after.append(labels[last.target])
    return pieces


def back_edges(pieces: list[Piece]) -> list[tuple[int, int]]:
    """Return the branches (from, to) that close a loop."""
    found, done, open_ = [], {0}, [(0, iter(pieces[0].after))]
    path = {0}
    while open_:
        number, rest = open_[-1]
        to = next(rest, None)
        if to is None:
            path.discard(number)
            open_.pop()
        elif to in path:
            found.append((number, to))
        elif to not in done:
            done.add(to)
            path.add(to)
            open_.append((to, iter(pieces[to].after)))
    return found


def loop_of(pieces: list[Piece], backs: list[tuple[int, int]], head: int) -> set[int]:
    """Return the pieces of the loop that begins with a piece."""
    before: dict[int, list[int]] = {}
    for number, piece in enumerate(pieces):
        for to in piece.after:
            before.setdefault(to, []).append(number)
    inside, rest = {head}, [a for a, b in backs if b == head]
    while rest:
        number = rest.pop()
        if number not in inside:
            inside.add(number)
            rest += before.get(number, [])
    return inside


def step_loop(pieces: list[Piece]) -> tuple[int, set[int], list[tuple[int, int]]]:
    """Find the outermost loop with matrix instructions.

    Returns its first piece, all of its pieces, and the branches of the function that close a loop.
    """
    backs = back_edges(pieces)
    loops = {head: loop_of(pieces, backs, head) for _, head in backs}
    with_matrix = {
        head: inside
        for head, inside in loops.items()
        if any(i.opcode.startswith("HMMA") for n in inside for i in pieces[n].instructions)
    }
    if not with_matrix:
        raise ValueError("no loop has matrix instructions")
    head = max(with_matrix, key=lambda h: len(with_matrix[h]))
    return head, with_matrix[head], backs


Work = tuple[int, ...]


def in_order(head: int, after: dict[int, list[int]]) -> list[int]:
    """Return the pieces of a loop in an order in which each comes before those that follow it."""
    order: list[int] = []
    seen: set[int] = set()

    def visit(number: int) -> None:
        seen.add(number)
        for to in after[number]:
            if to not in seen:
                visit(to)
        order.append(number)

    sys.setrecursionlimit(10000)
    visit(head)
    return order[::-1]


@dataclass(frozen=True)
class Way:
    """A way from the beginning of a step, by its last piece."""

    length: int = 0
    last: int = -1
    before: Way | None = None

    def pieces(self) -> list[int]:
        """Return all pieces."""
        return [*self.before.pieces(), self.last] if self.before else []


def shortest(
    pieces: list[Piece], head: int, after: dict[int, list[int]], wanted: Work
) -> dict[int, dict[Work, Way]]:
    """Return for each piece, and each amount of work, the shortest way that ends with it."""
    ways: dict[int, dict[Work, Way]] = {head: {(0,) * len(WORK): Way()}}
    found: dict[int, dict[Work, Way]] = {}

    def keep(known: dict[Work, Way], work: Work, way: Way) -> None:
        if work not in known or way.length < known[work].length:
            known[work] = way

    for number in in_order(head, after):
        piece = pieces[number].instructions
        added = [sum(column) for column in zip((0,) * len(WORK), *(i.work() for i in piece))]
        found[number] = {}
        for before, way in ({} if pieces[number].calls() else ways.get(number, {})).items():
            done = [a + b for a, b in zip(before, added)]
            if (
                done[0] <= wanted[0]
            ):  # so many matrix instructions, and no more; at least the others
                now = (done[0], *map(min, done[1:], wanted[1:]))
                keep(found[number], now, Way(way.length + len(piece), number, way))
        for to in after[number]:
            for work, way in found[number].items():
                keep(ways.setdefault(to, {}), work, way)
    return found


def count(text: str, work: dict[str, int]) -> list[Instruction]:
    """Return the instructions of the shortest way through the step that does this work."""
    pieces = parse(text)
    head, inside, backs = step_loop(pieces)
    wanted = tuple(work.get(w, 0) for w in WORK)
    after = {
        n: [to for to in pieces[n].after if to in inside and (n, to) not in backs] for n in inside
    }
    found = shortest(pieces, head, after, wanted)
    ends = [found[a][wanted] for a, b in backs if b == head and wanted in found.get(a, {})]
    if not ends:
        most = max((work for ways in found.values() for work in ways), default=())
        wants, finds = dict(zip(WORK, wanted)), dict(zip(WORK, most))
        raise ValueError(f"no way through the step does the work {wants}; the most found: {finds}")
    way = min(ends, key=lambda w: w.length)
    return [i for n in way.pieces() for i in pieces[n].instructions]


def forward(name: str, kernel: str, bound: int | None = None, **work: int) -> Case:
    """Return a case of a forward pass."""
    return Case(name, f"PersistentOf<{kernel}, false>", {"asked": 64, "posts": 1} | work, bound)


def backward(name: str, kernel: str, bound: int | None = None, **work: int) -> Case:
    """Return a case of a backward pass of an LSTM."""
    work = {"functions": 2, "stores": 1, "copies": 6} | work
    return Case(name, f"BackwardPersistentOf<Lstm, {kernel}, false>", work, bound)


def clusters(name: str, kernel: str, bound: int | None = None, **work: int) -> Case:
    """Return a case of a kernel of clusters, in which a thread has one unit of one row."""
    return Case(name, kernel, work, bound)


def loop(name: str, kernel: str, bound: int | None = None, **work: int) -> Case:
    """Return a case of a block that runs all steps by itself, for a warp that has cells."""
    return Case(name, kernel, work, bound)


# Layers of 512 units and 16 rows. A thread asks for 2 bytes of each of its inputs and rows.
LSTM = {"matrix": 16, "functions": 10, "stores": 2}
BACKWARD = {"matrix": 32, "asked": 256, "posts": 1}
GIVING = BACKWARD | {"asked": 64, "gifts": 1}
SPLIT = {"matrix": 48, "asked": 128, "posts": 2, "gifts": 1}
CLUSTER = {"matrix": 16, "functions": 10, "stores": 2, "copies": 1, "sends": 4, "waits": 1}
OF_4 = CLUSTER | {"matrix": 8, "sends": 1}
OF_2, OF_4_SPLIT = OF_4 | {"matrix": 4}, OF_4 | {"matrix": 24}
LOOP = {"matrix": 16, "functions": 10, "stores": 2, "copies": 1}
GRU = {"functions": 6, "stores": 1}
BACK = {"matrix": 16, "functions": 2, "stores": 1, "copies": 9}
BACK128 = BACK | {"matrix": 32}
CLUSTER_BACK = BACK | {"copies": 6, "reads": 24, "sends": 4, "waits": 1}
CASES = [
    forward("lstm float16", "Lstm, float, Half, 8", 220, **LSTM),
    forward("lstm float16 with a tape", "Lstm, float, Half, 8", **LSTM | {"stores": 6}),
    forward("lstm float16 of 16 units", "Lstm, float, Half, 16", **LSTM | {"matrix": 32}),
    forward("lstm bfloat16", "Lstm, float, Bfloat, 8", **LSTM),
    forward("lstm split", "Lstm, float, float, 8", **LSTM | {"matrix": 48, "asked": 128}),
    forward("gru float16", "Gru, float, Half, 8", matrix=12, functions=6, stores=1),
    forward("rnn_tanh float16", "Elman<Tanh>, float, Half, 16", matrix=8, functions=2, stores=1),
    backward("lstm bfloat16 backward", "float, Bfloat, 16, 1", 350, reads=14, **BACKWARD),
    backward("lstm bfloat16 backward of 4", "float, Bfloat, 16, 4", 400, reads=24, **GIVING),
    backward("lstm split backward of 4", "float, float, 8, 4", 420, reads=18, **GIVING | SPLIT),
    # Of 256, 128 and 64 units, in clusters of 16, 4 and 2 blocks.
    clusters("cluster lstm float16", "ClusterOf<Lstm, float, Half, 16, 4>", 180, **CLUSTER),
    clusters("cluster lstm float16 of 4", "ClusterOf<Lstm, float, Half, 4, 8>", **OF_4),
    clusters("cluster lstm float16 of 2", "ClusterOf<Lstm, float, Half, 2, 8>", **OF_2),
    clusters("cluster lstm split of 4", "ClusterOf<Lstm, float, float, 4, 8>", **OF_4_SPLIT),
    clusters("cluster gru float16", "ClusterOf<Gru, float, Half, 16, 4>", **CLUSTER | GRU),
    clusters(
        "cluster lstm backward", "BackwardClusterOf<Lstm, float, Bfloat, 16, 4>", **CLUSTER_BACK
    ),
    clusters(
        "cluster lstm split backward of 4",
        "BackwardClusterOf<Lstm, float, float, 4, 8>",
        **CLUSTER_BACK | {"matrix": 24, "sends": 1},
    ),
    # Layers of 64 units and 1 to 4 rows, and of 128 units in words of 2 bytes.
    loop("loop lstm split", "LoopKernel<Lstm, float, Split<Half>, 64>", 270, **LOOP),
    loop("loop lstm float16", "LoopKernel<Lstm, float, Half, 128>", 200, **LOOP | {"matrix": 32}),
    loop("loop gru split", "LoopKernel<Gru, float, Split<Half>, 64>", 250, **LOOP | GRU),
    loop("loop lstm split back", "BackwardLoopKernel<Lstm, float, Split<Bfloat>, 64>", 320, **BACK),
    loop("loop lstm bfloat16 back", "BackwardLoopKernel<Lstm, float, Bfloat, 128>", 340, **BACK128),
]


def disassembled(kernel: str) -> str:
    """Compile one kernel for sm_90 and return its disassembly."""
    nvdisasm = shutil.which("nvdisasm")
    if nvdisasm is None:
        sys.exit("nvdisasm: expected on PATH, found none; the wheel nvidia-cuda-nvdisasm has it")
    source = f"""#include "{ROOT}/csrc/cuda/entry.h"
namespace ost::OST_SET {{
using K = {kernel};
template __global__ void entry<K>(const __grid_constant__ K, Index, Index);
}}
"""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "one.cu").write_text(source)
        command = (
            "nvcc -std=c++20 -arch=sm_90 -DOST_SET=cuda --expt-relaxed-constexpr -cubin one.cu"
        )
        for run in ([*command.split(), "-o", "one.cubin"], [nvdisasm, "-c", "one.cubin"]):
            done = subprocess.run(run, cwd=folder, capture_output=True, text=True, check=False)
            if done.returncode:
                sys.exit(f"{' '.join(run)}:\n{done.stdout}{done.stderr}")
    return done.stdout


def main() -> int:
    """Count all cases, or those named; the number of complaints is the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--keep", action="store_true", help="keep the counts of today")
    parser.add_argument("--kinds", action="store_true", help="show what the instructions are")
    parser.add_argument("names", nargs="*", metavar="NAME")
    args = parser.parse_args()
    kept = json.loads(KEPT.read_text()) if KEPT.exists() else {}
    wrong = []
    for case in CASES:
        if args.names and not any(n in case.name for n in args.names):
            continue
        way = count(disassembled(case.kernel), case.work)
        before = kept.get(case.name)
        kept[case.name] = len(way) if args.keep else before
        if before is None or len(way) > before:
            wrong.append(f"{case.name}: {len(way)} instructions, {before} kept")
        if case.bound and len(way) > case.bound:
            wrong.append(f"{case.name}: {len(way)} instructions, more than {case.bound}")
        print(f"{case.name:30}{len(way):6}  kept {before}", flush=True)
        if args.kinds:
            kinds = Counter(i.kind() for i in way)
            print("    " + ", ".join(f"{k} {n}" for k, n in kinds.most_common()))
    if args.keep:
        KEPT.write_text(json.dumps(kept, indent=1) + "\n")
        return 0
    print("\n".join(wrong) or "no step with more instructions")
    return len(wrong)


if __name__ == "__main__":
    sys.exit(main())
