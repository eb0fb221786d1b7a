"""Where a result comes from: the passports of `headrace bench`, under the name that all benchmarks import."""

from headrace.engine.bench.passport import gpu_passport, passport

__all__ = ["gpu_passport", "passport"]
