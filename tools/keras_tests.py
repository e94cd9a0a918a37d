"""Run Keras' own tests with our layers in the place of its own: python tools/keras_tests.py.

Keras 3.15 and later have their tests in the wheel; of an earlier one give the folder `keras/src`
of its source archive. All that a test makes by `layers.LSTM`, `GRU` or `SimpleRNN` is a layer of
`ostinato.interop.keras`. What fails is run again with Keras' own layers, so that a fault of Keras
or of the packages that are installed is told from one of ours. The status is 1 if a test fails for
which no reason is known here.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

FILES = (
    "layers/core/masking_test.py",
    *(
        f"layers/rnn/{n}_test.py"
        for n in ("bidirectional", "gru", "lstm", "rnn", "simple_rnn", "stacked_rnn_cells")
    ),
    "layers/rnn/time_distributed_test.py",
    "saving/saving_lib_test.py",
)
BACKENDS = ("jax", "torch", "tensorflow", "numpy")
NAMES = ("LSTM", "GRU", "SimpleRNN")

# Tests of what our layers do not have, with the reason; such a one that passes leaves the list.
REASONS = {
    "test_fused_gru_eligibility": "asks for Keras' way to cuDNN",
    "test_fused_lstm_eligibility": "asks for Keras' way to cuDNN",
    "test_keeps_use_cudnn": "use_cudnn=True, which is refused",
}
_OUT = "OSTINATO_KERAS_TESTS"  # the file of what a run found; what makes this file a plugin
_PLAIN = "OSTINATO_KERAS_TESTS_PLAIN"  # whether the layers are Keras' own

found: dict[str, Any] = {"tests": {}, "calls": 0, "without recurrent dropout": 0}


# -- in the process of pytest ----------------------------------------------------------------------


def _swap() -> None:
    """Put our layers in the place of Keras' own, where its tests look for them."""
    import keras
    from keras.src import layers, testing

    from ostinato.interop import _keras_layers
    from ostinato.interop import keras as ours

    for name in NAMES:
        for module in (layers, keras.layers):
            setattr(module, name, getattr(ours, name))
    inner, asked = _keras_layers._run, testing.TestCase.run_layer_test

    def counted(*args: Any) -> Any:
        found["calls"] += 1
        return inner(*args)

    def run_layer_test(self: Any, kind: Any, init_kwargs: Any, *args: Any, **kwargs: Any) -> Any:
        if kind in [getattr(ours, n) for n in NAMES] and "recurrent_dropout" in init_kwargs:
            found["without recurrent dropout"] += 1  # which is refused in training
            init_kwargs = {k: v for k, v in init_kwargs.items() if k != "recurrent_dropout"}
        return asked(self, kind, init_kwargs, *args, **kwargs)

    _keras_layers._run = counted
    testing.TestCase.run_layer_test = run_layer_test


def pytest_runtest_logreport(report: Any) -> None:
    """Note how a test ended."""
    if report.when == "call" or report.outcome != "passed":
        lines = str(report.longrepr or "").splitlines()
        told = [line for line in lines if line.startswith("E ")]
        file, _, name = report.location  # the identifier lacks the file outside of the root
        found["tests"][f"{Path(file).name}::{name}"] = [
            report.outcome,
            (told or [""])[0][2:].strip(),
        ]


def pytest_sessionfinish() -> None:
    """Write what was found."""
    Path(os.environ[_OUT]).write_text(json.dumps(found), encoding="utf-8")


if _OUT in os.environ and _PLAIN not in os.environ:
    _swap()


# -- in the process that is started ----------------------------------------------------------------


def run(backend: str, tests: list[str], *, plain: bool) -> dict[str, Any]:
    """Run tests in a process of their own; return what was found."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "found.json"
        own = {
            _OUT: str(out),
            "KERAS_BACKEND": backend,
            "KERAS_TORCH_DEVICE": "cpu",
            "JAX_PLATFORMS": "cpu",
            "CUDA_VISIBLE_DEVICES": "",
            "TF_CPP_MIN_LOG_LEVEL": "3",
            "KERAS_HOME": folder,
            **({_PLAIN: "1"} if plain else {}),
        }
        paths = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
        own["PYTHONPATH"] = os.pathsep.join(p for p in paths if p)
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "ignore"]
        command += ["-p", Path(__file__).stem, f"--rootdir={folder}", "-c", os.devnull, *tests]
        done = subprocess.run(command, env=os.environ | own, capture_output=True, text=True)
        if not out.exists():
            raise SystemExit(f"{backend}: pytest did not run\n{done.stdout}{done.stderr}"[-4000:])
        result: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    return result


def measured(backend: str, source: Path) -> int:
    """Run all tests on a backend and print what was found; return the number of ours that fail."""
    files = [str(source / f) for f in FILES if (source / f).exists()]
    result = run(backend, files, plain=False)
    failed = {t: why for t, (outcome, why) in result["tests"].items() if outcome == "failed"}
    known = {t: REASONS[n] for t in failed if (n := t.rpartition(".")[2]) in REASONS}
    theirs: set[str] = set()
    if rest := [t for t in failed if t not in known]:
        names = {t.partition("::")[0] for t in rest}
        paths = [f for f in files if Path(f).name in names]
        again = run(backend, paths, plain=True)["tests"]
        theirs = {t for t in rest if again.get(t, [""])[0] == "failed"}
    ours = [t for t in failed if t not in known and t not in theirs]
    counts = Counter(outcome for outcome, _ in result["tests"].values())
    print(
        f"{backend}: {counts['passed']} passed, {len(ours)} failed, {counts['skipped']} skipped, "
        f"{len(known)} of what our layers do not have, {len(theirs)} that fail with Keras' own "
        f"layers; {result['calls']} calls of our layers, "
        f"{result['without recurrent dropout']} of Keras' checks without their recurrent_dropout",
        flush=True,
    )
    for test, why in known.items():
        print(f"  not had: {test}: {why}")
    for test in sorted(theirs):
        print(f"  Keras' own: {test}: {failed[test]}")
    for test in ours:
        print(f"  FAILED: {test}: {failed[test]}")
    if not result["calls"]:
        print("  FAILED: no test called a layer of ours")
        return 1
    return len(ours)


def main() -> int:
    """Run the tests on every backend that is installed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--backend", nargs="+", choices=BACKENDS, default=BACKENDS)
    parser.add_argument("--source", type=Path, help="the folder keras/src with the tests")
    args = parser.parse_args()
    spec = importlib.util.find_spec("keras")
    if spec is None or spec.origin is None:
        raise SystemExit("keras is not installed: pip install 'ostinato[keras-layers]' pytest")
    source = args.source or Path(spec.origin).parent / "src"
    if not any((source / f).exists() for f in FILES):
        raise SystemExit(
            f"{source}: expected Keras' tests, which wheels have from 3.15 on; unpack the source "
            "archive of the version that is installed and give --source FOLDER/keras/src"
        )
    failures = 0
    for backend in args.backend:
        if importlib.util.find_spec(backend) is None:
            print(f"{backend}: not installed")
            continue
        failures += measured(backend, source)
    return int(failures > 0)


if __name__ == "__main__":
    sys.exit(main())
