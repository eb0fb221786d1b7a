"""A server in this process: the demo model behind real HTTP, which says what a test wants it to say."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from headrace import LLM
from headrace.engine.generation.sampler import sample
from headrace.engine.generation.sequence import Sequence
from headrace.engine.server import run
from headrace.engine.server.service import Service
from headrace.engine.server.settings import ServerSettings
from headrace.kernels import Ops
from headrace.loaders.tokens.tokenizer import Tokenizer

# As Qwen3's: calls and their results in tags, reasoning in others.
TEMPLATE = """{%- if tools %}<|system|>
{% if messages[0].role == 'system' %}{{ messages[0].content }}
{% endif %}<tools>
{% for tool in tools %}{{ tool | tojson }}
{% endfor %}</tools>
{% elif messages[0].role == 'system' %}<|system|>
{{ messages[0].content }}
{% endif %}
{%- for message in messages %}
{%- if message.role == 'user' %}<|user|>
{{ message.content }}
{% elif message.role == 'assistant' %}<|assistant|>
{% if message.reasoning_content %}<think>
{{ message.reasoning_content }}
</think>
{% endif %}{{ message.content }}
{%- for call in message.tool_calls or [] %}
<tool_call>
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}
</tool_call>
{%- endfor %}
{% elif message.role == 'tool' %}<|user|>
<tool_response>
{{ message.content }}
</tool_response>
{% elif not loop.first %}{{ raise_exception('a system message comes first') }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}<|assistant|>
{% if enable_thinking is defined and not enable_thinking %}<think>

</think>
{% endif %}{% endif %}"""


Said = str | list[int] | None | Callable[[str], str | None]  # a text or ids, or one by the prompt; None: its own words


class Script:
    """Says `text`, also as ids or by the prompt, then ends; draws as usual where there is none. begins: goes on as
    usual behind the text."""

    def __init__(self) -> None:
        self.text: Said = None
        self.begins = False
        self.llm: LLM | None = None

    def __call__(self, logits_SV: Tensor, sequences: list[Sequence], ops: Ops) -> list[int]:
        if self.text is None or self.llm is None:
            return sample(logits_SV, sequences, ops)
        logits_SV = logits_SV.clone()
        for row_V, one in zip(logits_SV, sequences, strict=True):
            token = self._next(one)
            if token is not None:
                row_V[token] = 1e4
        return sample(logits_SV, sequences, ops)

    def _next(self, one: Sequence) -> int | None:
        """The token that a sequence is to get; None: as usual."""
        assert self.llm is not None
        assert self.llm.tokenizer is not None
        tokenizer, text = self.llm.tokenizer, self.text
        if callable(text):
            text = text(tokenizer.decode(one.tokens[: one.prompt_tokens], skip_special_tokens=False))
        if text is None:
            return None
        wanted = tokenizer.encode(text, add_special_tokens=False) if isinstance(text, str) else list(text)
        wanted += [] if self.begins else [self.llm.parts.eos_ids[0]]
        done = said_so_far(tokenizer, wanted, list(one.completion))
        return None if done >= len(wanted) and self.begins else wanted[min(done, len(wanted) - 1)]


def said_so_far(tokenizer: Tokenizer, wanted: list[int], completion: list[int]) -> int:
    """How many of the wanted tokens an answer has. A grammar may have forced some, in other tokens of the same text."""
    if completion == wanted[: len(completion)]:
        return len(completion)
    text = tokenizer.decode(completion, skip_special_tokens=False)
    texts = (tokenizer.decode(wanted[:n], skip_special_tokens=False) for n in range(len(wanted) + 1))
    return next((n for n, one in enumerate(texts) if one == text), len(completion))


class Served:
    """A server that runs. url: where; said: what the model says next."""

    def __init__(self, server: run.Server, url: str, script: Script) -> None:
        assert server.service is not None
        self.server, self.url, self.script = server, url, script
        self.service: Service = server.service

    def says(self, text: Said, and_more: bool = False) -> None:
        """Lets the model say a text from now on, these tokens, or one for each prompt; and_more: and go on as it
        likes."""
        self.script.text, self.script.begins = text, and_more

    @property
    def llm(self) -> LLM:
        return self.service.llm


@contextmanager
def running(settings: ServerSettings, load: Callable[[run.Loading], Service]) -> Iterator[tuple[run.Server, str]]:
    """A server in a thread of its own, and where it is. load: makes what is served."""
    listening, ready, server = run.listen(settings), threading.Event(), run.Server(settings)
    server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
    serve = server.run_with(load, listening, lambda _: ready.set())
    thread = threading.Thread(target=lambda: asyncio.run(serve), daemon=True)
    thread.start()
    assert ready.wait(60), server.failure
    try:
        yield server, run.address_of(listening)
    finally:
        server.should_exit = True
        thread.join(60)
        listening.close()
        assert not thread.is_alive(), "the server does not end"


@contextmanager
def serving(model: Any = "demo", options: dict[str, Any] | None = None, **settings: Any) -> Iterator[Served]:
    """Serves a model while the block runs. options: of the model; settings: of the server."""
    script = Script()
    chosen = ServerSettings(**{"port": 0, "chat_template": TEMPLATE, **settings})

    def load(loading: run.Loading) -> Service:
        llm = LLM(
            model, sampler=script, progress=loading.progress, max_sequences=chosen.parallel,
            prefill_stall_ms=chosen.prefill_stall_ms, no_measure=True, **(options or {}),
        )  # fmt: skip
        script.llm = llm
        return Service(llm, chosen, "demo", {"temperature": 0.0})

    with running(chosen, load) as (server, url):
        yield Served(server, url, script)


def raw(url: str, request: bytes, seconds: float = 10.0) -> bytes:
    """What a server answers to bytes."""
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=seconds) as connection:
        connection.sendall(request)
        found = b""
        while part := connection.recv(65536):
            found += part
    return found
