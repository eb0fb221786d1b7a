"""How likely tokens were, as the chat and the completions API give it. `bytes` is the truth: a token may be a part of a
character."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ...generation.outputs import Chunk

Decode = Callable[[int], bytes]  # the bytes of a token
LEAST = -9999.0  # JSON has no infinity


def chat_logprobs(chunks: Sequence[Chunk], decode: Decode) -> dict[str, Any]:
    """Of the chat API."""
    return {"content": [_entry(one, decode) for one in chunks if one.likely is not None], "refusal": None}


def _entry(chunk: Chunk, decode: Decode) -> dict[str, Any]:
    assert chunk.likely is not None
    top = [_token(token, value, decode) for token, value in chunk.likely.top]
    return {**_token(chunk.token_id, chunk.likely.logprob, decode), "top_logprobs": top}


def _token(token: int, logprob: float, decode: Decode) -> dict[str, Any]:
    data = decode(token)
    return {"token": data.decode("utf-8", "replace"), "logprob": max(logprob, LEAST), "bytes": list(data)}


def completion_logprobs(chunks: Sequence[Chunk], decode: Decode, start: int) -> dict[str, Any]:
    """Of the older API; start: characters before."""
    found: dict[str, list[Any]] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
    for chunk in chunks:
        if chunk.likely is None:
            continue
        text = decode(chunk.token_id).decode("utf-8", "replace")
        found["tokens"].append(text)
        found["token_logprobs"].append(max(chunk.likely.logprob, LEAST))
        top = {decode(token).decode("utf-8", "replace"): max(value, LEAST) for token, value in chunk.likely.top}
        found["top_logprobs"].append(top)
        found["text_offset"].append(start)
        start += len(text)
    return found
