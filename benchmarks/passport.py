"""Where a result comes from: the passport of `headrace bench`, under the name that all benchmarks import."""

from headrace.engine.passport import passport

__all__ = ["passport"]
