"""How the workers of the CPU's thread pool wait between calls."""

from __future__ import annotations

import os

from . import _check, _core
from ._annotations import readable

MILLISECONDS = {"default": 0.1, "active": 50.0, "passive": 0.0}


def set_wait(policy: str = "default", *, ms: float | None = None) -> None:
    """Choose how long an idle worker waits awake for the next call before it sleeps.

    A worker that is awake starts within a microsecond, and keeps a CPU busy until then. One that
    sleeps costs nothing, and is woken within 20 to 100 microseconds. The environment variable
    OSTINATO_WAIT, such as ``active`` or ``active,20``, chooses at the start of the process.

    >>> import ostinato as ost
    >>> ost.set_wait("active", ms=20)
    >>> ost.get_wait()
    ('active', 20.0)
    >>> ost.set_wait()

    Args:
        policy: "default" (0.1 ms, so that calls in a row find the workers awake), "active" (50 ms,
            for calls that come every few milliseconds) or "passive" (not at all, for a machine or a
            quota that is shared).
        ms: milliseconds in place of the policy's own, up to 10,000.

    Raises:
        TypeError: ms is no number.
        ValueError: an unknown policy, or ms out of range.
    """
    _check.choice("policy", policy, tuple(MILLISECONDS))
    wanted = MILLISECONDS[policy] if ms is None else ms
    if isinstance(wanted, bool) or not isinstance(wanted, (int, float)):
        raise TypeError(f"ms: expected a number from 0 to 10000, got {wanted!r}")
    if not 0 <= wanted <= 10000:
        raise ValueError(f"ms: expected a number from 0 to 10000, got {wanted!r}")
    if policy == "passive" and wanted:
        raise ValueError(f"ms: expected none beside 'passive', which never looks, got {wanted!r}")
    _core.set_spin_microseconds(round(wanted * 1000))


def get_wait() -> tuple[str, float]:
    """Return the policy and the milliseconds that an idle worker waits awake for the next call.

    >>> import ostinato as ost
    >>> policy, ms = ost.get_wait()
    >>> policy in ("default", "active", "passive")
    True

    Returns:
        ``policy, ms``.
    """
    ms = _core.get_spin_microseconds() / 1000
    if ms == MILLISECONDS["default"]:
        return "default", ms
    return ("active" if ms else "passive"), ms


def read_environment() -> None:
    """Set the policy that OSTINATO_WAIT names, if it is set and not empty."""
    text = os.environ.get("OSTINATO_WAIT")
    if not text:
        return
    policy, comma, number = text.partition(",")
    try:
        set_wait(policy, ms=float(number) if comma else None)
    except ValueError:
        raise ValueError(
            "OSTINATO_WAIT: expected 'default', 'active' or 'passive', perhaps with milliseconds "
            f"as in 'active,20', got {text!r}"
        ) from None


readable(globals())
