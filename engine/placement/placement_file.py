"""A placement from a JSON file, down to single experts. The schema, with examples, is in `docs/placement.md`.

    {"version": 1, "default": "cpu",
     "rules": [{"layers": "24-47", "tier": "gpu0"},
               {"layers": [3, "8-11"], "experts": ["0-15", 40], "tier": "gpu0"}]}

A later rule wins over an earlier one. Everything is checked against the model before a byte is loaded: an unknown key
or tier comes with the nearest name, a number that the model does not have with those it has.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

from ...errors import OptionError
from .placement import Placement, Tier, nearest

Place = TypeVar("Place")
IN_VRAM = -1  # in place of a machine's number: the coordinator's GPU
VERSION = 1
TOP_KEYS = ("version", "default", "rules")
RULE_KEYS = ("layers", "experts", "tier")
MOST_DIGITS = 18  # of a number in a text
MOST_TIMES = 1000  # that rules may name an expert, each on the average: more are minutes, and no placement


def read(path: Path, counts: Sequence[int], tiers: Sequence[Tier], main: Tier = Tier.GPU0) -> Placement:
    """The placement in a file, for a model with `counts` experts by layer, on a machine that has `tiers`."""
    known = {tier.value: tier for tier in Tier if tier not in (Tier.DISK, Tier.NET)}
    rows = _File(str(path), counts, known, tiers).rows(_json(path))
    return Placement(name=path.name, main=main, experts=tuple(map(tuple, rows)))


def read_hosts(
    path: Path, counts: Sequence[int], names: Sequence[str], has_gpu: bool = False
) -> list[list[tuple[int, ...]]]:
    """By layer and expert the numbers of the nodes that have it, of a file whose tiers are "cpu" (0: here), the names
    of hosts or host1, host2, ... in the order of their names, and lists of these; beside a GPU also "gpu0" (IN_VRAM).
    Raises OptionError."""
    known = {"cpu": (0,), **{f"host{number}": (number,) for number in range(1, len(names) + 1)}}
    known |= {Tier.GPU0.value: (IN_VRAM,)} if has_gpu else {}
    known |= {name: (number,) for number, name in enumerate(names, 1)}
    return _HostsFile(str(path), counts, known, [*known.values()]).rows(_json(path))


def read_in_vram(path: Path, counts: Sequence[int]) -> Placement:
    """The same of a file for hosts whose names are not known yet: what it has in VRAM, and all else on the network.
    Raises OptionError."""
    rows = _VramFile(str(path), counts, {}, ()).rows(_json(path))
    return Placement(name=path.name, main=Tier.GPU0, experts=tuple(map(tuple, rows)))


def _json(path: Path) -> Any:
    """What a file holds. Raises OptionError."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise OptionError(f"cannot read the placement {path}: {reason}; name a JSON file") from error
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise OptionError(f"{path} is not JSON ({error}); see docs/placement.md for an example") from error


class _File(Generic[Place]):
    """Reads one file; every message begins with its name and says where in it. known: places by name; there: those that
    this run has."""

    def __init__(self, name: str, counts: Sequence[int], known: Mapping[str, Place], there: Sequence[Place]) -> None:
        self.name, self.counts, self.known, self.there = name, counts, known, there
        self.named, self.most = 0, MOST_TIMES * (sum(counts) + len(counts))

    def rows(self, data: Any) -> list[list[Place]]:
        """By layer and expert its place."""
        self._keys(data, TOP_KEYS, ("version", "default"), "the file")
        if data["version"] != VERSION or isinstance(data["version"], bool):
            raise self._error("version", data["version"], f"this headrace reads version {VERSION}")
        default = self._tier(data["default"], "default")
        rows = [[default] * count for count in self.counts]
        rules = data.get("rules", [])
        if not isinstance(rules, list):
            raise self._error("rules", rules, 'give a list of objects such as {"layers": "0-3", "tier": "cpu"}')
        for number, rule in enumerate(rules):
            self._apply(rule, f"rules[{number}]", rows)
        return rows

    def _apply(self, rule: Any, where: str, rows: list[list[Place]]) -> None:
        self._keys(rule, RULE_KEYS, ("layers", "tier"), where)
        tier = self._tier(rule["tier"], f"{where}.tier")
        for layer in self._layers(rule["layers"], f"{where}.layers"):
            count, at = self.counts[layer], f"{where}.experts"
            for expert in self._numbers(rule.get("experts", "all"), count, at, f"experts of layer {layer}"):
                rows[layer][expert] = tier

    def _layers(self, value: Any, where: str) -> list[int]:
        """Numbers of layers with experts. A layer without any may stand inside a range, not alone."""
        count = len(self.counts)
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, int) and not isinstance(one, bool) and 0 <= one < count and not self.counts[one]:
                raise self._error(where, one, f"layer {one} has no routed experts; leave it out")
        return [layer for layer in self._numbers(value, count, where, "layers") if self.counts[layer]]

    def _numbers(self, value: Any, count: int, where: str, what: str) -> list[int]:
        """Numbers below `count` from "all", a number, a range "a-b" (b included), or a list of numbers and ranges."""
        if value == "all":
            self._count(count, where)
            return list(range(count))
        found: list[int] = []
        for one in value if isinstance(value, list) else [value]:
            first, last = self._range(one, where)
            if first > last:
                raise self._error(where, one, f"a range goes up: {last}-{first}")
            if last >= count:
                raise self._error(where, one, f"the {what} are 0 to {count - 1}")
            self._count(last + 1 - first, where)
            found += range(first, last + 1)
        if not found:
            raise self._error(where, value, 'name at least one, or "all"')
        return found

    def _count(self, more: int, where: str) -> None:
        """What the rules have named so far."""
        self.named += more
        if self.named > self.most:
            raise OptionError(
                f"{self.name}: up to {where} the rules name layers and experts more than {self.most} times; write each "
                "once"
            )

    def _range(self, one: Any, where: str) -> tuple[int, int]:
        if isinstance(one, int) and not isinstance(one, bool) and one >= 0:
            return one, one
        ends = [end.strip() for end in one.split("-")] if isinstance(one, str) else []
        if 1 <= len(ends) <= 2 and all(end.isdecimal() and len(end) <= MOST_DIGITS for end in ends):
            return int(ends[0]), int(ends[-1])
        raise self._error(where, one, 'give a number from 0 on, a range such as "3-7", a list of these, or "all"')

    def _tier(self, value: Any, where: str) -> Place:
        names = [*self.known]
        if not isinstance(value, str) or value not in names:
            raise self._error(where, value, f"there are {', '.join(names)}{nearest(str(value), names)}")
        tier = self.known[value]
        if tier not in self.there:
            there = ", ".join(name for one in self.there for name, place in self.known.items() if place == one)
            raise self._error(where, value, f"this run has {there} only; a second GPU needs two that torch can see")
        return tier

    def _keys(self, data: Any, known: Sequence[str], needed: Sequence[str], where: str) -> None:
        if not isinstance(data, dict):
            raise self._error(where, data, f"give an object with {', '.join(known)}")
        for key in data:
            if key not in known:
                raise OptionError(f"{self.name}: {where} has the unknown key {key!r}{nearest(key, known)}; "
                                  f"there are {', '.join(known)}")  # fmt: skip
        for key in needed:
            if key not in data:
                raise OptionError(f"{self.name}: {where} lacks {key!r}; it needs {', '.join(needed)}")

    def _error(self, where: str, value: Any, remedy: str) -> OptionError:
        shown = json.dumps(value)
        return OptionError(f"{self.name}: {where} is {shown if len(shown) < 80 else shown[:77] + '...'}; {remedy}")


class _HostsFile(_File[tuple[int, ...]]):
    """One in which a tier may be a list: each of them has a copy."""

    def _tier(self, value: Any, where: str) -> tuple[int, ...]:
        if not isinstance(value, list):
            return super()._tier(value, where)
        if not value:
            raise self._error(where, value, "name a host, or a list of hosts that each have a copy")
        each = [super(_HostsFile, self)._tier(one, where) for one in value]
        return tuple(dict.fromkeys(node for nodes in each for node in nodes))


class _VramFile(_File[Tier]):
    """One whose hosts are not there yet."""

    def _tier(self, value: Any, where: str) -> Tier:
        if isinstance(value, list) and Tier.GPU0.value in value:
            raise self._error(where, value, "what lies in VRAM has no copy: name gpu0 alone, or machines")
        return Tier.GPU0 if value == Tier.GPU0.value else Tier.NET
