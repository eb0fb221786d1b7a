"""Holds the passes of a run against what they should take: which rates count, and what is said when they are off."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

import torch

from ...loaders.spec import ModelSpec
from ...loaders.weights.model_weights import Formats, ModelWeights
from ..devices.device import Device
from ..ledger.drift import DriftWatch
from ..ledger.ledger import Ledger
from ..placement.placement import Tier
from . import tier_rates, tiered_pass
from .cpu_pass import Predictor
from .profile import STALE, Profile
from .tier_rates import Rates
from .tiered_pass import TierModel

IN_CACHES = 64 << 20  # bytes of weights up to which DRAM does not bound a model
log = logging.getLogger("headrace")


class Reconciliation:
    """Predictions for one model's ledger. handoff_s: seconds of handing a layer over in a graphed step, None where not
    known. `tell` gets lines for people: a logger, if nothing else is set."""

    def __init__(
        self,
        ledger: Ledger,
        spec: ModelSpec,
        formats: Formats,
        kv_dtype: torch.dtype,
        weights: ModelWeights,
        devices: Mapping[Tier, Device],
        kernels: str,
        handoff_s: float | None,
    ) -> None:
        self.ledger, self.spec, self.formats, self.kv_dtype = ledger, spec, formats, kv_dtype
        self.weights, self.devices, self.kernels, self.handoff_s = weights, devices, kernels, handoff_s
        self.tell: Callable[[str], None] = log.warning
        self.profile: Profile | None = None
        self.doubt: str | None = None
        self.tier_model: TierModel | None = None
        self.unpredicted = ""  # why there is no prediction beside a GPU

    @property
    def can_predict(self) -> bool:
        """Whether the bandwidths that were measured on this machine are those of everything that a pass reads."""
        return self.kernels == "cpu" and len(self.devices) == 1

    @property
    def in_caches(self) -> bool:
        """Whether the CPU's caches hold the model: no prediction of memory traffic is right for it."""
        return self.weights.nbytes < IN_CACHES

    def start(self, profile: Profile | None) -> None:
        """Takes the saved profile of this machine, and remembers if it may be off."""
        if self.kernels == "cpu":
            self.use_profile(profile)
            self.doubt = STALE if profile is not None and profile.is_stale else None

    def use_profile(self, profile: Profile | None) -> None:
        """Takes the bandwidths that passes are held against from now on; None: no prediction. The caller knows what
        they are worth. Beside a GPU those of its memory and links come from the same profile, or are nominal."""
        self.doubt = None
        if len(self.devices) > 1:
            try:
                self.use_rates(tier_rates.find(profile, self.devices))
            except tier_rates.Unknown as reason:
                self.unpredicted, self.profile = str(reason), profile
                self.tier_model = self.ledger.predict = None
            return
        self.profile = profile
        known = None if profile is None else Predictor(profile, self.formats, self.kv_dtype, self.spec)
        self.ledger.predict = None if known is None else known.of
        self.watch_run()

    def use_rates(self, rates: Rates) -> None:
        """Takes the rates of all tiers that passes are held against from now on; for a run with a GPU."""
        self.profile, self.unpredicted = rates.profile, ""
        shared = tiered_pass.shared_bytes(self.weights)
        self.tier_model = TierModel(self.spec, self.formats, rates, shared, self.handoff_s)
        self.ledger.predict = self.tier_model
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
