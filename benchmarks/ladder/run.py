"""Build and run the steps of the ladder: python benchmarks/ladder/run.py [B H T].

Needs a C++ compiler and an AVX-512 or AVX2 CPU.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import ostinato as ost

FLAGS = {
    "avx512": [
        "-mavx512f",
        "-mavx512dq",
        "-mavx512bw",
        "-mavx512vl",
        "-mfma",
        "-mprefer-vector-width=512",
    ],
    "avx2": ["-mavx2", "-mfma"],
    "baseline": [],
}


def main() -> None:
    """Compile with the flags of the chosen kernel set, and run."""
    here = Path(__file__).parent
    name = str(ost.kernels()["chosen"]).removesuffix("bf16")
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "ladder"
        compiler = os.environ.get("CXX", "c++")
        options = [
            "-std=gnu++20",
            "-O3",
            "-ffp-contract=off",
            "-fno-math-errno",
            "-fno-trapping-math",
            "-Wno-psabi",
            f"-DOST_SET={name}",
        ]
        cpu = here.parents[1] / "csrc" / "cpu"
        sources = [
            str(here / "ladder.cpp"),
            *(str(cpu / name) for name in ("pool.cpp", "openmp.cpp")),
        ]
        subprocess.run(
            [compiler, *options, *FLAGS[name], *sources, "-o", str(program), "-pthread", "-ldl"],
            check=True,
        )
        raise SystemExit(subprocess.run([str(program), *sys.argv[1:]], check=False).returncode)


if __name__ == "__main__":
    main()
