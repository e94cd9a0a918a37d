"""What is said of GPUs, on any machine: nothing here needs one."""

from __future__ import annotations

import json
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest

import ostinato as ost
from ostinato import _driver, cuda


@pytest.fixture(autouse=True)
def _asked_anew() -> Any:
    _driver._module.cache_clear()
    yield
    _driver._module.cache_clear()


def test_a_reason_or_a_device() -> None:
    assert ost.cuda.is_available() == (ost.cuda.why_not() == "") == (len(ost.cuda.devices()) > 0)
    done = subprocess.run(
        [sys.executable, "-m", "ostinato", "info", "--json"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout)["cuda"]["why_not"] == ost.cuda.why_not()


def test_every_reason_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the module, with one that does not load, without a driver, and with a device."""

    def importing(result: Any) -> None:
        def import_module(name: str) -> Any:
            assert name == "ostinato._cuda"
            if isinstance(result, Exception):
                raise result
            return result

        _driver._module.cache_clear()
        monkeypatch.setattr(_driver, "importlib", SimpleNamespace(import_module=import_module))

    for result, words in (
        (ModuleNotFoundError("no"), "built without CUDA"),
        (ImportError("libfoo.so is missing"), "does not load: libfoo.so is missing"),
        (SimpleNamespace(why_not=lambda: "there is no NVIDIA driver"), "there is no NVIDIA driver"),
    ):
        importing(result)
        assert words in cuda.why_not()
        assert not cuda.is_available()
        assert cuda.devices() == []
    facts = {"name": "a GPU", "multiprocessors": 132}
    importing(
        SimpleNamespace(why_not=lambda: "", device_count=lambda: 1, device_info=lambda k: facts)
    )
    assert cuda.is_available()
    assert cuda.devices() == [facts]
