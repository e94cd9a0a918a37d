"""Returns of RecurrentPPO with our LSTM and with its own: python benchmarks/ppo_returns.py.

The task is examples/recurrent_ppo.py: CartPole without its velocities. For each seed the policy is
trained twice on the same number of steps, as sb3-contrib has it and with our LSTM in its place,
from the same initial parameters. Their arithmetic differs in the last digit, so that after some
updates the episodes are others; what is compared is what they reach. Each run is a process of its
own on one thread, and its `train()` is measured in CPU time. A run that the file of results has
is not repeated.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

import contenders

RESULTS = Path(__file__).parent / "results"
POLICIES = ("sb3-contrib", "ostinato")
ENVIRONMENTS = 8
SETTINGS: dict[str, Any] = {
    "n_steps": 128,
    "batch_size": 256,
    "n_epochs": 5,
    "learning_rate": 1e-3,
    "policy_kwargs": {"lstm_hidden_size": 64},
}
EPISODES = 50  # played at the end, with the likeliest actions


def trained(policy: str, seed: int, steps: int) -> dict[str, Any]:
    """Train once; return the returns and the seconds of `train()`."""
    import torch
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.evaluation import evaluate_policy

    import ostinato as ost

    torch.set_num_threads(1)
    ost.set_num_threads(1)
    module = contenders.example("recurrent_ppo")
    kind = module.Policy if policy == "ostinato" else "MlpLstmPolicy"
    learner = module.model(kind, seed, ENVIRONMENTS, **SETTINGS)
    train, seconds, curve = learner.train, [], []

    def timed() -> None:
        start = time.process_time()
        train()
        seconds.append(time.process_time() - start)
        returns = [e["r"] for e in learner.ep_info_buffer]
        curve.append(round(float(np.mean(returns)), 1) if returns else None)

    learner.train = timed
    learner.learn(steps)
    played = make_vec_env(module.NoVelocity, ENVIRONMENTS, seed=1000 + seed)
    found, _ = evaluate_policy(learner, played, EPISODES, deterministic=True)
    return {
        "policy": policy,
        "seed": seed,
        "steps": steps,
        "return": round(float(found), 1),
        "curve": curve,
        "train_seconds": statistics.median(seconds),
    }


def versions() -> dict[str, str]:
    """Return the versions of what takes part."""
    from importlib.metadata import version

    names = ("ostinato", "sb3-contrib", "stable-baselines3", "gymnasium", "torch", "numpy")
    found = {}
    for name in names:
        if importlib.util.find_spec(name.replace("-", "_")) is None:
            raise SystemExit(f"{name} is not installed: pip install torch sb3-contrib gymnasium")
        if name != "ostinato":
            found[name] = version(name)
    import ostinato as ost

    return {"ostinato": ost.__version__, **found}


def show(runs: list[dict[str, Any]]) -> None:
    """Print a line for each seed that both policies have."""
    by = {(r["policy"], r["seed"]): r for r in runs}
    for seed in sorted({s for _, s in by}):
        if not all((p, seed) in by for p in POLICIES):
            continue
        theirs, ours = (by[p, seed] for p in POLICIES)
        means = [np.mean([c for c in r["curve"] if c is not None]) for r in (theirs, ours)]
        print(
            f"seed {seed}: return sb3-contrib {theirs['return']:.0f}, ostinato "
            f"{ours['return']:.0f}; over the training {means[0]:.0f}, {means[1]:.0f}; train() "
            f"{theirs['train_seconds'] / ours['train_seconds']:.2f} x"
        )


def main() -> None:
    """Run what is missing and write the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=150_000, help="of the environments in all")
    name = f"{datetime.date.today().isoformat()}-ppo-returns.json"
    parser.add_argument("--out", type=Path, default=RESULTS / name)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        print(json.dumps(trained(args.worker, args.seeds[0], args.steps)))
        return
    told = {"versions": versions(), "environments": ENVIRONMENTS, "settings": SETTINGS}
    results: dict[str, Any] = {**told, "runs": []}
    if args.out.exists():
        results = json.loads(args.out.read_text())
        if any(results[key] != value for key, value in told.items()):
            raise SystemExit(
                f"{args.out}: made with other versions or settings; give another --out"
            )
    had = {(r["policy"], r["seed"], r["steps"]) for r in results["runs"]}
    for seed in args.seeds:
        for policy in POLICIES:
            if (policy, seed, args.steps) in had:
                continue
            command = [sys.executable, __file__, "--worker", policy, "--seeds", str(seed)]
            command += ["--steps", str(args.steps)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            results["runs"].append(json.loads(done.stdout.splitlines()[-1]))
            args.out.write_text(json.dumps(results) + "\n")
    show([r for r in results["runs"] if r["steps"] == args.steps])


if __name__ == "__main__":
    main()
