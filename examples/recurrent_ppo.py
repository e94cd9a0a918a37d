"""Recurrent reinforcement learning with sb3-contrib: `resets=` in the place of a loop over time.

RecurrentPPO runs its LSTM step by step in Python wherever an episode starts in a batch. Here the
layer takes the starts itself. The task is CartPole without its velocities, which a policy has to
remember. Needs torch, sb3-contrib and gymnasium; `--plain` trains the policy as it comes.
"""

import argparse
import time

import gymnasium
import numpy as np
from sb3_contrib import RecurrentPPO
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from stable_baselines3.common.env_util import make_vec_env

from ostinato.interop import torch as ost_torch


class Policy(RecurrentActorCriticPolicy):
    """The policy of sb3-contrib, whose LSTMs run the kernels."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        ost_torch.replace(self)  # the same parameters, which the optimizer has already

    @staticmethod
    def _process_sequence(features, lstm_states, episode_starts, lstm):
        sequences = lstm_states[0].shape[1]
        x = features.reshape(sequences, -1, lstm.input_size).swapaxes(0, 1)
        starts = episode_starts.reshape(sequences, -1).swapaxes(0, 1) > 0.5
        y, state = lstm(x, lstm_states, resets=starts)
        return y.swapaxes(0, 1).flatten(0, 1), state


class NoVelocity(gymnasium.ObservationWrapper):
    """CartPole of which position and angle alone are seen."""

    def __init__(self):
        super().__init__(gymnasium.make("CartPole-v1"))
        high = self.env.observation_space.high[[0, 2]]
        self.observation_space = gymnasium.spaces.Box(-high, high, dtype=np.float32)

    def observation(self, observation):
        return observation[[0, 2]]


def model(policy, seed=0, environments=1, **options):
    """Return a learner; the sizes are those of sb3-contrib."""
    several = make_vec_env(NoVelocity, environments, seed=seed)
    return RecurrentPPO(policy, several, seed=seed, device="cpu", **options)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=20_000, help="of the environment")
    parser.add_argument("--plain", action="store_true", help="with the policy of sb3-contrib")
    args = parser.parse_args()
    learner = model("MlpLstmPolicy" if args.plain else Policy)
    train, seconds = learner.train, []

    def timed():
        start = time.perf_counter()
        train()
        seconds.append(time.perf_counter() - start)

    learner.train = timed
    learner.learn(args.steps)
    returns = [episode["r"] for episode in learner.ep_info_buffer]
    print(f"return of the last {len(returns)} episodes: {np.mean(returns):.0f}")
    print(f"train(): {np.median(seconds):.3f} s a call, {sum(seconds):.1f} s in all")


if __name__ == "__main__":
    main()
