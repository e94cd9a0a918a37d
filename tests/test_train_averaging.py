"""WeightAverage: the mean of the parameters over the updates of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fake_cupy
import ostinato as ost
from conftest import native_for_tests
from ostinato import _device, nn
from ostinato.train import Callback, WeightAverage


class Keep(Callback):
    """Keep the parameters at the start and after every update."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def on_start(self, trainer: Any) -> None:
        self.seen.append(np.array(_device.host(trainer.model.flat), np.float64))

    def on_step(self, trainer: Any, step: int, loss: float, norm: float) -> None:
        self.on_start(trainer)

    def mean(self, decay: float) -> Any:
        out = self.seen[0]
        for n, now in enumerate(self.seen[1:], 1):
            d = min(decay, (1 + n) / (10 + n))
            out = d * out + (1 - d) * now
        return out


def data() -> tuple[Any, Any]:
    r = np.random.default_rng(0)
    x = r.standard_normal((40, 5, 3)).astype(np.float32)
    return x, (x.sum(2, keepdims=True) + r.normal(size=(40, 5, 1))).astype(np.float32)


def model() -> nn.Sequential:
    return nn.Sequential(nn.GRU(3, 4, batch_first=True, rng=0), nn.Linear(4, 1, rng=1))


def trained(layers: nn.Sequential, *callbacks: Callback, **options: Any) -> nn.Sequential:
    trainer = ost.Trainer(
        layers, ost.losses.MSE(batch_first=True), ost.optim.Adam(3e-2), callbacks=callbacks
    )
    x, target = (_device.like(a, layers.flat) for a in data())
    trainer.fit((x, target), batch_size=8, progress=False, **{"epochs": 4, **options})
    return layers


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("decay", [0.0, 0.6, 0.999])
def test_the_mean(decay: float, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if device == "cuda":
        native_for_tests()
        fake_cupy.stand_in(monkeypatch)
    average, keep = WeightAverage(decay), Keep()
    layers = trained(model().to(device), average, keep)
    last = np.array(_device.host(layers.flat))
    alone = trained(model().to(device))
    assert np.array_equal(last, _device.host(alone.flat))  # the run is as without the mean
    average.copy_to(layers)
    assert layers.device == alone.device
    np.testing.assert_allclose(_device.host(layers.flat), keep.mean(decay), atol=1e-6)
    assert average.updates == 20
    assert np.allclose(last, keep.mean(decay), atol=1e-6) == (decay == 0)


def test_the_mean_is_better_than_the_last_step_of_a_high_rate() -> None:
    x = np.random.default_rng(1).standard_normal((400, 1, 3)).astype(np.float32)
    noise = np.random.default_rng(2).standard_normal((400, 1, 1)).astype(np.float32)
    target = x.sum(2, keepdims=True)
    layer, average = nn.Linear(3, 1, rng=0), WeightAverage(0.98)
    trainer = ost.Trainer(
        layer, ost.losses.MSE(batch_first=True), ost.optim.SGD(0.1), callbacks=[average]
    )
    loader = ost.data.ArrayLoader(x, target + noise, batch_size=2, time_major=False)
    trainer.fit([(a, b) for a, b, *_ in loader], epochs=4, progress=False)
    last = np.square(layer(x) - target).mean()
    average.copy_to(layer)
    assert np.square(layer(x) - target).mean() < last / 3


def test_what_is_frozen_keeps_its_bits_and_another_model_takes_the_mean() -> None:
    layers, average = model(), WeightAverage(0.9)
    layers.freeze("0.*")
    before = {n: v.copy() for n, v in layers.parameters().items()}
    trained(layers, average)
    other = model()
    with other.write() as p:
        p.flat[...] = 0
    average.copy_to(other)
    for name, value in other.parameters().items():
        assert np.array_equal(value, before[name]) == name.startswith("0.")


def test_a_resumed_run_begins_a_new_mean(tmp_path: Path) -> None:
    half = trained(model(), epochs=2, checkpoint=tmp_path / "run").flat.copy()
    average, keep = WeightAverage(0.5), Keep()
    layers = trained(model(), average, keep, checkpoint=tmp_path / "run", resume=True)
    assert np.array_equal(keep.seen[0], half)
    assert average.updates == 10
    average.copy_to(layers)
    np.testing.assert_allclose(layers.flat, keep.mean(0.5), atol=1e-6)


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match=r"decay: expected a number in \[0, 1\), got 1"):
        WeightAverage(1)
    with pytest.raises(ValueError, match="decay: expected a finite number of at least 0"):
        WeightAverage(-0.1)
    with pytest.raises(TypeError, match="decay: expected a finite number"):
        WeightAverage("0.9")  # type: ignore[arg-type]
    average = WeightAverage()
    with pytest.raises(ValueError, match="copy_to: expected a run with an update before it"):
        average.copy_to(model())
    trained(model(), average, epochs=1)
    with pytest.raises(TypeError, match="model: expected a Layer, got int"):
        average.copy_to(3)  # type: ignore[arg-type]
    for other, message in (
        (nn.Linear(2, 2), r"with 0.weight_ih_l0 of shape \(12, 3\), got None"),
        (nn.Sequential(nn.GRU(3, 4), nn.Linear(4, 2)), r"with 1.weight of shape \(1, 4\), got"),
        (
            nn.Sequential(nn.GRU(3, 4), nn.Linear(4, 1), nn.Linear(1, 1)),
            "with 2.weight of shape None, got",
        ),
    ):
        before = other.flat.copy()
        with pytest.raises(ValueError, match=message):
            average.copy_to(other)
        assert np.array_equal(other.flat, before)
