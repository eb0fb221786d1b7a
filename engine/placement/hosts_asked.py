"""What may be said of experts beside hosts: other placements, and what is not there with them yet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from ...errors import OptionError


class Replication(NamedTuple):
    """A second copy of the share of all experts that a trace chose most."""

    trace: Path
    share: float


def replication(text: str | None) -> Replication | None:
    """What replicate says: trace:FILE,SHARE. Raises OptionError."""
    if text is None:
        return None
    kind, _, rest = text.partition(":")
    name, _, share = rest.rpartition(",")
    number = share.strip().removesuffix("%").strip()
    try:
        found = float(number) / (100 if share.strip().endswith("%") else 1)
    except ValueError:
        found = 0.0
    if kind != "trace" or not name or not 0 < found <= 1:
        raise OptionError(
            f"replicate is {text!r}; give a trace and a share of the experts above 0, such as trace:run.trace,10%"
        )
    return Replication(Path(name), found)


def check(hosts: int | None, kind: str, asked: Sequence[str], has_policy: bool, replicate: str | None = None) -> None:
    """Raises OptionError for a placement, a policy or copies that cannot be. kind: of the placement; asked: the options
    that said it."""
    if replication(replicate) is not None:
        if hosts is None or hosts < 2:
            raise OptionError("replicate puts experts on a second host: say --hosts 2 or more, or leave it out")
        if kind == "file":
            raise OptionError("replicate and a placement file both say where experts lie: list two hosts in the file")
    if hosts is None:
        if kind == "hosts":
            raise OptionError("placement 'hosts' puts experts on other machines: say on how many (--hosts 2)")
        return
    if kind not in ("hosts", "auto", "file"):
        raise OptionError(f"{asked[0]} and hosts both say where experts lie: leave one out, or take placement auto")
    if has_policy:
        raise OptionError("policy rules a cache on this machine, and is not there beside hosts yet: leave one out")


def check_split(split_by: str, hosts: int | None, kind: str, others: Mapping[str, object]) -> None:
    """Raises OptionError for what does not go with layers on hosts. others: options that want all layers here, or
    experts that are dealt out, with their values; None: it was not given."""
    if split_by != "layers":
        return
    if hosts is None:
        raise OptionError("split_by 'layers' puts layers on other machines: say on how many (--hosts 2)")
    if kind == "file":
        raise OptionError("placement files place experts, and split_by deals out layers: take placement auto or hosts")
    given = [name for name, value in others.items() if value is not None]
    if given:
        raise OptionError(f"{given[0]} does not go with whole layers on hosts: leave it out, or split_by")


def without_gpu(hosts: int | None, split_by: str, placement: object, device: str, given: str) -> OptionError:
    """That an option about GPUs was given, where others leave out every GPU."""
    if hosts is None:
        what, remedy = f"placement {placement!r}", given
    elif split_by == "layers":
        what, remedy = "split_by 'layers'", f"{given}, or split_by"
    else:
        what, remedy = f"hosts {hosts} with device {device!r}", given
    return OptionError(f"{what} leaves out every GPU: leave out {remedy}")


def check_gpu(copies: list[str], is_split: bool, has_graphs: bool) -> None:
    """Beside a GPU of the coordinator's. copies: options about experts that go to a GPU; is_split: over two of them."""
    asked = [*copies, *(["tensor_split"] if is_split else []), *(["handoff"] if has_graphs else [])]
    if asked:
        raise OptionError(
            f"{asked[0]} is not there beside hosts, where one GPU keeps its experts and steps are no graphs: "
            "leave it out"
        )
