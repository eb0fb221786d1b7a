"""What may be said of experts beside hosts: other placements, and what is not there with them yet."""

from __future__ import annotations

from collections.abc import Sequence

from ...errors import OptionError


def check(hosts: int | None, kind: str, asked: Sequence[str], has_policy: bool) -> None:
    """Raises OptionError for a placement or a policy that cannot be. kind: of the placement; asked: the options that
    said it."""
    if hosts is None:
        if kind == "hosts":
            raise OptionError("placement 'hosts' puts experts on other machines: say on how many (--hosts 2)")
        return
    if kind not in ("hosts", "auto", "file"):
        raise OptionError(f"{asked[0]} and hosts both say where experts lie: leave one out, or take placement auto")
    if has_policy:
        raise OptionError("policy rules a cache on this machine, and is not there beside hosts yet: leave one out")
