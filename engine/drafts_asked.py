"""What may be said of drafts together: options about models that guess need one, and a trace goes without. Knows words,
no model; commands and plans have the same rules."""

from __future__ import annotations

from pathlib import Path

from ..errors import OptionError, brief
from . import ranges

AUTO, OFF, LOOKUP, OWN = "auto", "off", "lookup", "mtp"
WORDS = (AUTO, OFF, LOOKUP, OWN)  # all else names a second model


def check(speculate: str, mtp: Path | None, vocabulary: int | str, dashes: str = "") -> None:
    """Raises OptionError for options that can have no effect together. dashes: in front of their names."""
    if mtp is not None and speculate not in (AUTO, OWN):
        raise OptionError(
            f"{dashes}mtp is the file of the layer that drafts, and {dashes}speculate is {brief(speculate)}: give "
            f"{dashes}speculate mtp, or leave {dashes}mtp out"
        )
    if vocabulary != AUTO and speculate in (OFF, LOOKUP):
        name = "--draft-vocabulary" if dashes else "draft_vocabulary"
        raise OptionError(
            f"{name} says which tokens a model guesses among, and with {dashes}speculate {speculate} none guesses: "
            f"give {dashes}speculate mtp, or leave {name} out"
        )


def check_run(speculate: str, mtp: Path | None, vocabulary: int | str, trace: Path | None) -> None:
    """The same for a run, which may record a trace."""
    if not speculate:
        raise OptionError("speculate is empty; give auto, off, lookup, mtp, or a model that drafts")
    ranges.count_or("draft_vocabulary", vocabulary, 1, [AUTO, "all"])
    check(speculate, mtp, vocabulary)
    asked = [f"speculate {brief(speculate)}"] if speculate not in (AUTO, OFF) else []
    asked += ["mtp"] if mtp is not None else []
    asked += ["draft_vocabulary"] if vocabulary != AUTO else []
    if asked and trace is not None:
        raise OptionError(
            f"trace records what the text's own tokens choose, so that nothing is drafted meanwhile: leave {asked[0]} "
            "out, or trace"
        )


def idle(mtp: Path | None, vocabulary: int | str, has_layer: bool, guesses: bool) -> list[str]:
    """A line for each option about models that guess, where none does. has_layer: the model's own is loaded."""
    lines = []
    if mtp is not None and not has_layer:
        lines.append(f"{mtp} is not loaded by speculate 'auto' here; speculate 'mtp' loads it, or says why not")
    if vocabulary != AUTO and not guesses:
        lines.append(f"draft_vocabulary {vocabulary} changes nothing: no model guesses tokens here (speculate 'mtp')")
    return lines
