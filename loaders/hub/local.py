"""What on this machine a model's name may mean: the packaged demo, or a path. Light, so that a plan answers at once."""

from __future__ import annotations

from pathlib import Path

DEMO = "demo"
DEMO_DIRECTORY = Path(__file__).parent.parent.parent / "demo" / "model"


def existing(model: str) -> Path | None:
    """The path called `model`, if there is one."""
    try:
        path = Path(model).expanduser()
        return path if model and path.exists() else None
    # Too long for a file name, no such user after "~", a directory that may not be searched.
    except (OSError, RuntimeError):
        return None
