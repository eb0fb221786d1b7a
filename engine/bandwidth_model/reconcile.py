"""Holds the passes of a run against what they should take: which rates count, and what is said when they are off."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import cached_property, partial

from ...kernels.formats import KVFormat
from ...loaders.spec import ModelSpec
from ...loaders.weights.model_weights import Formats, ModelWeights
from ..devices.device import Device
from ..ledger.drift import DriftWatch
from ..ledger.ledger import Ledger
from ..placement.placement import Tier
from ..units import GB
from . import tier_rates
from .hardware import IN_CACHES as IN_CACHES
from .hardware import Hardware
from .network.hops import Network
from .pass_model import PassModel
from .profile import STALE, Profile

log = logging.getLogger("headrace")
ALIKE = 0.1  # of a plain read of the profile: memory that gives as near to it counts as the same


class Reconciliation:
    """Predictions for one model's ledger. handoff_s: seconds of handing a layer over in a graphed step, None where not
    known. `tell` gets lines for people: a logger, if nothing else is set. read_now: measures what memory gives a plain
    read, in bytes per second; None where that cannot be told."""

    def __init__(
        self,
        ledger: Ledger,
        spec: ModelSpec,
        formats: Formats,
        kv_format: KVFormat,
        weights: ModelWeights,
        devices: Mapping[Tier, Device],
        kernels: str,
        handoff_s: float | None,
        read_now: Callable[[], float | None] = lambda: None,
    ) -> None:
        self.read_now = read_now
        self.ledger, self.spec, self.formats, self.kv_format = ledger, spec, formats, kv_format
        self.weights, self.devices, self.kernels, self.handoff_s = weights, devices, kernels, handoff_s
        self.tell: Callable[[str], None] = log.warning
        self.profile: Profile | None = None  # as it was measured
        self.memory_now: float | None = None  # bytes per second, where memory does not give what the profile has
        self.doubt: str | None = None
        self.pass_model: PassModel | None = None
        self.disk_bytes_s: float | None = None  # of a disk that experts stay on
        self.network: Network | None = None  # of hosts of experts
        self.unpredicted = ""  # why there is no prediction beside a GPU

    @property
    def can_predict(self) -> bool:
        """Whether the bandwidths that were measured on this machine are those of everything that a pass reads."""
        return self.kernels == "cpu" and len(self.devices) == 1

    @property
    def in_caches(self) -> bool:
        """Whether the CPU's caches hold the model: no prediction of memory traffic is right for it."""
        return self._weight_bytes < IN_CACHES

    @cached_property
    def _weight_bytes(self) -> int:
        """Summed once: passes ask whether they are worth a prediction, and a model has thousands of tensors."""
        return self.weights.nbytes

    @property
    def estimates(self) -> str:
        """For people: which of the model's formats have rates that are estimated, and from what; "": none."""
        cpu = None if self.pass_model is None else self.pass_model.machine.cpu
        return "" if cpu is None else cpu.estimated(self.formats.used)

    def start(self, profile: Profile | None) -> None:
        """Takes the saved profile of this machine, and remembers if it may be off."""
        if self.kernels == "cpu":
            self.use_profile(profile)
            self.doubt = STALE if profile is not None and profile.is_stale else None

    def use_profile(self, profile: Profile | None) -> None:
        """Takes the bandwidths that passes are held against from now on; None: no prediction. The caller knows what
        they are worth. Beside a GPU those of its memory and links come from the same profile, or are nominal. Where
        memory gives more or less now than when the profile was measured, its rates are taken as they are with that."""
        if profile is not self.profile:
            self.memory_now = self._memory_now(profile)
        self.doubt, self.profile, self.unpredicted = None, profile, ""
        if profile is not None and self.memory_now is not None:
            profile = profile.with_memory_at(self.memory_now)
        machine = None
        try:
            if len(self.devices) > 1:
                machine = tier_rates.find(profile, self.devices)
            elif profile is not None:
                machine = tier_rates.of_cpu(profile, self.disk_bytes_s)
        except tier_rates.Unknown as reason:
            self.unpredicted = str(reason)
        self.use_rates(machine)

    def as_profiled(self) -> None:
        """From now on rates are those of the profile, whatever memory gives."""
        self.read_now, self.memory_now = lambda: None, None
        self.use_profile(self.profile)

    def _memory_now(self, profile: Profile | None) -> float | None:
        """What memory gives now; None where that is as in the profile, or cannot be told."""
        if profile is None or self.kernels != "cpu" or self.in_caches:
            return None
        now = self.read_now()
        return None if now is None or abs(now / profile.stream - 1) <= ALIKE else now

    @property
    def memory_said(self) -> str:
        """For people: what memory gives now, where that is not what the profile has; "": it is, or is not known."""
        if self.memory_now is None or self.profile is None:
            return ""
        before = f"{self.profile.stream / GB:.0f} when it was measured"
        return f"memory gives a plain read {self.memory_now / GB:.0f} GB/s now, {before}: predictions go by that"

    @property
    def plain_read(self) -> float | None:
        """Bytes per second of a plain read now; None: this machine was not measured."""
        return self.memory_now or (None if self.profile is None else self.profile.stream)

    def use_rates(self, machine: Hardware | None) -> None:
        """Takes the rates of all tiers and links that passes are held against from now on; None: no prediction."""
        model = partial(PassModel, self.spec, self.formats, self.kv_format)
        self.pass_model = None if machine is None else model(machine, self.handoff_s, self.network)
        self.ledger.predict = self.pass_model
        self.watch_run()

    def watch_run(self) -> None:
        """From now on one line to `tell` if measured and predicted time of decode drift apart."""
        is_watched = self.ledger.predict is not None and not self.in_caches
        self.ledger.watch = DriftWatch(lambda text: self.tell(text)) if is_watched else None

    def new_run(self) -> None:
        """Requests come after none were under way: says once that predictions may be off, and watches anew."""
        doubt, self.doubt = self.doubt, None
        if doubt is not None:
            self.tell(f"{doubt}, so that predictions may be off: run headrace measure")
        self.watch_run()
