"""What a user can choose of a plan."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ...errors import OptionError, brief
from ...kernels.formats import KV_FORMATS, KVFormat
from .. import ranges
from ..bandwidth_model.network.wire_sizes import WIRES
from ..drafts_asked import AUTO, OWN
from ..drafts_asked import WORDS as SPECULATE
from ..drafts_asked import check as check_drafts
from ..option import COMMON, HOSTS, MODEL, option
from ..placement.placement import PLACES


@dataclass(frozen=True, kw_only=True)
class Options:
    """What is to be run. `context`: tokens of each sequence when its last one is decoded; `prompt`: of them, given."""

    quant: str = option("native", COMMON, "FORMAT", "native, q4_0, 4.5bpw, or experts=q4_0,dense=q8_0")
    context: int = option(4096, COMMON, "TOKENS", "in a sequence at its end; default 4096, or what the model has")
    batch: int = option(1, COMMON, "N", "sequences decoded together")
    prompt: int = option(512, COMMON, "TOKENS", "of the prompt that prefill is timed for")
    placement: str = option("auto", COMMON, "WHERE", f"where the experts lie: {PLACES}, NAME.json")
    model: str = option("full", COMMON, "NAME", "how time is predicted: full, simple (bytes over nominal bandwidths)")
    kv_format: str = option("bf16", MODEL, "NAME", f"of the KV cache: {', '.join(KV_FORMATS)}")
    experts_per_token: int | None = option(None, MODEL, "N", "experts that a token uses; default as trained")
    hosts: str | None = option(None, HOSTS, "TEXT", "more machines: \"3x ddr5-6000-2ch 96gb, 10gbe\"; groups by ';'")
    speculate: str = option("auto", MODEL, "HOW", f"whether the model's own layer drafts: {', '.join(SPECULATE)}")
    mtp: Path | None = option(None, MODEL, "FILE", "that holds the model's own layer; default beside the model")
    draft_vocabulary: int | str = option(
        "auto", MODEL, "auto|all|N", "tokens that guesses of the model's own layer are chosen among"
    )
    wire: str = option("f32", HOSTS, "TYPE", f"of rows that go to hosts and back: {', '.join(WIRES)}")

    def __post_init__(self) -> None:
        for name in ("context", "batch", "prompt"):
            value = getattr(self, name)
            if value < 1:
                raise OptionError(f"--{name} is {value}: give a whole number above 0")
        if self.kv_format not in KV_FORMATS:
            raise OptionError(f"--kv-format is '{self.kv_format}'; choose one of {', '.join(KV_FORMATS)}")
        if self.wire not in WIRES:
            raise OptionError(f"--wire is '{self.wire}'; choose one of {', '.join(WIRES)}")
        if self.speculate not in SPECULATE:
            raise OptionError(
                f"--speculate is {brief(self.speculate)}; a plan knows {', '.join(SPECULATE)}: give one of these"
            )
        ranges.count_or("--draft-vocabulary", self.draft_vocabulary, 1, ["auto", "all"])
        check_drafts(self.speculate, self.mtp, self.draft_vocabulary, "--")
        if self.hosts is not None and (about := self.about_own_layer):
            raise OptionError(
                f"{about[0]} is about the model's own layer, which a plan with --hosts does not count: leave one out"
            )
        if self.model not in ("full", "simple"):
            raise OptionError(f"--model is '{self.model}'; there are full and simple")

    @property
    def about_own_layer(self) -> list[str]:
        """The options that are about the model's own layer that drafts."""
        said = {"--speculate mtp": self.speculate == OWN, "--mtp": self.mtp is not None,
                "--draft-vocabulary": self.draft_vocabulary != AUTO}  # fmt: skip
        return [name for name, is_said in said.items() if is_said]

    @property
    def kv(self) -> KVFormat:
        """The format of the cache."""
        return KV_FORMATS[self.kv_format]


def check_kv_rows(format: KVFormat, rows: Iterable[int], *, has_indexer: bool = False) -> None:
    """Raises OptionError where rows of the KV cache of so many numbers are no whole number of the format's blocks, or
    where an indexer chooses them one by one."""
    if has_indexer and format.block > 1:
        raise OptionError(
            f"kv_format {format.name} is not there for models with an indexer, which attend to keys one by one: give "
            "kv_format bf16, or leave it out"
        )
    odd = sorted({row for row in rows if row % format.block})
    if odd:
        raise OptionError(
            f"kv_format {format.name} stores each {format.block} numbers of a head together, and this model has heads "
            f"of {odd[0]} in its cache: give kv_format bf16, or leave it out"
        )
