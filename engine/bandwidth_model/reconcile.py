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
from . import tier_rates
from .hardware import IN_CACHES as IN_CACHES
from .hardware import Hardware
from .network.hops import Network
from .pass_model import PassModel
from .profile import STALE, Profile

log = logging.getLogger("headrace")


class Reconciliation:
    """Predictions for one model's ledger. handoff_s: seconds of handing a layer over in a graphed step, None where not
    known. `tell` gets lines for people: a logger, if nothing else is set."""

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
    ) -> None:
        self.ledger, self.spec, self.formats, self.kv_format = ledger, spec, formats, kv_format
        self.weights, self.devices, self.kernels, self.handoff_s = weights, devices, kernels, handoff_s
        self.tell: Callable[[str], None] = log.warning
        self.profile: Profile | None = None
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
        they are worth. Beside a GPU those of its memory and links come from the same profile, or are nominal."""
        self.doubt, self.profile, self.unpredicted = None, profile, ""
        machine = None
        try:
            if len(self.devices) > 1:
                machine = tier_rates.find(profile, self.devices)
            elif profile is not None:
                machine = tier_rates.of_cpu(profile, self.disk_bytes_s)
        except tier_rates.Unknown as reason:
            self.unpredicted = str(reason)
        self.use_rates(machine)

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
