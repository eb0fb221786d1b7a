"""Whether decode steps ran as graphs: counted where they run. The tokens are the same where graphs could not be had."""

from __future__ import annotations

from typing import Any


class GraphSteps:
    """Counts the steps of an `LLM` that are replayed, from now on. `count` may be set back; `reason` says why there are
    no graphs, as far as anything does."""

    def __init__(self, llm: Any) -> None:
        self.count = 0
        graphed, choice = llm.parts.graphed, llm.parts.signal_choice
        self.reason = "" if choice is None else f"{choice.name}, {choice.reason}"
        if graphed is None:
            return
        forward = graphed.forward

        def counted(*inputs: Any, **more: Any) -> Any:
            self.count += 1
            return forward(*inputs, **more)

        graphed.forward = counted
