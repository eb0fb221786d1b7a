"""Machines that are to be hosts, from words: "3x ddr5-6000-2ch 96gb, 10gbe; ddr4-3200-8ch 256gb 16cores, 25gbe".

A group is a number of machines (1 where none is said), the memory or CPU of each as in --hardware, its RAM and cores if
they are known, and its link: a name, or bits a second and a round trip ("10gbit 100us"). Commas and blanks separate
words, ';' groups. What is reached of a link, and how long a round trip takes, are assumptions, as are those of parts.
"""

from __future__ import annotations

import re
from dataclasses import replace

from ....errors import OptionError
from ...bandwidth_model import hardware
from ...bandwidth_model.hardware import CORE_FLOPS, Device, Range
from ...bandwidth_model.network.hops import Hop
from ...units import GB

EXAMPLE = '"3x ddr5-6000-2ch 96gb, 10gbe"'
REACHED = Range(0.70, 0.90, 0.95)  # of a link's bits, by one TCP connection
US = 1e-6
# Round trips of a small message between two programs, through a switch: slow, expected, fast.
LINKS = {
    "1gbe": (1.0, Range(300 * US, 150 * US, 80 * US)),
    "2.5gbe": (2.5, Range(250 * US, 120 * US, 70 * US)),
    "10gbe": (10.0, Range(150 * US, 70 * US, 40 * US)),
    "25gbe": (25.0, Range(100 * US, 50 * US, 25 * US)),
    "100gbe": (100.0, Range(80 * US, 40 * US, 20 * US)),
}
# What a layer with hosts takes besides rows, links and experts: 570 us were seen on a loaded machine of two cores.
HOP = Range(600 * US, 300 * US, 100 * US)
MOST = 256


class _Group:
    """What was said of one group so far."""

    def __init__(self, text: str) -> None:
        self.text, self.count = text.strip(), 1
        self.device: Device | None = None
        self.memory: int | None = None
        self.cores: int | None = None
        self.gbit: float | None = None
        self.round_trip: Range | None = None

    def take(self, word: str, is_first: bool) -> None:
        """Reads a word. Raises OptionError."""
        if is_first and (found := re.fullmatch(r"(\d+)x", word)):
            self.count = int(found[1])
            if not 1 <= self.count <= MOST:
                raise OptionError(f"--hosts: {word!r} in {self.text!r}: give 1x to {MOST}x")
        elif found := re.fullmatch(r"([\d.]+)(gb|tb)", word):
            self.memory = int(_number(found[1], word, self.text) * (1000 if found[2] == "tb" else 1) * GB)
        elif found := re.fullmatch(r"(\d+)-?cores", word):
            self.cores = int(_number(found[1], word, self.text))
        elif word in LINKS:
            self._link(word, *LINKS[word])
        elif found := re.fullmatch(r"([\d.]+)gbit(?:/s)?", word):
            self._link(word, _number(found[1], word, self.text), self.round_trip)
        elif found := re.fullmatch(r"([\d.]+)(us|ms)", word):
            seconds = _number(found[1], word, self.text) * (US if found[2] == "us" else 1e-3)
            self.round_trip = Range(seconds, seconds, seconds)
        else:
            self._part(word)

    def _link(self, word: str, gbit: float, round_trip: Range | None) -> None:
        if self.gbit is not None:
            raise OptionError(f"--hosts: {word!r} is a second link in {self.text!r}: separate groups by ';'")
        self.gbit, self.round_trip = gbit, self.round_trip or round_trip

    def _part(self, word: str) -> None:
        if re.fullmatch(r"[\d.]+gbe", word):
            raise OptionError(f"--hosts: there is no link {word!r}: give {', '.join(LINKS)}, or '10gbit 100us'")
        try:
            found = hardware.part(word)
        except OptionError as error:
            raise OptionError(str(error).replace("--hardware", "--hosts")) from error
        if found.kind != "cpu":
            raise OptionError(
                f"--hosts: {word!r} is no CPU, and hosts compute on theirs: name its memory, as in {EXAMPLE}"
            )
        if self.device is not None:
            raise OptionError(f"--hosts: {word!r} is a second machine in {self.text!r}: separate groups by ';'")
        self.device = found

    def hop(self, name: str) -> Hop:
        """One machine of the group. Raises OptionError for what was not said."""
        if self.device is None:
            raise OptionError(f"--hosts: {self.text!r} names no machine: say its memory, as in {EXAMPLE}")
        if self.gbit is None:
            raise OptionError(
                f"--hosts: {self.text!r} names no link: add {', '.join(LINKS)}, or bits a second as in '10gbit 100us'"
            )
        if self.round_trip is None:
            raise OptionError(f"--hosts: {self.text!r} names no round trip: add one, as in '{self.gbit:g}gbit 100us'")
        device = self.device if self.memory is None else replace(self.device, memory=self.memory)
        if self.cores is not None:
            device = replace(device, flops=CORE_FLOPS[device.isa].times(self.cores))
        rate = REACHED.times(self.gbit * 1e9 / 8)
        return Hop(
            name=name, device=replace(device, name=f"{name}: {device.name}"), rate=rate, round_trip=self.round_trip
        )


def _number(text: str, word: str, where: str) -> float:
    """A number above 0. Raises OptionError."""
    try:
        found = float(text)
    except ValueError:
        found = 0.0
    if not 0 < found < 1e9:
        raise OptionError(f"--hosts: {word!r} in {where!r}: give a number above 0")
    return found


def parse(text: str) -> tuple[Hop, ...]:
    """The hosts, named host1, host2, ... Raises OptionError that names the word and what to say instead."""
    found: list[Hop] = []
    for one in text.split(";"):
        words = re.split(r"[,\s]+", one.strip().lower())
        if words == [""]:
            raise OptionError(f"--hosts is {text!r}, with a group of no words: name machines and link, as in {EXAMPLE}")
        group = _Group(one)
        for number, word in enumerate(words):
            group.take(word, number == 0)
        found += [group.hop(f"host{len(found) + number}") for number in range(1, group.count + 1)]
    if len(found) > MOST:
        raise OptionError(f"--hosts names {len(found)} machines: give at most {MOST}")
    return tuple(found)
