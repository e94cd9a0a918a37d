"""Sound files, rates and features: against formulas written out by hand."""

from __future__ import annotations

import math
import struct
import tracemalloc
import wave
from pathlib import Path

import numpy as np
import pytest

import ostinato as ost
from ostinato import audio


def write(path: Path, frames: bytes, *, width: int = 2, rate: int = 8000, channels: int = 1) -> str:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes(frames)
    return str(path)


# -- files -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_samples_of_every_width(tmp_path: Path, width: int) -> None:
    wanted = [0.0, 0.5, -0.5, -1.0]
    scale = 2 ** (8 * width - 1)
    if width == 1:
        frames = bytes(int(v * 128) + 128 for v in wanted)
    else:
        frames = b"".join(int(v * scale).to_bytes(width, "little", signed=True) for v in wanted)
    sound = audio.read_wav(write(tmp_path / "a.wav", frames, width=width, rate=11025))
    assert sound.samples.tolist() == wanted
    assert sound.samples.dtype == np.float32
    assert sound[1:] == (11025, 1, width)
    assert sound.seconds == 4 / 11025


def test_channels_are_averaged(tmp_path: Path) -> None:
    frames = np.array([[16384, 0], [0, -16384]], "<i2").tobytes()
    sound = audio.read_wav(write(tmp_path / "a.wav", frames, channels=2))
    assert sound.samples.tolist() == [0.25, -0.25]
    assert sound.channels == 2


def test_a_file_without_samples(tmp_path: Path) -> None:
    assert audio.read_wav(write(tmp_path / "a.wav", b"")).samples.shape == (0,)


def header(
    *, form: int = 1, bits: int = 16, data: bytes = b"\0\0", size: int | None = None
) -> bytes:
    """Return a WAV file of one channel, which may be wrong."""
    width = (bits + 7) // 8
    fmt = struct.pack("<HHIIHH", form, 1, 8000, 8000 * width, width, bits)
    body = b"WAVEfmt " + struct.pack("<I", len(fmt)) + fmt
    body += b"data" + struct.pack("<I", len(data) if size is None else size) + data
    return b"RIFF" + struct.pack("<I", len(body)) + body


@pytest.mark.parametrize("before", [b"", b"JUNK\3\0\0\0abc\0"])
@pytest.mark.parametrize("bits", [16, 24, 32])
def test_an_extensible_format(tmp_path: Path, bits: int, before: bytes) -> None:
    """Python reads it from 3.12 on."""
    width = bits // 8
    sub = struct.pack("<H", 1) + bytes.fromhex("000000001000800000aa00389b71")
    fmt = struct.pack("<HHIIHHHHI", 0xFFFE, 1, 8000, 8000 * width, width, bits, 22, bits, 4) + sub
    data = b"".join((v << (bits - 8)).to_bytes(width, "little", signed=True) for v in (64, -128))
    body = b"WAVE" + before + b"fmt " + struct.pack("<I", 40) + fmt
    body += b"data" + struct.pack("<I", len(data)) + data
    (tmp_path / "a.wav").write_bytes(b"RIFF" + struct.pack("<I", len(body)) + body)
    sound = audio.read_wav(tmp_path / "a.wav")
    assert sound.samples.tolist() == [0.5, -1.0]
    assert sound[1:] == (8000, 1, width)
    body = body.replace(sub, b"\3" + sub[1:])  # of real numbers
    (tmp_path / "b.wav").write_bytes(b"RIFF" + struct.pack("<I", len(body)) + body)
    with pytest.raises(ValueError, match=r"path: expected a WAV file of whole numbers \(PCM\)"):
        audio.read_wav(tmp_path / "b.wav")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file ends early"),
        (b"no sound at all", "PCM"),
        (header(form=3, bits=32, data=b"\0" * 4), "unknown format: 3"),
        (header(bits=40, data=b"\0" * 10), "40-bit"),
        (header(data=b"\0" * 10, size=1000), "expected 500 samples"),
    ],
    ids=["empty", "text", "float", "40-bit", "cut"],
)
def test_other_files_are_refused_by_name(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "bad.wav"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as e:
        audio.read_wav(path)
    assert "bad.wav" in str(e.value)


def test_a_header_of_a_long_sound_takes_no_memory(tmp_path: Path) -> None:
    """Reading what the header says would take 4 GB before the file's end is seen."""
    path = tmp_path / "cut.wav"
    path.write_bytes(header(data=b"\0" * 10, size=2**32 - 8))
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="expected 2147483644 samples"):
            audio.read_wav(path)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


# -- rates -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rate", "to"), [(16000, 8000), (44100, 8000), (11025, 8000), (8000, 16000), (8000, 7999)]
)
def test_a_tone_keeps_its_pitch(rate: int, to: int) -> None:
    tone = np.sin(2 * np.pi * 1000 * np.arange(rate) / rate)
    made = audio.resample(tone, rate, to)
    wanted = np.sin(2 * np.pi * 1000 * np.arange(len(made)) / to)
    assert len(made) == to
    inner = slice(to // 20, -to // 20)
    assert np.abs(made - wanted)[inner].max() < 2e-4


@pytest.mark.parametrize(("rate", "to"), [(16000, 8000), (11025, 8000), (8000, 16000)])
def test_the_band_of_a_filter(rate: int, to: int) -> None:
    """What lies above the lower of the two bands is 80 dB down, and so are images of it."""
    time, edge = np.arange(rate) / rate, min(rate, to) / 2
    for part in (0.5, 0.84):
        made = audio.resample(np.sin(2 * np.pi * part * edge * time), rate, to)[200:-200]
        assert np.sqrt((made**2).mean() * 2) == pytest.approx(1, abs=2e-4)
    if rate > to:
        for part in (1.003, 1.02, 1.1):
            made = audio.resample(np.sin(2 * np.pi * part * edge * time), rate, to)[200:-200]
            assert np.sqrt((made**2).mean() * 2) < 1e-4
    else:
        tone = audio.resample(np.sin(2 * np.pi * 0.84 * edge * time), rate, to)[:16000]
        power = np.abs(np.fft.rfft(tone * np.blackman(len(tone)))) ** 2
        assert power[int(edge) :].max() < 1e-8 * power.max()


def test_what_the_new_rate_cannot_hold_is_removed() -> None:
    tone = np.sin(2 * np.pi * 6000 * np.arange(16000) / 16000)
    made = audio.resample(tone, 16000, 8000)
    assert np.abs(made[200:-200]).max() < 2e-4  # taking every second sample gives a tone of 2 kHz
    assert np.abs(tone[::2]).max() > 0.9


def test_resampling_at_its_edges() -> None:
    x = np.ones(1000, np.float32)
    assert np.array_equal(audio.resample(x, 8000, 8000), x)
    assert audio.resample(x[:0], 8000, 7000).shape == (0,)
    assert audio.resample(x[:1], 3, 2).shape == (1,)
    made = audio.resample(x, 11, 10)
    assert made.dtype == np.float32
    assert audio.resample(x.astype(np.int16), 11, 10).dtype == np.float64
    assert audio.resample(x.astype(np.int16), 11, 11).dtype == np.float64
    assert np.abs(made[60:-60] - 1).max() < 1e-6
    # More outputs than are computed at a time are those of one piece.
    long = np.random.default_rng(0).normal(size=90_000)
    assert np.allclose(
        audio.resample(long, 10, 11)[70_000:80_000],
        audio.resample(long[60_000:], 10, 11)[4000:14_000],
        atol=1e-9,
    )


def test_bad_arguments_of_resample() -> None:
    with pytest.raises(ValueError, match=r"samples: expected shape \(N,\)"):
        audio.resample(np.zeros((2, 3)), 2, 1)
    with pytest.raises(TypeError, match="samples: expected real numbers"):
        audio.resample(np.zeros(3, complex), 2, 1)
    with pytest.raises(ValueError, match="rate, to: expected a ratio whose filter"):
        audio.resample(np.zeros(3), 2**31 - 1, 8000)
    with pytest.raises(ValueError, match="rate: expected a whole number of at least 1"):
        audio.resample(np.zeros(3), 0, 1)


# -- features --------------------------------------------------------------------------------------


def mel(hertz: float) -> float:
    return 2595 * math.log10(1 + hertz / 700)


def reference_log_mel(x: np.ndarray, rate: int, bands: int, low: float) -> np.ndarray:
    """Return log-mel energies by the textbook, one sum at a time."""
    length, step, size = rate // 40, rate // 100, 256
    edges = [mel(low) + (mel(rate / 2) - mel(low)) * k / (bands + 1) for k in range(bands + 2)]
    hertz = [700 * (10 ** (m / 2595) - 1) for m in edges]
    hann = [0.5 - 0.5 * math.cos(2 * math.pi * n / length) for n in range(length)]
    rows = []
    for begin in range(0, len(x) - length + 1, step):
        energy = []
        for k in range(size // 2 + 1):
            turns = [2 * math.pi * k * n / size for n in range(length)]
            real = sum(x[begin + n] * hann[n] * math.cos(t) for n, t in enumerate(turns))
            imaginary = sum(x[begin + n] * hann[n] * math.sin(t) for n, t in enumerate(turns))
            energy.append((real**2 + imaginary**2) / sum(h * h for h in hann))
        row = []
        for b in range(bands):
            left, middle, right = hertz[b : b + 3]
            total = 0.0
            for k, e in enumerate(energy):
                f = k * rate / size
                if left < f <= middle:
                    total += e * (f - left) / (middle - left)
                elif middle < f < right:
                    total += e * (right - f) / (right - middle)
            row.append(math.log(total + 1e-7))
        rows.append(row)
    return np.array(rows)


def test_log_mel_by_hand() -> None:
    x = np.random.default_rng(0).normal(size=370) * 0.1
    ours = audio.log_mel(x, 8000, bands=15, low=100.0)
    wanted = reference_log_mel(x, 8000, 15, 100.0)
    assert ours.shape == (3, 15)
    assert ours.dtype == np.float32
    assert np.allclose(ours, wanted, rtol=1e-5, atol=1e-5)


def test_filters_on_the_scale_of_slaney() -> None:
    """Peaks are 200/3 Hz apart up to 1000 Hz; from there 27 steps lead to 6.4 times as much."""
    filters = audio.mel_filters(12800, 128000, 41, low=0.0, scale="slaney")  # 0.1 Hz a row
    peaks = filters.argmax(0) / 10
    assert np.allclose(peaks[:15], np.arange(1, 16) * 200 / 3, atol=0.06)
    assert np.allclose(peaks[14:], 1000 * 6.4 ** (np.arange(27) / 27), atol=0.06)
    assert np.allclose(filters.sum(0) * 0.1, 1, rtol=1e-4)  # areas
    with pytest.raises(ValueError, match=r"scale: expected .*htk.*slaney"):
        audio.mel_filters(8000, 256, 20, scale="bark")


def test_log_mel_on_the_scale_of_slaney() -> None:
    """The energies of a flat spectrum are the sums of the filters."""
    x = np.zeros(200)
    x[100] = 1.0
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(200) / 200)
    for scale in ("htk", "slaney"):
        filters = audio.mel_filters(8000, 256, 20, low=100.0, scale=scale)
        wanted = np.log(filters.sum(0) / (hann**2).sum() + 1e-7)
        found = audio.log_mel(x, 8000, bands=20, low=100.0, scale=scale)
        assert np.allclose(found, wanted[None], rtol=1e-5, atol=1e-5)
    assert np.array_equal(
        audio.log_mel(x, 8000, bands=20), audio.log_mel(x, 8000, bands=20, scale="htk")
    )


def test_filters_cover_the_band_evenly() -> None:
    filters = audio.mel_filters(16000, 512, 30, low=0.0)
    inside = filters.sum(1)[8:-30]  # between the middles of the first and the last
    assert np.allclose(inside, 1)
    assert (filters >= 0).all()


def test_short_and_silent_sounds() -> None:
    assert audio.log_mel(np.zeros(199), 8000).shape == (0, 40)
    assert audio.log_mel(np.zeros(200), 8000).shape == (1, 40)
    assert np.isfinite(audio.log_mel(np.zeros(400), 8000)).all()


def test_bad_arguments_of_features() -> None:
    with pytest.raises(ValueError, match="bands: expected filters of at least one of 129"):
        audio.mel_filters(8000, 256, 200)
    with pytest.raises(ValueError, match="low: expected less than half of the rate"):
        audio.mel_filters(8000, 256, 20, low=4000)
    with pytest.raises(ValueError, match="size: expected a whole number of at least 2, got 1"):
        audio.mel_filters(8000, 1, 1)
    with pytest.raises(TypeError, match=r"rate: expected a whole number, got 8000\.0"):
        audio.mel_filters(8000.0, 256, 20)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"scale: expected .*htk.*slaney"):
        audio.log_mel(np.zeros(300), 8000, scale="bark")
    with pytest.raises(ValueError, match="hop: expected at least one sample"):
        audio.log_mel(np.zeros(300), 8000, hop=1e-6)
    assert ost.audio is audio
