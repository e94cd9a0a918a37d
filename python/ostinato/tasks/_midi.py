"""Write notes as a standard MIDI file: one track in format 0."""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence

from .._files import atomic_write
from ._abc import Note

QUARTER = 480  # ticks
LOUDNESS = 90


def _quantity(value: int) -> bytes:
    """Return a number as MIDI has it: 7 bits a byte, all bytes but the last with the high bit."""
    out = [value & 0x7F]
    while value := value >> 7:
        out.append(value & 0x7F | 0x80)
    return bytes(reversed(out))


def _meta(kind: int, data: bytes) -> bytes:
    return bytes([0xFF, kind]) + _quantity(len(data)) + data


def encode(
    notes: Sequence[Note], *, tempo: float, meter: tuple[int, int] | None, sharps: int, program: int
) -> bytes:
    """Return the bytes of a MIDI file.

    Args:
        notes: notes with their starts from the beginning.
        tempo: quarter notes a minute.
        meter: two numbers, such as (6, 8); None writes none.
        sharps: sharps of the key, from -7 (flats) to 7.
        program: number of the instrument, from 0 to 127.

    Returns:
        A header and a track.
    """
    head = _meta(0x51, round(60e6 / tempo).to_bytes(3, "big"))
    if meter is not None:
        head += b"\0" + _meta(0x58, bytes([meter[0], meter[1].bit_length() - 1, 24, 8]))
    head += b"\0" + _meta(0x59, struct.pack("bB", sharps, 0)) + bytes([0, 0xC0, program])
    events = []
    for note in notes:
        begin = round(note.start * 4 * QUARTER)
        end = max(round((note.start + note.length) * 4 * QUARTER), begin + 1)
        for pitch in sorted(set(note.pitches)):
            events.append((begin, 1, bytes([0x90, pitch, LOUDNESS])))
            events.append((end, 0, bytes([0x80, pitch, 0])))
    track = b"\0" + head
    now = 0
    for at, _, message in sorted(events):  # at one time notes end before others begin
        track += _quantity(at - now) + message
        now = at
    track += b"\0" + _meta(0x2F, b"")
    header = struct.pack(">4sIHHH", b"MThd", 6, 0, 1, QUARTER)
    return header + struct.pack(">4sI", b"MTrk", len(track)) + track


def write(
    path: str | os.PathLike[str],
    notes: Sequence[Note],
    *,
    tempo: float = 120.0,
    meter: tuple[int, int] | None = None,
    sharps: int = 0,
    program: int = 73,
) -> None:
    """Write a MIDI file.

    Args:
        path: the file.
        notes: notes with their starts from the beginning.
        tempo: quarter notes a minute.
        meter: two numbers, such as (6, 8); None writes none.
        sharps: sharps of the key, from -7 (flats) to 7.
        program: number of the instrument; 73 is the flute.

    Raises:
        OSError: the file cannot be written.
    """
    data = encode(notes, tempo=tempo, meter=meter, sharps=sharps, program=program)
    with atomic_write(path) as f:
        f.write(data)
