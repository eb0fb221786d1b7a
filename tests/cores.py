"""One thread for tests: tiny tensors gain nothing from more, and where other programs run too, threads that wait cost a
lot. So a context that is not told how many has one; what is about threads says so; child processes have one a core.

Imported by conftest.py before anything reads the number; a module of its own, since tests would get a second conftest.
"""

from __future__ import annotations

from headrace.kernels import _cpu

CORES = int(_cpu.default_threads())  # that this process may use
_cpu.default_threads = lambda: 1
