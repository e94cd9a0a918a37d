"""Read clips of speech with their transcripts, and say of each one that is left out why."""

from __future__ import annotations

import os
import re
import unicodedata
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from .. import audio
from .._check import Array, quoted
from .._files import open_regular

LARGEST = 64 << 20  # bytes of a file of transcripts
QUIETEST = 1e-3  # the largest sample of a clip that counts as silent
DIGITS = {
    "en": ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"],
    "es": ["cero", "uno", "dos", "tres", "cuatro", "cinco", "seis", "siete", "ocho", "nueve"],
}
# Where Debian's packages asterisk-core-sounds-en-wav and asterisk-core-sounds-en put them.
INSTALLED = (
    "/usr/share/asterisk/sounds/en_US_f_Allison",
    "/usr/share/doc/asterisk-core-sounds-en/core-sounds-en.txt.gz",
)


@dataclass(frozen=True)
class Clip:
    """A clip of speech.

    Attributes:
        name: its name, for messages.
        samples: the samples at the rate of the model.
        text: what is said in it.
        key: a number that tells clips apart by the samples of their files; -1 for one of
            ``samples``.
    """

    name: str
    samples: Array
    text: str
    key: int = -1

    def __post_init__(self) -> None:
        if self.key < 0:
            object.__setattr__(self, "key", zlib.crc32(self.samples.tobytes()))


def written(text: str, digits: str = "", strip_accents: bool = False) -> str:
    """Return what is said of a transcript: small letters, digits, apostrophes and single spaces.

    >>> written("Dial  2, [beep] or DON'T!", "en")
    "dial two or don't"

    Args:
        text: the transcript; what is in brackets is a remark.
        digits: the language in which digits that stand alone are said; "" leaves them.
        strip_accents: whether letters lose their accents.
    """
    text = _without_remarks(text).casefold()
    text = unicodedata.normalize("NFD" if strip_accents else "NFC", text)
    if digits:
        words = DIGITS[digits]
        text = re.sub(r"(?<![\d.])\d(?!\d|\.\d)", lambda m: f" {words[int(m[0])]} ", text)
    kept = "LN" if strip_accents else "LMN"
    letters = (
        c if unicodedata.category(c)[0] in kept or c == "'" else " "
        for c in text
        if not (strip_accents and unicodedata.combining(c))
    )
    return " ".join("".join(letters).split())


def _without_remarks(text: str) -> str:
    """Return a text with a space for each part in brackets, in time that grows with its length."""
    closing, out, at = {"[": "]", "(": ")", "<": ">"}, [], 0
    for match in re.finditer(r"[\[(<]", text):
        if match.start() < at or match[0] not in closing:
            continue
        end = text.find(closing[match[0]], match.end())
        if end < 0:  # there is none for those that follow either
            del closing[match[0]]
            continue
        out += [text[at : match.start()], " "]
        at = end + 1
    return "".join([*out, text[at:]])


def read_transcripts(path: str | os.PathLike[str]) -> list[tuple[str, str]]:
    """Return the names and texts of a file of transcripts, which may be compressed by gzip.

    A line is ``name TAB text`` or ``name: text``; one that begins with ``;`` or is empty is left
    out. Names are those of files in the folder of clips, with or without ``.wav``.

    Raises:
        ValueError: the file is no text in UTF-8, too large, or a line is of neither form.
    """
    name = os.fspath(path)
    with open_regular(path) as file:
        # What is asked for is taken from memory, however little there is to read.
        data = file.read(min(LARGEST, os.fstat(file.fileno()).st_size) + 1)
    if data[:2] == b"\x1f\x8b":
        unpack = zlib.decompressobj(wbits=31)
        try:
            data = unpack.decompress(data, LARGEST + 1)
        except zlib.error as e:
            raise ValueError(f"DATA: expected transcripts, got {name}, damaged: {e}") from None
        if not unpack.eof and len(data) <= LARGEST:
            raise ValueError(f"DATA: expected transcripts, got {name}, which ends early")
    if len(data) > LARGEST:
        raise ValueError(f"DATA: expected transcripts of at most {LARGEST} bytes, got {name}")
    try:
        lines = data.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as e:
        raise ValueError(f"DATA: expected transcripts in UTF-8, got {name}: {e}") from None
    found = []
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith(";"):
            continue
        key, mark, text = line.partition("\t" if "\t" in line else ":")
        key = key.strip().removesuffix(".wav")
        if not mark or not key:
            raise ValueError(
                f"DATA: expected lines 'name TAB text' or 'name: text', got line {number} of "
                f"{name}: {line[:60]!r}"
            )
        found.append((key, text.strip()))
    if not found:
        raise ValueError(f"DATA: expected at least one transcript, got {name} without any")
    return found


def folder_and_file(data: Sequence[str]) -> tuple[Path, Path]:
    """Return the folder of clips and the file of transcripts that DATA names.

    Raises:
        ValueError: DATA is something else.
        FileNotFoundError: nothing was given, and Debian's packages are not installed.
    """
    paths = [Path(p) for p in data or INSTALLED]
    if not data and not all(p.exists() for p in paths):
        raise FileNotFoundError(
            "DATA: expected a folder of WAV files and a file of transcripts, or Debian's packages "
            "asterisk-core-sounds-en-wav and asterisk-core-sounds-en, found neither; docs/"
            "transcribe.md says how to get them without installing"
        )
    missing = [str(p) for p in paths if not p.exists()]
    if missing:
        raise FileNotFoundError(f"DATA: expected files and folders, found no {missing[0]}")
    folders = [p for p in paths if p.is_dir()]
    files = [p for p in paths if not p.is_dir()]
    if len(folders) != 1 or len(files) != 1:
        raise ValueError(
            "DATA: expected one folder of WAV files and one file of transcripts, got "
            f"{len(folders)} folders and {len(files)} files"
        )
    return folders[0], files[0]


class Left:
    """Counts clips that are left out, by reason, and says so once for each."""

    def __init__(self) -> None:
        self.names: dict[str, list[str]] = {}

    def add(self, reason: str, name: str) -> None:
        """Note a clip."""
        self.names.setdefault(reason, []).append(name)

    def report(self, say: Callable[[str], None]) -> None:
        """Say what was left out."""
        for reason, names in self.names.items():
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            say(f"left out, {reason}: {', '.join(names[:3])}{more}")


def said(texts: list[tuple[str, str]], left: Left, digits: str, strip: bool) -> dict[str, str]:
    """Return what is said in each clip, by name; those without such a text are noted."""
    by_name: dict[str, set[str]] = {}
    for name, text in texts:
        by_name.setdefault(name, set()).add(written(text, digits, strip))
    out = {}
    for name, forms in by_name.items():
        text = next(iter(forms))
        if len(forms) > 1:
            left.add("with two different transcripts", name)
        elif not any(c.isalpha() for c in text):
            left.add("without a letter in its transcript", name)
        elif digits and any(c.isdigit() for c in text):
            left.add("with a number of several digits, which may be said in several ways", name)
        else:
            out[name] = text
    return out


def sound_of(
    name: str, path: Path, rate: int, say: Callable[[str], None], seen: set[str]
) -> tuple[Array, int]:
    """Return the samples of a file at a rate, and a number that tells those of the file.

    What had to be changed is said once.

    Args:
        name: the argument, for errors.
        path: the file.
        rate: samples a second that are wanted.
        say: called with what had to be changed.
        seen: what was said already.
    """
    try:
        sound = audio.read_wav(path)
    except ValueError as e:
        raise ValueError(str(e).replace("path:", f"{name}:", 1)) from None
    notes = []
    if sound.channels > 1:
        notes.append(f"{sound.channels} channels are averaged")
    if sound.rate != rate:
        notes.append(f"{sound.rate} Hz is resampled to {rate} Hz")
    for note in notes:
        if note not in seen:
            say(f"{note}: {path} and others like it")
            seen.add(note)
    try:
        # The number is of the file, since resampling may differ in the last bits.
        return audio.resample(sound.samples, sound.rate, rate), zlib.crc32(sound.samples.tobytes())
    except ValueError:
        raise ValueError(
            f"{name}: expected a usual rate, got {sound.rate} Hz in {path}, which needs too large "
            f"a filter to be made {rate} Hz"
        ) from None


def read_clips(
    data: Sequence[str],
    rate: int,
    *,
    digits: str = "",
    strip_accents: bool = False,
    longest: float = 25.0,
    say: Callable[[str], None],
) -> list[Clip]:
    """Return the clips of DATA that can be used, sorted by name; the others are said.

    Raises:
        ValueError: none can be used, a file is damaged, or a name leads out of the folder.
    """
    folder, file = folder_and_file(data)
    left, seen = Left(), set[str]()
    texts = said(read_transcripts(file), left, digits, strip_accents)
    clips = []
    for name, text in sorted(texts.items()):
        path = folder / f"{name}.wav"
        if ".." in Path(name).parts or Path(name).is_absolute():
            raise ValueError(
                f"DATA: expected names of files in {folder}, got {quoted(name)} in {file}"
            )
        if not path.exists():
            left.add("with a transcript but no file", name)
            continue
        samples, key = sound_of("DATA", path, rate, say, seen)
        if not len(samples):
            left.add("empty", name)
        elif abs(samples).max() < QUIETEST:
            left.add("silent", name)
        elif len(samples) > longest * rate:
            left.add(f"longer than {longest:g} s (--longest)", name)
        else:
            clips.append(Clip(name, samples, text, key))
    named = set(texts).union(*left.names.values())
    untold = sorted(
        name
        for path in folder.rglob("*.wav")
        if (name := path.relative_to(folder).with_suffix("").as_posix()) not in named
    )
    for name in untold:
        left.add("without a transcript", name)
    left.report(say)
    if not clips:
        raise ValueError(
            f"DATA: expected at least one clip of {folder} with a transcript in {file}, got none"
        )
    return clips
