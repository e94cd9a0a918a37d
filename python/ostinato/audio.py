"""Read sound files, change their rate, and turn them into the features that speech models read.

>>> import numpy as np
>>> import ostinato as ost
>>> sound = np.sin(2 * np.pi * 440 * np.arange(8000) / 8000)  # a second of a tone
>>> ost.audio.log_mel(sound, 8000, bands=40).shape
(98, 40)
"""

from __future__ import annotations

import math
import os
import wave
from typing import Any, NamedTuple

import numpy as np

from . import _check
from ._annotations import readable
from ._check import Array
from ._files import open_regular

__all__ = ["Sound", "log_mel", "mel_filters", "read_wav", "resample"]

WIDTHS = {1: "8-bit", 2: "16-bit", 3: "24-bit", 4: "32-bit"}
FRAMES = 1 << 16  # of a file, that are taken at a time
WHOLE = bytes.fromhex("0100000000001000800000aa00389b71")  # of an extensible format
QUIET = 1e-7  # what is added to the energies before the logarithm: about the noise of 16 bits
LARGEST = 1 << 24  # numbers of a filter of `resample`
BLOCK = 1 << 20  # samples that it multiplies at a time


class Sound(NamedTuple):
    """Samples of a file, and what the file was.

    >>> import numpy as np
    >>> import ostinato as ost
    >>> ost.audio.Sound(np.zeros(4000, np.float32), 8000, 1, 2).seconds
    0.5

    Attributes:
        samples: float32 ``[N]``, from -1 to 1; the mean of the channels.
        rate: samples in a second.
        channels: the channels of the file.
        width: bytes of a sample in the file.
    """

    samples: Array
    rate: int
    channels: int
    width: int

    @property
    def seconds(self) -> float:
        """How long it is."""
        return len(self.samples) / self.rate


def read_wav(path: str | os.PathLike[str]) -> Sound:
    r"""Read a WAV file of whole numbers with 8, 16, 24 or 32 bits a sample.

    >>> import pathlib, tempfile, wave
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "a.wav"
    >>> with wave.open(str(path), "wb") as file:
    ...     file.setnchannels(1), file.setsampwidth(2), file.setframerate(8000)
    ...     file.writeframes(b"\x00\x40" * 3)
    (None, None, None)
    >>> import ostinato as ost
    >>> ost.audio.read_wav(path).samples.tolist()
    [0.5, 0.5, 0.5]

    Args:
        path: the file.

    Returns:
        The sound; several channels are averaged.

    Raises:
        TypeError: a path that is none.
        ValueError: the file is no WAV file of whole numbers, or it is cut short.
        OSError: the file cannot be read.
    """
    with open_regular(path) as stream:
        name = os.fspath(path)
        try:
            with wave.open(_plain(stream), "rb") as file:
                return _sound(file, name, os.fstat(stream.fileno()).st_size)
        except (wave.Error, EOFError, RuntimeError) as e:
            why = str(e) or "the file ends early"
            raise ValueError(
                f"path: expected a WAV file of whole numbers (PCM), got {name}: {why}"
            ) from None


class _Plain:
    """A WAV file whose format is said to be that of whole numbers, in the two bytes that say it."""

    def __init__(self, stream: Any, place: int) -> None:
        self.stream, self.place = stream, place
        self.tell, self.seek = stream.tell, stream.seek

    def read(self, count: int = -1) -> bytes:
        """Return what the file has, or the format."""
        k = self.place - self.stream.tell()
        data: bytes = self.stream.read(count)
        return data if not 0 <= k <= len(data) - 2 else data[:k] + b"\x01\0" + data[k + 2 :]


def _plain(stream: Any) -> Any:
    """Return a WAV file as Python before 3.12 reads it too, where its format is extensible.

    Many programs write that format for samples of more than 16 bits, or more than two channels.
    """
    place = None
    if stream.read(4) == b"RIFF" and stream.read(8)[4:] == b"WAVE":
        while len(head := stream.read(8)) == 8:
            size = int.from_bytes(head[4:], "little")
            if head[:4] == b"fmt ":
                place, form = stream.tell(), stream.read(min(size, 40))
                place = place if form[:2] == b"\xfe\xff" and form[24:] == WHOLE else None
                break
            stream.seek(size + size % 2, os.SEEK_CUR)
    stream.seek(0)
    return stream if place is None else _Plain(stream, place)


def _sound(file: wave.Wave_read, name: str, size: int) -> Sound:
    """Read the samples of a file of so many bytes, some at a time."""
    channels, width, rate, count = file.getparams()[:4]
    if width not in WIDTHS:
        raise ValueError(
            f"path: expected samples of {', '.join(WIDTHS.values())}, got {8 * width}-bit in {name}"
        )
    frame = channels * width
    samples: Array = np.empty(count if count * frame <= size else 0, np.float32)
    got = 0  # bytes
    for begin in range(0, len(samples), FRAMES):
        part = file.readframes(min(FRAMES, count - begin))
        got += len(part)
        if got < min(begin + FRAMES, count) * frame:
            break
        frames = _floats(part, width).reshape(-1, channels)
        samples[begin : begin + FRAMES] = frames[:, 0] if channels == 1 else frames.mean(1)
    if rate < 1 or got != count * frame:
        raise ValueError(
            f"path: expected {count} samples in each of {channels} channels at a rate of at least "
            f"1, got {got if len(samples) else size} bytes at {rate} in {name}"
        )
    return Sound(samples, rate, channels, width)


def _floats(data: bytes, width: int) -> Array:
    """Return samples from -1 to 1."""
    if width == 1:  # the only width without a sign
        return (np.frombuffer(data, np.uint8).astype(np.float64) - 128) / 128
    wide = np.zeros((len(data) // width, 4), np.uint8)
    wide[:, 4 - width :] = np.frombuffer(data, np.uint8).reshape(-1, width)
    return wide.view("<i4")[:, 0] / 2.0**31


def resample(samples: Array, rate: int, to: int) -> Array:
    """Change the rate of a sound, by a linear-phase filter of which each output takes a phase.

    The filter is a sinc of 32 zero crossings on either side under a Kaiser window (beta 8), with
    its edge at 0.92 of the lower of the two bands: what the new rate cannot hold is 80 dB down, and
    what lies below 0.84 of that band is as it was.

    >>> import numpy as np
    >>> import ostinato as ost
    >>> tone = np.sin(2 * np.pi * 440 * np.arange(16000) / 16000)
    >>> half = ost.audio.resample(tone, 16000, 8000)
    >>> len(half), bool(np.abs(half - tone[::2])[50:-50].max() < 1e-4)
    (8000, True)

    Args:
        samples: ``[N]`` real numbers.
        rate: samples in a second.
        to: samples in a second that are wanted. Only the ratio of the two counts: ``resample(x, 11,
            10)`` is x spoken 1.1 times as fast and as high.

    Returns:
        ``[ceil(N to / rate)]`` of the floating dtype of the samples, float64 for whole numbers.

    Raises:
        TypeError: samples that are no real numbers, or rates that are no whole numbers.
        ValueError: a rate below 1, rates of a ratio that needs too large a filter, or samples that
            are not on one axis.
    """
    x = _checked("samples", samples)
    rate, to = _check.positive("rate", rate), _check.positive("to", to)
    common = math.gcd(rate, to)
    up, down = to // common, rate // common
    out: Array = x.copy()
    if up == down or not len(x):
        return out
    edge = 0.92 * min(1.0, up / down)  # of the band of x; half of the transition is 0.08 of it
    reach = math.ceil(32 / edge)
    width = 2 * reach + 1
    if up * width > LARGEST:
        raise ValueError(
            f"rate, to: expected a ratio whose filter has at most {LARGEST} numbers, got {rate} to "
            f"{to} with {up} phases of {width}; take rates with a larger common divisor"
        )
    places = np.arange(-reach, reach + 1)
    phases = np.arange(up)[:, None] / up
    away = phases - places  # [up, taps], in samples of x
    inside = np.clip(1 - (away / (reach + 1)) ** 2, 0, None)
    taps = edge * np.sinc(edge * away) * np.i0(8.0 * np.sqrt(inside)) / np.i0(8.0)
    taps /= taps.sum(1, keepdims=True)  # each phase leaves a constant as it is
    wide = np.pad(x, (reach, reach + 1))
    count = -(-len(x) * up // down)
    out, block = np.empty(count, x.dtype), max(BLOCK // width, 1)
    for begin in range(0, count, block):
        at, phase = np.divmod(np.arange(begin, min(begin + block, count)) * down, up)
        windows = wide[at[:, None] + np.arange(width)]
        out[begin : begin + block] = np.einsum("nk,nk->n", windows, taps[phase])
    return out


def _checked(name: str, samples: Array) -> Array:
    """Return samples ``[N]`` of a floating dtype."""
    x: Array = _check.array(name, samples)
    if x.dtype.kind not in "fiu":
        raise TypeError(f"{name}: expected real numbers, got dtype {x.dtype}")
    if x.ndim != 1:
        raise ValueError(f"{name}: expected shape (N,), got {x.shape}")
    floats: Array = x if x.dtype.kind == "f" else x.astype(np.float64)
    return floats


def _htk(mel: Array) -> Array:
    """Return the frequencies of ``mel = 2595 log10(1 + f / 700)``."""
    return 700 * (10 ** (mel / 2595) - 1)


def _slaney(mel: Array) -> Array:
    """Return the frequencies of a scale that is linear up to 1000 Hz, at 15, and then a power."""
    linear = np.minimum(mel, 15) * (200 / 3)
    frequencies: Array = linear * 6.4 ** (np.maximum(mel - 15, 0) / 27)
    return frequencies


def _mel(scale: str, f: float) -> float:
    """Return the place of a frequency on a scale: the inverse of `_htk` and `_slaney`."""
    if scale == "htk":
        return 2595 * math.log10(1 + f / 700)
    return f * 3 / 200 if f < 1000 else 15 + 27 * math.log(f / 1000, 6.4)


def mel_filters(
    rate: int, size: int, bands: int, *, low: float = 20.0, scale: str = "htk"
) -> Array:
    """Return triangular filters of equal width on a mel scale, ``[size // 2 + 1, bands]``.

    The filters reach from `low` to half of the rate. On the scale "htk",
    ``mel = 2595 log10(1 + f / 700)``, they have a height of 1; on "slaney", which is linear up to
    1000 Hz and logarithmic above, an area of 1 over the frequencies in hertz.

    >>> import ostinato as ost
    >>> filters = ost.audio.mel_filters(8000, 256, 20)
    >>> filters.shape
    (129, 20)

    Args:
        rate: samples in a second.
        size: the size of the Fourier transform.
        bands: the number of filters.
        low: where the first one begins, in hertz.
        scale: "htk" or "slaney".

    Returns:
        Weights of the energies, float64.

    Raises:
        TypeError: a rate, size or bands that are no whole number, or a low that is no number.
        ValueError: a rate or bands below 1, a size below 2, a low below 0 or from half of the rate
            on, another scale, or filters that are too narrow for the transform to see.

    Source: Davis, Mermelstein (1980), "Comparison of parametric representations for monosyllabic
    word recognition"; Young et al. (2006), "The HTK book"; Slaney (1998), "Auditory toolbox",
    version 2.
    """
    rate, size = _check.positive("rate", rate), _check.positive("size", size, 2)
    bands, low = _check.positive("bands", bands), _check.finite("low", low)
    _check.choice("scale", scale, ("htk", "slaney"))
    if low >= rate / 2:
        raise ValueError(f"low: expected less than half of the rate, {rate / 2:g}, got {low:g}")
    mels = np.linspace(_mel(scale, low), _mel(scale, rate / 2), bands + 2)
    edges = _htk(mels) if scale == "htk" else _slaney(mels)
    frequencies = np.arange(size // 2 + 1)[:, None] * rate / size
    left, middle, right = edges[:-2], edges[1:-1], edges[2:]
    rising = (frequencies - left) / (middle - left)
    falling = (right - frequencies) / (right - middle)
    filters: Array = np.clip(np.minimum(rising, falling), 0, None)
    if not filters.any(0).all():
        raise ValueError(
            f"bands: expected filters of at least one of {len(frequencies)} frequencies each, got "
            f"{bands} bands, of which some are narrower; use fewer bands or longer windows"
        )
    return filters if scale == "htk" else filters * (2 / (right - left))


def log_mel(
    samples: Array,
    rate: int,
    *,
    bands: int = 40,
    window: float = 0.025,
    hop: float = 0.01,
    low: float = 20.0,
    scale: str = "htk",
) -> Array:
    """Return the logarithms of the energies in mel bands, a row for each hop.

    Hann windows are cut where they lie whole within the sound, and transformed at the next power
    of two of their length.

    >>> import numpy as np
    >>> import ostinato as ost
    >>> low, high = (np.sin(2 * np.pi * f * np.arange(4000) / 8000) for f in (300, 3000))
    >>> [int(ost.audio.log_mel(x, 8000, bands=20).mean(0).argmax()) for x in (low, high)]
    [3, 17]

    Args:
        samples: ``[N]`` real numbers, from -1 to 1.
        rate: samples in a second.
        bands: the number of bands.
        window: seconds of a window.
        hop: seconds from a window to the next.
        low: the lowest frequency, in hertz.
        scale: "htk" or "slaney"; see `mel_filters`.

    Returns:
        float32 ``[T, bands]``, in nats; T is 0 where the sound is shorter than a window.

    Raises:
        TypeError: samples that are no real numbers, a window or hop that is no number, or what
            `mel_filters` refuses.
        ValueError: a window or a hop shorter than a sample, or what `mel_filters` refuses.
    """
    x, rate = _checked("samples", samples), _check.positive("rate", rate)
    window, hop = _check.finite("window", window), _check.finite("hop", hop)
    length, step = round(window * rate), round(hop * rate)
    for name, value in (("window", length), ("hop", step)):
        if value < 1:
            raise ValueError(f"{name}: expected at least one sample, 1/{rate} s, got {value}")
    size = 1 << (length - 1).bit_length()
    filters = mel_filters(rate, max(size, 2), bands, low=low, scale=scale)
    if len(x) < length:
        return np.zeros((0, bands), np.float32)
    frames = np.lib.stride_tricks.sliding_window_view(x, length)[::step]
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(length) / length)
    spectrum = np.fft.rfft(frames * hann, max(size, 2))
    energy = (spectrum.real**2 + spectrum.imag**2) / (hann**2).sum()
    out: Array = np.log(energy @ filters + QUIET).astype(np.float32)
    return out


readable(globals())
