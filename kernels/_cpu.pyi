"""The extension that kernels/cpu is built into. Its callers, in `kernels/cpu`, give every name its types."""

from typing import Any

def __getattr__(name: str) -> Any: ...
