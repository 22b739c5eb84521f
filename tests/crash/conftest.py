"""Lends the device room's hand-made Bundle and signed patches to the crash tests."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

_SPEC = importlib.util.spec_from_file_location("device_world", Path(__file__).parents[1] / "unit" / "device" / "conftest.py")
if _SPEC is None or _SPEC.loader is None:
    raise ImportError("the device room's conftest is missing")
_MODULE = importlib.util.module_from_spec(_SPEC)
sys.modules["device_world"] = _MODULE
_SPEC.loader.exec_module(_MODULE)
world = _MODULE.world
