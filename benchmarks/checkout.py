"""Makes `headrace` importable from the checkout where it is not installed: its folders are the package's.

Enough for what needs no C++ extension: the Triton kernels, their twins and cases.
"""

from __future__ import annotations

import importlib.util
import sys
import types
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

found = importlib.util.find_spec("headrace")
if found is None or found.origin is None:  # absent, or a folder that only looks like a package
    package = types.ModuleType("headrace")
    package.__path__ = [str(ROOT)]
    sys.modules["headrace"] = package
