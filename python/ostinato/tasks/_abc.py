"""Read tunes in ABC notation: the fields and notes that a book of tunes in one voice has.

What has no sound (slurs, decorations, chord symbols) is read and left out; what the grammar does
not have is an error with its place.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from fractions import Fraction

BLANK = re.compile(r"\n[ \t]*\n")
FIELD = re.compile(r"([A-Za-z]):(.*)")  # blank space around the value is taken off later
AROUND = "".join(c for c in map(chr, range(0x3001)) if c.isspace()) + "\\!*"
KEPT = "MLK"  # the fields that say how a tune sounds, in the order in which they are written
NATURAL = {"C": 0, "D": 2, "E": 4, "F": 5, "G": 7, "A": 9, "B": 11}
SHARPS = "FCGDAEB"
TONICS = {"C": 0, "G": 1, "D": 2, "A": 3, "E": 4, "B": 5, "F": -1}  # sharps of the major key
MODES = {
    "": 0,
    "maj": 0,
    "ion": 0,
    "mix": -1,
    "dor": -2,
    "m": -3,
    "min": -3,
    "aeo": -3,
    "phr": -4,
    "loc": -5,
    "lyd": 1,
}
ACCIDENTALS = {"^^": 2, "^": 1, "=": 0, "_": -1, "__": -2}
TUPLETS = {2: 3, 3: 2, 4: 3, 5: 2, 6: 2, 7: 2, 8: 3, 9: 2}  # p notes in the time of q
COMPOUND = {5: 3, 7: 3, 9: 3}  # q of those in 6/8, 9/8 and 12/8

NOTE = re.compile(r"(\^\^|\^|=|__|_)?([A-Ga-g])([,']*)")
LENGTH = re.compile(r"(\d*)(/+)?(\d*)")
TUPLET = re.compile(r"\((\d)(?::(\d{0,2}))?(?::(\d{0,2}))?(?!\d)")
BAR = re.compile(r"(\[\||\|\]|:*\|+:*|::)\]?(\[?[1-9](?![\d/]))?|\[[1-9](?![\d/])")
SILENT = re.compile(r'"[^"\n]*"|![^!\n ]*!|\+[^+\n ]*\+|[.~HLMOPSTuvJRkn\\y` \n]')
INLINE = re.compile(r"\[([A-Za-z]):([^\]\n]*)\]")
REST = re.compile(r"[zx]")
BARS_OF_REST = re.compile(r"Z(\d{0,2})")
MOST = 64  # a length of more whole notes, or of smaller parts of one, is no music


@dataclass(frozen=True)
class Note:
    """A note, or what sounds together in a chord.

    Attributes:
        start: when it begins, in whole notes from the start of its bar.
        length: how long it sounds, in whole notes.
        pitches: numbers of MIDI, 60 for middle C; none for a rest.
        tied: whether it goes on in the next note, if that has the same pitches.
    """

    start: Fraction
    length: Fraction
    pitches: tuple[int, ...]
    tied: bool = False


@dataclass
class Bar:
    """What lies between two bar lines.

    Attributes:
        notes: the notes in their order.
        length: the sum of lengths, rests included, in whole notes.
        meter: the length that the meter gives a bar; None for a free meter.
        repeat: whether a repeat begins here.
        again: whether a repeat ends here.
        ending: number of the ending that begins here; 0 for none.
    """

    meter: Fraction | None
    notes: list[Note] = field(default_factory=list)
    length: Fraction = Fraction(0)
    repeat: bool = False
    again: bool = False
    ending: int = 0


@dataclass(frozen=True)
class Tune:
    """A tune that was read.

    Attributes:
        meter: the meter as two numbers, such as (6, 8); None for a free one.
        sharps: sharps of the key at the beginning, below 0 for flats.
        bars: the bars, as they are written.
    """

    meter: tuple[int, int] | None
    sharps: int
    bars: list[Bar]

    def full(self) -> float:
        """Return the share of bars that are as long as their meter says.

        The first and the last bar, and those where a repeat or an ending begins or ends, may be
        parts of one that is full together with another; they do not count. NaN without any others.
        """
        inner = [
            b
            for k, b in enumerate(self.bars)
            if 0 < k < len(self.bars) - 1
            and not (b.repeat or b.again or b.ending)
            and not (self.bars[k - 1].again or self.bars[k + 1].repeat)
        ]
        counted = [b.length == b.meter for b in inner if b.meter is not None]
        return sum(counted) / len(counted) if counted else float("nan")

    def played(self) -> list[Note]:
        """Return the notes with repeats and endings played, ties joined and rests left out.

        Their starts are in whole notes from the beginning of the tune.
        """
        out: list[Note] = []
        now = Fraction(0)
        tied = False
        for bar in _unfolded(self.bars):
            for n in bar.notes:
                if tied and n.pitches == out[-1].pitches:
                    out[-1] = Note(out[-1].start, out[-1].length + n.length, n.pitches)
                elif n.pitches:
                    out.append(Note(now + n.start, n.length, n.pitches))
                tied = n.tied and bool(n.pitches)
            now += bar.length
        return out


def _unfolded(bars: list[Bar]) -> list[Bar]:
    """Return the bars in the order in which they are played."""
    out: list[Bar] = []
    begin = k = 0
    time = 1
    while k < len(bars):
        bar = bars[k]
        if bar.repeat and k != begin:
            begin, time = k, 1
        if bar.ending and bar.ending != time:
            k = _behind_ending(bars, k)
            continue
        out.append(bar)
        k += 1
        if bar.again and time == 1:
            k, time = begin, 2
        elif bar.again or (time == 2 and _ends_part(bars, k)):
            begin, time = k, 1
    return out


def _ends_part(bars: list[Bar], k: int) -> bool:
    """Return whether a part that was played twice is over before bar k."""
    return k == len(bars) or bars[k].repeat


def _behind_ending(bars: list[Bar], k: int) -> int:
    """Return the bar behind the ending that begins at bar k."""
    k += 1
    while k < len(bars) and not (bars[k].ending or bars[k].repeat or bars[k - 1].again):
        k += 1
    return k


def tidy(text: str) -> str:
    """Return a tune as a model learns it: meter, unit and key, then the music.

    Comments, titles and other fields, symbols in quotation marks and blank space at the ends of
    lines are left out.

    Args:
        text: a tune in ABC.

    Returns:
        Lines that end in newlines, the last one as well; "" where there is no key or no music.

    Raises:
        ValueError: a tune of several voices.
    """
    fields: dict[str, str] = {}
    music = []
    for line in text.splitlines():
        line = line.partition("%")[0].strip()
        match = FIELD.fullmatch(line)
        if match is None:
            line = re.sub(r'"[^"]*"', "", line).strip(AROUND)
            if line and "K" in fields and FIELD.fullmatch(line) is None:
                music.append(line)
        elif match[1] == "V":
            raise ValueError(f"expected tunes of one voice, got {line[:40]!r}")
        elif match[1] in KEPT and match[2].strip(" \t"):
            value = match[2].strip(" \t")
            if "K" in fields:
                music.append(f"{match[1]}:{value}")
            else:
                fields[match[1]] = value
    if "K" not in fields or not music:
        return ""
    head = [f"{name}:{fields[name]}" for name in KEPT if name in fields]
    return "\n".join([*head, *music]) + "\n"


def split(text: str) -> list[str]:
    """Return the tunes of a book, each from its field X on, as `tidy` gives them.

    Args:
        text: a file in ABC.

    Returns:
        Those that have a key and music, in their order.

    Raises:
        ValueError: a tune of several voices.
    """
    parts = re.split(r"^(?=X:)", text, flags=re.M)
    # A blank line ends a tune; what is behind it and before the next X is no music.
    tunes = (tidy(BLANK.split(part, maxsplit=1)[0]) for part in parts if part.startswith("X:"))
    return [tune for tune in tunes if tune]


def check_field(name: str, value: str) -> None:
    """Raise a ValueError unless a field is a meter, a unit or a key."""
    if name not in KEPT or len(name) != 1:
        raise ValueError(f"fields: expected names of {', '.join(KEPT)}, got {name!r:.40}")
    _Parser("").set_field(name, value)


def parse(text: str) -> Tune:
    """Read a tune.

    Args:
        text: a tune in ABC, with the field K before its music.

    Returns:
        The tune.

    Raises:
        ValueError: what is written is no ABC; the error has the line and the column.
    """
    return _Parser(text).tune()


class _Parser:
    """Reader of one tune, which goes through its music from left to right."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.meter: tuple[int, int] | None = None
        self.unit: Fraction | None = None
        self.key: dict[str, int] | None = None
        self.sharps = 0
        self.altered: dict[str, int] = {}  # by accidentals, up to the next bar line
        self.bars: list[Bar] = []
        self.bar = Bar(None)
        self.scale: list[Fraction] = []  # for each note to come of a tuplet
        self.next_factor = Fraction(1)  # for the note behind > or <
        self.slurs = 0

    def refuse(self, expected: str, got: str | None = None) -> ValueError:
        """Return the error for what stands at the present place."""
        line = self.text.count("\n", 0, self.at) + 1
        column = self.at - self.text.rfind("\n", 0, self.at)
        found = repr(self.text[self.at : self.at + 8]) if got is None else got
        return ValueError(f"ABC: expected {expected}, got {found} in line {line}, column {column}")

    def tune(self) -> Tune:
        """Return the tune that the text is."""
        first: Tune | None = None
        while self.at < len(self.text):
            at_start = self.at == 0 or self.text[self.at - 1] == "\n"
            end = self.text.find("\n", self.at)
            line = self.text[self.at : len(self.text) if end < 0 else end]
            match = FIELD.fullmatch(line) if at_start else None
            if match is not None:
                self.set_field(match[1], match[2].strip(" \t"))
                self.at += len(line) + 1
                if self.key is not None and first is None:
                    first = Tune(self.meter, self.sharps, self.bars)
            elif self.key is None:
                raise self.refuse("the field K before the music")
            else:
                self.element()
        return self.finished(first)

    def finished(self, tune: Tune | None) -> Tune:
        """Check what has to be closed at the end, and return the tune."""
        if tune is None:
            raise self.refuse("the field K", "the end")
        if self.scale:
            raise self.refuse("the notes of a tuplet", "the end")
        if self.slurs:
            raise self.refuse("')' for each '('", "the end")
        if self.next_factor != 1:
            raise self.refuse("a note behind '>' or '<'", "the end")
        self.close_bar()
        if not any(n.pitches for b in self.bars for n in b.notes):
            raise self.refuse("music behind the field K", "the end")
        return tune

    def set_field(self, name: str, value: str) -> None:
        """Take a field into account; those that do not change how it sounds are passed over."""
        if name == "M":
            self.meter = self.read_meter(value)
            self.bar.meter = None if self.meter is None else Fraction(*self.meter)
        elif name == "L":
            match = re.fullmatch(r"(\d{1,3})/([1-9]\d{0,2})", value)
            if match is None or not 0 < Fraction(int(match[1]), int(match[2])) <= 1:
                raise self.refuse("a unit such as L:1/8", f"L:{value}")
            self.unit = Fraction(int(match[1]), int(match[2]))
        elif name == "K":
            self.sharps = self.read_key(value)
            self.key = {}
            for k in range(abs(self.sharps)):
                letter = SHARPS[k % 7] if self.sharps > 0 else SHARPS[6 - k % 7]
                self.key[letter] = self.key.get(letter, 0) + (1 if self.sharps > 0 else -1)

    def read_meter(self, value: str) -> tuple[int, int] | None:
        """Return a meter; None for a free one."""
        known = {"C": (4, 4), "C|": (2, 2)}
        if value in known:
            return known[value]
        if value == "none":
            return None
        match = re.fullmatch(r"([1-9]\d?)/(1|2|4|8|16|32)", value)
        if match is None:
            raise self.refuse("a meter such as M:6/8", f"M:{value}")
        return int(match[1]), int(match[2])

    def read_key(self, value: str) -> int:
        """Return the sharps of a key, below 0 for flats."""
        match = re.fullmatch(r"([A-G])([#b]?)[ \t]*([A-Za-z]*)", value)
        mode = "" if match is None else match[3]
        short = "m" if mode == "m" else mode[:3].lower()
        if match is None or short not in MODES or (len(mode) == 2):
            raise self.refuse("a key such as K:G or K:Dmix", f"K:{value}")
        sharps = TONICS[match[1]] + 7 * {"": 0, "#": 1, "b": -1}[match[2]] + MODES[short]
        if abs(sharps) > 7:
            raise self.refuse("a key of at most 7 sharps or flats", f"K:{value}")
        return sharps

    def note_unit(self) -> Fraction:
        """Return the length of a note without a number."""
        if self.unit is not None:
            return self.unit
        short = self.meter is not None and Fraction(*self.meter) < Fraction(3, 4)
        return Fraction(1, 16 if short else 8)

    def element(self) -> None:
        """Read what stands at the present place."""
        text, at = self.text, self.at
        inline = INLINE.match(text, at)
        if inline is not None:
            self.set_field(inline[1], inline[2].strip())
            self.at = inline.end()
            return
        tuplet = TUPLET.match(text, at)
        if tuplet is not None:
            self.begin_tuplet(tuplet)
            return
        bar = BAR.match(text, at)
        if bar is not None:
            self.bar_line(bar[0])
            self.at = bar.end()
            return
        char = text[at]
        if char in "()":
            self.slurs += 1 if char == "(" else -1
            if self.slurs < 0:
                raise self.refuse("'(' before ')'")
            self.at += 1
        elif char == "{":
            self.grace()
        elif char in "<>":
            self.broken()
        elif char == "-":
            self.tie()
        elif char == "Z":
            self.bars_of_rest()
        elif char == "[" or NOTE.match(text, at) or REST.match(text, at):
            self.sound()
        else:
            silent = SILENT.match(text, at)
            if silent is None:
                raise self.refuse("a note, a bar line or the like")
            self.at = silent.end()

    def begin_tuplet(self, match: re.Match[str]) -> None:
        """Read the beginning of a tuplet."""
        p = int(match[1])
        if self.scale:
            raise self.refuse("the rest of a tuplet")
        compound = self.meter is not None and self.meter[1] == 8 and self.meter[0] % 3 == 0
        usual = (COMPOUND if compound else {}).get(p, TUPLETS.get(p, 0))
        q = int(match[2]) if match[2] else usual
        r = int(match[3]) if match[3] else p
        if p not in TUPLETS or not q or not r:
            raise self.refuse("a tuplet such as (3")
        self.scale = [Fraction(q, p)] * r
        self.at = match.end()

    def bar_line(self, line: str) -> None:
        """End a bar."""
        if self.scale:
            raise self.refuse("the notes of a tuplet")
        if self.next_factor != 1:
            raise self.refuse("a note behind '>' or '<'")
        ending = line[-1] if line[-1].isdigit() else "0"
        body = line.rstrip("[123456789")
        self.close_bar(again=body.startswith(":"))
        self.bar.repeat |= body.endswith(":")
        self.bar.ending = int(ending) or self.bar.ending
        self.altered = {}

    def close_bar(self, again: bool = False) -> None:
        """Keep the present bar if it has anything, and begin another."""
        bar = self.bar
        meter = None if self.meter is None else Fraction(*self.meter)
        if bar.length or bar.notes:
            bar.again = again
            self.bars.append(bar)
            self.bar = Bar(meter)
        elif again and self.bars:
            self.bars[-1].again = True

    def grace(self) -> None:
        """Read grace notes, which take no time and are left out."""
        end = self.text.find("}", self.at)
        inside = self.text[self.at + 1 : end]
        if end < 0 or "\n" in inside:
            raise self.refuse("'}' behind '{' in its line")
        left = re.sub(r"[/\d()~.<>\[\] -]", "", NOTE.sub("", inside))
        if left or not NOTE.search(inside):
            raise self.refuse("grace notes such as {cd}", repr(self.text[self.at : end + 1]))
        self.at = end + 1

    def broken(self) -> None:
        """Read a dotted rhythm between two notes."""
        run = re.match(r"<+|>+", self.text[self.at :])
        count = len(run[0]) if run is not None else 0
        if count > 3 or not self.bar.notes or self.next_factor != 1:
            raise self.refuse("'<' or '>' behind a note of the bar")
        short = Fraction(1, 2**count)
        first, second = (2 - short, short) if self.text[self.at] == ">" else (short, 2 - short)
        last = self.bar.notes[-1]
        longer = last.length * first
        self.bar.length += longer - last.length
        self.bar.notes[-1] = Note(last.start, longer, last.pitches, last.tied)
        self.next_factor = second
        self.at += count

    def tie(self) -> None:
        """Read a tie, which stands behind a note or at the beginning of a bar."""
        notes = self.bar.notes or (self.bars[-1].notes if self.bars else [])
        if not notes:
            raise self.refuse("'-' behind a note")
        last = notes[-1]
        notes[-1] = Note(last.start, last.length, last.pitches, tied=True)
        self.at += 1

    def bars_of_rest(self) -> None:
        """Read a rest of whole bars."""
        match = BARS_OF_REST.match(self.text, self.at)
        count = int(match[1] or 1) if match is not None else 0
        if not count or self.meter is None or self.scale or self.next_factor != 1:
            raise self.refuse("a rest of bars such as Z2, and a meter")
        whole = Fraction(*self.meter) * count
        self.bar.notes.append(Note(self.bar.length, whole, ()))
        self.bar.length += whole
        self.at += 0 if match is None else len(match[0])

    def sound(self) -> None:
        """Read a note, a chord or a rest."""
        pitches: list[int] = []
        inner = None  # the length of a chord's first note is that of the chord
        if self.text[self.at] == "[":
            self.at += 1
            while self.at < len(self.text) and self.text[self.at] != "]":
                if NOTE.match(self.text, self.at):
                    pitches.append(self.pitch())
                    length = self.length()
                    inner = length if inner is None else inner
                else:
                    silent = SILENT.match(self.text, self.at)
                    if silent is None or "\n" in silent[0]:
                        raise self.refuse("the notes of a chord and ']'")
                    self.at = silent.end()
            if self.at >= len(self.text) or not pitches:
                raise self.refuse("the notes of a chord and ']'", "none")
            self.at += 1
        elif REST.match(self.text, self.at):
            self.at += 1
        else:
            pitches.append(self.pitch())
        self.add(tuple(pitches), (inner or 1) * self.length())

    def add(self, pitches: tuple[int, ...], length: Fraction) -> None:
        """Put a note at the end of the present bar."""
        factor = self.scale.pop() if self.scale else Fraction(1)
        whole = length * self.note_unit() * factor * self.next_factor
        self.next_factor = Fraction(1)
        if not 0 < whole <= MOST:
            raise self.refuse(f"a note of at most {MOST} whole notes", "another length")
        self.bar.notes.append(Note(self.bar.length, whole, pitches))
        self.bar.length += whole

    def pitch(self) -> int:
        """Read a pitch."""
        match = NOTE.match(self.text, self.at)
        if match is None:
            raise self.refuse("a note")
        sign, letter, marks = match.groups()
        octave = 60 + 12 * letter.islower() + 12 * (marks.count("'") - marks.count(","))
        name = letter.upper()
        if sign is not None:  # it holds in all octaves, as the standard has it by default
            self.altered[name] = ACCIDENTALS[sign]
        alteration = self.altered.get(name, (self.key or {}).get(name, 0))
        number = octave + NATURAL[name] + alteration
        if not 0 <= number < 128:
            raise self.refuse("a pitch that MIDI has")
        self.at = match.end()
        return number

    def length(self) -> Fraction:
        """Read a length, in units."""
        match = LENGTH.match(self.text, self.at)
        if match is None or len(match[1]) > 3 or len(match[3]) > 3:
            raise self.refuse("a length such as 2 or 3/2")
        number, strokes, below = match.groups()
        top = int(number) if number else 1
        strokes = strokes or ""
        if below and len(strokes) != 1:
            raise self.refuse("a length such as 2 or 3/2")
        bottom = int(below) if below else 2 ** len(strokes)
        if not 0 < bottom <= 128 or not top:
            raise self.refuse("a length such as 2 or 3/2")
        self.at = match.end()
        return Fraction(top, bottom)
