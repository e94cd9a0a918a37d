"""Recognise who speaks: a pretrained LSTM of three layers, run with NumPy alone.

`pip install --no-deps resemblyzer==0.1.4` brings the weights, a file of PyTorch in its older form;
nothing of that package is imported, and PyTorch is not needed. The network turns a sound into a
vector of length 1; those of one voice point the same way (Wan et al. 2018, "Generalized end-to-end
loss for speaker verification").

    python examples/recognize_speaker.py unknown.wav --voices folder_of_ann folder_of_bob
"""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

import ostinato as ost

Array = npt.NDArray[np.float32]
RATE, WINDOW, HOP, BANDS = 16000, 400, 160, 40  # samples a second, of a window, between windows
FRAMES, STEP = 160, 77  # of a piece that the network reads, and from one piece to the next


def weights() -> Path | None:
    """Return the file of the package, None where it is not installed."""
    spec = importlib.util.find_spec("resemblyzer")
    return None if spec is None else Path(str(spec.origin)).parent / "pretrained.pt"


def energies(samples: Array, rate: int) -> Array:
    """Return the energies ``[T,40]`` in mel bands; silence is added for at least one piece."""
    sound = ost.audio.resample(samples, rate, RATE)
    sound = np.pad(sound, (0, max(0, FRAMES * HOP - len(sound))))
    sound = sound * max(1, 10 ** (-30 / 20) / max(float(np.sqrt(np.mean(sound**2))), 1e-9))
    frames = np.lib.stride_tricks.sliding_window_view(np.pad(sound, WINDOW // 2), WINDOW)[::HOP]
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / WINDOW)
    power = np.abs(np.fft.rfft(frames * hann)) ** 2
    filters = ost.audio.mel_filters(RATE, WINDOW, BANDS, low=0, scale="slaney")
    out: Array = (power @ filters).astype(np.float32)
    return out


class Voices:
    """The network of a file, which turns sounds into vectors."""

    def __init__(self, path: Path) -> None:
        state = ost.load_torch(path, key="model_state")
        layers = ost.from_torch(state, skip=["similarity_*"], batch_first=True)
        self.model = ost.nn.Sequential(**layers, relu=ost.nn.Activation("relu"))

    def vector(self, samples: Array, rate: int) -> Array:
        """Return the mean of the vectors of all pieces of a sound, ``[256]``."""
        mel = energies(samples, rate)
        pieces = np.stack([mel[k : k + FRAMES] for k in range(0, len(mel) - FRAMES + 1, STEP)])
        y, _ = self.model(pieces, outputs="last")
        mean: Array = (y / np.linalg.norm(y, axis=1, keepdims=True)).mean(0)
        return mean / np.linalg.norm(mean)

    def voice(self, paths: Iterable[Path]) -> Array:
        """Return the vector of a voice, from files of it."""
        sounds = [ost.audio.read_wav(path) for path in paths]
        mean: Array = np.mean([self.vector(s.samples, s.rate) for s in sounds], 0)
        return mean / np.linalg.norm(mean)


def main(unknown: Sequence[Path], folders: Sequence[Path]) -> list[str]:
    """Print the likeliest voice of each file, and return their names."""
    names = [folder.name for folder in folders]
    for folder in folders:
        if not any(folder.glob("*.wav")):
            raise SystemExit(f"--voices: expected a folder with WAV files, got {folder}")
        if names.count(folder.name) > 1:
            raise SystemExit(f"--voices: expected folders of different names, got {folder}")
    path = weights()
    if path is None:
        raise SystemExit("resemblyzer is not installed: pip install --no-deps resemblyzer==0.1.4")
    network = Voices(path)
    voices = {folder.name: network.voice(sorted(folder.glob("*.wav"))) for folder in folders}
    found = []
    for file in unknown:
        vector = network.voice([file])
        likeness = {name: float(vector @ voice) for name, voice in voices.items()}
        found.append(max(likeness, key=lambda name: likeness[name]))
        print(f"{file.name}: {found[-1]}", {n: round(v, 3) for n, v in likeness.items()})
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Recognise who speaks in WAV files.")
    parser.add_argument("unknown", nargs="+", type=Path, help="WAV files")
    parser.add_argument("--voices", nargs="+", type=Path, required=True, help="folders of clips")
    args = parser.parse_args()
    main(args.unknown, args.voices)
