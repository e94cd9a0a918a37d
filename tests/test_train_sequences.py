"""The Trainer on long and ragged sequences.

Memory limits, resets, masks, truncated backpropagation.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import ostinato as ost


def model_of(seed: int = 0, **options: Any) -> Any:
    return ost.nn.Sequential(ost.nn.GRU(2, 8, rng=seed, **options), ost.nn.Linear(8, 1, rng=seed))


def data(steps: int = 40, n: int = 6) -> Any:
    r = np.random.default_rng(0)
    x = r.standard_normal((steps, n, 2)).astype(np.float32)
    return x, x[..., :1].cumsum(0) / 10


def fitted(batches: Any, model: Any = None, **options: Any) -> Any:
    model = model_of() if model is None else model
    trainer = ost.Trainer(model, ost.losses.MSE(), ost.optim.SGD(0.05), **options)
    history = trainer.fit(batches, epochs=2, progress=False)
    return model.flat.copy(), history


def test_the_trainer_takes_a_limit_and_last_outputs() -> None:
    x, target = data()
    plain, _ = fitted([(x, target)])
    assert np.array_equal(fitted([(x, target)], memory_limit="least")[0], plain)
    ends = [(x, target[-1], None)]
    last, _ = fitted(ends, outputs="last")
    assert np.array_equal(fitted(ends, outputs="last", memory_limit=4)[0], last)

    class Own(ost.nn.Activation):  # not known to leave the steps apart: it is given all of them
        pass

    class Whole(ost.nn.Layer):
        def __call__(self, y: Any) -> Any:
            return y

        def vjp(self, y: Any, *, rng: Any = None) -> Any:
            return y, self._pullback(lambda grads, dy, need_dx: dy)

    model = ost.nn.Sequential(ost.nn.GRU(2, 8, rng=0), ost.nn.Linear(8, 1, rng=0), Whole())
    np.testing.assert_allclose(fitted(ends, model, outputs="last")[0], last, rtol=1e-4, atol=1e-6)


def test_the_trainer_takes_resets_and_masks() -> None:
    x, target = data()
    r = np.random.default_rng(1)
    mask, resets = r.random((40, 6)) < 0.7, r.random((40, 6)) < 0.1
    plain, _ = fitted([(x, target)])
    other, _ = fitted([(x, target, {"resets": resets})])
    assert not np.array_equal(plain, other)
    masked, _ = fitted([(x, target, {"mask": mask})])
    spoilt = target.copy()
    spoilt[~mask] = np.nan  # what does not count may hold anything
    assert np.array_equal(fitted([(x, spoilt, {"mask": mask})])[0], masked)
    with pytest.raises(
        ValueError,
        match="data: expected lengths, resets, mask, masked and weights in the third place, got",
    ):
        fitted([(x, target, {"reset": resets})])


@pytest.mark.parametrize("outputs", ["all", "last"])
def test_the_trainer_takes_ragged_sequences(outputs: str) -> None:
    """Train as on padded sequences with lengths.

    Also a mask in a batch, predictions, a loader that shuffles.
    """
    r = np.random.default_rng(0)
    xs = [r.standard_normal((n, 3)).astype(np.float32) for n in (5, 9, 1, 7)]
    ragged = ost.Ragged.join(xs)
    target = r.standard_normal((len(ragged.rows) if outputs == "all" else 4, 2)).astype(np.float32)
    mask = r.random(len(ragged.rows)) < 0.7
    mask[ragged.offsets[:-1]] = True
    runs = []
    for batch in (
        (ragged, target, {"mask": mask}),
        (
            xs,
            list(ragged.like(target)) if outputs == "all" else target,
            {"mask": list(ragged.like(mask))},
        ),
        (
            ragged.padded(),
            ragged.padded(target) if outputs == "all" else target,
            {"mask": ragged.padded(mask), "lengths": ragged.lengths},
        ),
    ):
        model = ost.nn.Sequential(ost.nn.GRU(3, 6, rng=0), ost.nn.Linear(6, 2, rng=0))
        trainer = ost.Trainer(model, ost.losses.MSE(), ost.optim.SGD(0.1), outputs=outputs)
        history = trainer.fit([batch], epochs=3)
        runs.append(
            [
                np.concatenate([p.ravel() for p in model.state_dict().values()]),
                history.rows[-1]["loss"],
                trainer.evaluate([batch])["loss"],
            ]
        )
    for other in runs[1:]:
        np.testing.assert_allclose(runs[0][0], other[0], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(runs[0][1:], other[1:], rtol=1e-5)
    model = ost.nn.Sequential(ost.nn.GRU(3, 6, rng=0), ost.nn.Linear(6, 2, rng=0))
    trainer = ost.Trainer(model, ost.losses.MSE(), ost.optim.SGD(0.1), outputs=outputs)
    history = trainer.fit((ragged, target), epochs=20, batch_size=2)
    assert history.rows[-1]["loss"] < history.rows[0]["loss"]
    y = trainer.predict(ragged, batch_size=3)
    if outputs == "last":
        assert np.array_equal(y[1], model(xs[1][:, None])[0][-1, 0])
    else:
        assert np.array_equal(y[1], model(xs[1][:, None])[0][:, 0])
        assert [a.shape for a in trainer.predict(xs)] == [(len(a), 2) for a in xs]
    trainer = ost.Trainer(model, ost.losses.MSE(), ost.optim.SGD(0.1), tbptt=(2, 4))
    with pytest.raises(ValueError, match="tbptt: expected None with ragged"):
        trainer.fit([(ragged, np.zeros((len(ragged.rows), 2), np.float32))], epochs=1)
    with pytest.raises(ValueError, match="target: expected 22 rows"):
        ost.data.RaggedLoader(ragged, np.zeros((3, 2)))
    with pytest.raises(ValueError, match="no lengths beside ragged"):
        ost.Trainer(model, ost.losses.MSE(), ost.optim.SGD(0.1)).fit([(xs, target, [1])], epochs=1)


def test_truncated_backpropagation() -> None:
    """Against windows by hand: the gradient of the last k1 losses through the last k2 steps, the
    state carried on.
    """
    x, target = data(20)
    model = model_of()
    got, _ = fitted([(x, target)], model, tbptt=(20, 20))
    assert np.array_equal(got, fitted([(x, target)])[0])
    for k1, k2 in ((5, 5), (5, 8), (7, 20), (4, 6)):
        hand, optimizer = model_of(), ost.optim.SGD(0.05)
        for _ in range(2):
            states: Any = {0: None}
            for done in range(0, 20, k1):
                end = min(done + k1, 20)
                start = max(0, end - k2) if done else 0
                if start not in states:
                    begin = max(t for t in states if t < start)
                    states[start] = hand(x[begin:start], states[begin])[1]
                (y, states[end]), pullback = hand.vjp(x[start:end], states[start])
                _, d = ost.losses.MSE()(y[done - start :], target[done:end])
                dy = np.zeros_like(y)
                dy[done - start :] = d
                hand.zero_grad()
                pullback(dy)
                optimizer.step(hand)
        got, history = fitted([(x, target)], tbptt=(k1, k2))
        np.testing.assert_allclose(got, hand.flat, rtol=1e-5, atol=1e-6)
        assert len(history.rows) == 2
    lengths, resets = (
        np.array([20, 3, 11, 6, 1, 20]),
        np.random.default_rng(0).random((20, 6)) < 0.1,
    )
    assert np.isfinite(
        fitted([(x, target, {"lengths": lengths, "resets": resets})], tbptt=(4, 6))[0]
    ).all()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"tbptt": (5, 3)}, "tbptt: expected k1 <= k2"),
        ({"tbptt": (0, 3)}, "tbptt: expected a whole number of at least 1"),
        ({"tbptt": 5}, "tbptt: expected a pair"),
        ({"tbptt": (2, 2), "outputs": "last"}, 'tbptt: expected outputs="all"'),
        ({"clip_step_norm": -1.0}, "clip_step_norm: expected a number above 0"),
        ({"memory_limit": "12XB"}, "memory_limit: expected a size"),
    ],
    ids=str,
)
def test_the_trainer_refuses(options: dict[str, Any], words: str) -> None:
    with pytest.raises((ValueError, TypeError), match=words):
        ost.Trainer(model_of(), ost.losses.MSE(), ost.optim.SGD(0.1), **options)
    with pytest.raises(ValueError, match="tbptt: expected recurrent layers of one direction"):
        ost.Trainer(
            model_of(bidirectional=True) if False else ost.nn.GRU(2, 3, bidirectional=True),
            ost.losses.MSE(),
            ost.optim.SGD(0.1),
            tbptt=(2, 2),
        )
    with pytest.raises(ValueError, match="memory_limit: expected a model with recurrent layers"):
        ost.Trainer(ost.nn.Linear(2, 3), ost.losses.MSE(), ost.optim.SGD(0.1), memory_limit="1MB")


def test_clipped_steps_keep_a_trainer_going() -> None:
    x, target = data()
    plain, _ = fitted([(x, target)])
    assert not np.array_equal(fitted([(x, target)], clip_step_norm=1e-3)[0], plain)
    assert np.array_equal(fitted([(x, target)], clip_step_norm=1e6, clip_step_value=1e6)[0], plain)
