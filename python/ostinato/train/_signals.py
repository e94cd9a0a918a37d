"""Handle Ctrl-C and SIGTERM: end the step, save the run, then let the signal have its effect."""

from __future__ import annotations

import signal
import threading
from typing import Any


class Signals:
    """Hold the first SIGINT or SIGTERM back until `deliver`; a second one acts at once.

    In other threads than the main one, and for signals that are ignored, nothing is changed.
    """

    def __init__(self) -> None:
        self.seen: int | None = None
        self._before: dict[int, Any] = {}

    def _handle(self, number: int, frame: Any) -> None:
        if self.seen is not None:
            raise self._error(number)
        self.seen = number

    @staticmethod
    def _error(number: int) -> BaseException:
        return KeyboardInterrupt() if number == signal.SIGINT else SystemExit(128 + number)

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) not in (None, signal.SIG_IGN):
                    self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def deliver(self) -> None:
        """Let a signal have its effect.

        That is KeyboardInterrupt, SystemExit, or what the program's own handler does.
        """
        if self.seen not in self._before:  # none, or another process has seen it
            return
        handler = self._before[self.seen]
        if handler in (signal.SIG_DFL, signal.default_int_handler):
            raise self._error(self.seen)
        handler(self.seen, None)
