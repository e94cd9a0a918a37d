"""sb3-contrib's RecurrentPPO with our layer and resets: the losses and updates of its own."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

HOW = "pip install torch sb3-contrib"
torch = pytest.importorskip("torch", reason=f"PyTorch is not installed: {HOW}")
pytest.importorskip("sb3_contrib", reason=f"sb3-contrib is not installed: {HOW}")

from ostinato.interop import torch as ot  # noqa: E402

PATH = Path(__file__).parent.parent / "examples" / "recurrent_ppo.py"


def example() -> Any:
    spec = importlib.util.spec_from_file_location("recurrent_ppo", PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.filterwarnings("ignore")  # those of the other packages
def test_losses_and_updates_are_those_of_the_loop() -> None:
    module = example()
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    found = []
    try:
        for policy in ("MlpLstmPolicy", module.Policy):
            learner = module.model(policy, n_steps=64, batch_size=32, n_epochs=2)
            learner.learn(64)
            losses = {
                n: v for n, v in learner.logger.name_to_value.items() if n.startswith("train/")
            }
            starts = learner.rollout_buffer.episode_starts
            found.append((losses, list(learner.policy.named_parameters()), starts))
            layer = learner.policy.lstm_actor
            assert type(layer) is (torch.nn.LSTM if policy == "MlpLstmPolicy" else ot.LSTM)
    finally:
        torch.set_num_threads(before)
    (want, theirs, starts), (got, ours, _) = found
    assert starts.sum() > 2  # episodes begin inside the steps
    for name in ("train/loss", "train/value_loss", "train/policy_gradient_loss"):
        assert got[name] == pytest.approx(want[name], rel=1e-4, abs=1e-5)
    for (name, p), (_, q) in zip(theirs, ours):
        torch.testing.assert_close(q, p, rtol=0, atol=1e-4, msg=name)
