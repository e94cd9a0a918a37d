"""A recogniser of speech in small: tones that spell words, and when they were heard.

Sounds become log-mel features, a convolution makes one output of two steps, a bidirectional LSTM
reads both ways, and the CTC loss needs no times. For speech there is ``train transcribe``.
"""

from __future__ import annotations

import argparse

import numpy as np

import ostinato as ost

RATE = 8000
TONES = {"a": 350, "b": 600, "c": 1000, "d": 1600, "e": 2500, " ": 0}
CLASSES = dict(zip(TONES, range(1, len(TONES) + 1)))  # 0 is the blank


def sound(text: str, rng: np.random.Generator) -> np.ndarray:
    """A tone of 90 to 150 ms for each letter, silence for a space, with noise."""
    parts = []
    for c in text:
        t = np.arange(rng.integers(720, 1200)) / RATE
        parts += [0.3 * np.sin(2 * np.pi * TONES[c] * t) * np.hanning(len(t)), np.zeros(200)]
    x = np.concatenate(parts)
    return x + 0.01 * rng.normal(size=len(x))


def samples(count: int, rng: np.random.Generator) -> tuple[list[np.ndarray], list[str]]:
    """Sounds of texts of one to three words."""
    texts = [
        " ".join("".join(rng.choice(list("abcde"), rng.integers(1, 4))) for _ in range(n))
        for n in rng.integers(1, 4, count)
    ]
    return [sound(text, rng) for text in texts], texts


def features(sounds: list[np.ndarray]) -> list[np.ndarray]:
    """Log-mel energies, about from -1 to 1."""
    return [(ost.audio.log_mel(x, RATE, bands=20) + 8) / 4 for x in sounds]


def main(epochs: int = 12, clips: int = 120) -> float:
    """Train, transcribe 20 other sounds, and return the character error rate."""
    rng = np.random.default_rng(0)
    model = ost.nn.Sequential(
        conv=ost.nn.Conv1d(20, 32, 5, stride=2, batch_first=True, rng=0),
        gelu=ost.nn.Activation("gelu"),
        rnn=ost.nn.LSTM(32, 32, bidirectional=True, batch_first=True, rng=1),
        head=ost.nn.Linear(64, len(TONES) + 1, rng=2),
    )
    sounds, texts = samples(clips, rng)
    labels = [np.array([CLASSES[c] for c in text]) for text in texts]
    trainer = ost.Trainer(model, ost.losses.CTC(), ost.optim.Adam(1e-2), clip_norm=1.0)
    trainer.fit((features(sounds), labels), epochs=epochs, batch_size=8, progress=False)

    language = ost.decoding.NGram(len(TONES) + 1, order=3)
    language.fit(labels)
    sounds, texts = samples(20, rng)
    logits = trainer.predict(features(sounds))
    best = ost.decoding.ctc_beam_search(logits, language_model=language, weight=0.3)
    found = ["".join(list(TONES)[k - 1] for k in b[0].labels) for b in best]
    error = ost.metrics.cer(texts, found)
    print(f"character error rate {error:.1%}: {texts[0]!r} was heard as {found[0]!r}")
    spans = ost.decoding.ctc_align(logits[:1], [best[0][0].labels])[0]
    for c, (begin, end) in zip(found[0], spans):
        print(f"  {c!r} from {0.02 * begin:.2f} s to {0.02 * end:.2f} s")
    return error


if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--epochs", type=int, default=12)
    main(p.parse_args().epochs)
