"""What on this machine a model's name may mean: the packaged demo, or a path. Light, so that a plan answers at once."""

from __future__ import annotations

from pathlib import Path

from ..files.recognise import is_named

DEMO = "demo"
DEMO_DIRECTORY = Path(__file__).parent.parent.parent / "demo" / "model"
CONFIG = "config.json"


def existing(model: str) -> Path | None:
    """The path called `model`, if there is one."""
    try:
        path = Path(model).expanduser()
        return path if model and path.exists() else None
    # Too long for a file name, no such user after "~", a directory that may not be searched.
    except (OSError, RuntimeError):
        return None


def model_in(directory: Path) -> Path:
    """Where the model of a directory is: there, in the snapshot that a hub's cache calls main, or in the only folder
    that has one, two levels deep at most. The directory itself where none or several have one."""
    if is_named(directory / CONFIG):
        return directory
    try:
        main = directory / "snapshots" / (directory / "refs" / "main").read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        main = directory
    if (main / CONFIG).is_file():
        return main
    for depth in ("*", "*/*"):
        inner = [path.parent for path in directory.glob(f"{depth}/{CONFIG}")]
        weighty = [folder for folder in inner if any(folder.glob("*.safetensors"))] or inner
        if weighty:
            return weighty[0] if len(weighty) == 1 else directory
    return directory


def is_inside(model: str, directory: Path) -> bool:
    """Whether the directory where a model was found lies inside of the one that was named."""
    named = existing(model)
    return model != DEMO and named is not None and named.is_dir() and not directory.samefile(named)
