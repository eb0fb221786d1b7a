"""Files of pictures: whether one can be written, what draws it, and writing it. `--plot` of every command."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...errors import OptionError
from .. import writable

KINDS = (".png", ".svg")


def check(path: Path) -> None:
    """Raises OptionError, before anything is computed, if a plot cannot be written there."""
    if path.suffix.lower() not in KINDS:
        raise OptionError(f"--plot {path}: give a name that ends in {' or '.join(KINDS)}")
    if not path.absolute().parent.is_dir():
        raise OptionError(f"--plot {path}: there is no directory {path.absolute().parent}")
    pyplot()
    writable.check(path, "the plot")


def pyplot() -> Any:
    """What draws; raises OptionError where it is not installed."""
    try:
        import matplotlib
    except ImportError as error:
        raise OptionError("--plot needs matplotlib, which is not installed: pip install 'headrace[plot]'") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot as found

    return found


def write(draws: Any, figure: Any, path: Path) -> None:
    """Writes a figure that `pyplot` drew; raises OptionError where the file cannot be written."""
    figure.tight_layout()
    try:
        figure.savefig(path)
    except OSError as error:
        raise writable.refusal(path, "the plot", error) from error
    finally:
        draws.close(figure)
