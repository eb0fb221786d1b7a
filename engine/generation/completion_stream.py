"""Requests on their way: a `CompletionStream` of chunks of one completion, or a `CompletionGroup` that runs together.

Both can say at any time what there is so far, also after Ctrl-C.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator

from .outputs import Chunk, Completion


class CompletionStream(Iterator[Chunk]):
    """Yields one `Chunk` per token. `close` ends the request early; `result` is the completion so far."""

    def __init__(self, chunks: Generator[Chunk, None, None], completion: Callable[[], Completion]) -> None:
        self._chunks = chunks
        self._completion = completion

    def __next__(self) -> Chunk:
        return next(self._chunks)

    def close(self) -> None:
        """Ends the request; its finish_reason is "interrupted" unless it had ended by itself."""
        self._chunks.close()

    @property
    def result(self) -> Completion:
        return self._completion()


class CompletionGroup:
    """Several requests: `run` completes them, `results` are the completions so far, in the order of the prompts."""

    def __init__(self, run: Callable[[], None], results: Callable[[], list[Completion]]) -> None:
        self.run = run
        self._results = results

    @property
    def results(self) -> list[Completion]:
        return self._results()
