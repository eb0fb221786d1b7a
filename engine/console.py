"""A run in the terminal: text to standard output as it is written, everything about it to standard error.

Ctrl-C ends the completion, not the account: the text so far stays, the byte table follows, the ledger file is whole.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn, TransferSpeedColumn

from ..errors import HeadraceError
from . import machine, report
from .config import SamplingParams
from .llm import LLM, Prompt
from .results import Completion

INTERRUPTED = 130  # exit status of a program that Ctrl-C ended
notes = Console(stderr=True, highlight=False)


@contextmanager
def load_progress() -> Iterator[Callable[[int, int], None]]:
    """A bar with bytes and GB/s; gives the callback that moves it."""
    columns = (TextColumn("loading"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeElapsedColumn())
    with Progress(*columns, console=notes, transient=False) as progress:
        task = progress.add_task("weights", total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def ensure_profile(llm: LLM) -> None:
    """Measures this machine once, so that the run has a prediction to be held against."""
    if llm.kernels != "cpu" or llm.machine is not None:
        return
    notes.print("this machine was not measured yet; reading its memory with the kernels, once ...")
    try:
        llm.use_profile(machine.measure())
        path = machine.save_profile(llm.machine) if llm.machine else None
        notes.print(f"saved in {path}; `headrace measure` repeats it")
    except (HeadraceError, OSError) as error:
        notes.print(f"no prediction: {error}")


def complete(llm: LLM, prompts: list[Prompt], params: SamplingParams, as_json: bool) -> int:
    """Completes prompts and reports; one prompt is streamed, several run as a batch. Returns the exit status."""
    if len(prompts) == 1:
        result = stream_to(llm, prompts[0], params, show=not as_json)
        results = [result]
    else:
        results = llm.generate(prompts, params)
        if not as_json:
            for i, result in enumerate(results):
                print(f"--- prompt {i + 1}\n{result.text}")
    finish(llm, results, as_json)
    return INTERRUPTED if any(r.finish_reason == "interrupted" for r in results) else 0


def stream_to(llm: LLM, prompt: Prompt, params: SamplingParams, show: bool) -> Completion:
    """Streams one completion to standard output; Ctrl-C ends it with the text so far."""
    stream = llm.stream(prompt, params)
    try:
        for chunk in stream:
            if show:
                sys.stdout.write(chunk.text)
                sys.stdout.flush()
    except KeyboardInterrupt:
        stream.close()
    if show:
        print()
    return stream.result


def finish(llm: LLM, results: list[Completion], as_json: bool) -> None:
    """The account of a run: one JSON object, or the byte table."""
    llm.close()
    if as_json:
        print(json.dumps(report.run_json(llm, results), ensure_ascii=False))
        return
    notes.print()
    notes.print(report.byte_table(llm, results))
    remark = report.remark(llm, results)
    if remark:
        notes.print(remark, style="dim")


def chat(llm: LLM, params: SamplingParams, system: str | None) -> int:
    """An interactive conversation. /reset forgets the history, /exit or Ctrl-D leaves. Returns the exit status."""
    start = [{"role": "system", "content": system}] if system else []
    messages = list(start)
    results: list[Completion] = []
    notes.print("chat: /reset forgets the history, /exit leaves, Ctrl-C stops an answer", style="dim")
    while (line := _read_line()) is not None:
        if line == "/reset":
            messages = list(start)
        elif line:
            messages.append({"role": "user", "content": line})
            answer = _answer(llm, messages, params)
            if answer is not None:
                results.append(answer)
    if results:
        finish(llm, results, as_json=False)
    return 0


def _read_line() -> str | None:
    """One line of the user; None at the end."""
    try:
        line = input("> ").strip()
    except (EOFError, KeyboardInterrupt):
        print()
        return None
    return None if line == "/exit" else line


def _answer(llm: LLM, messages: list[dict[str, str]], params: SamplingParams) -> Completion | None:
    """Streams the answer and appends it to the history; an overflow is shown and takes the question back."""
    try:
        result = stream_to(llm, llm.chat_prompt(messages), params, show=True)
    except HeadraceError as error:
        notes.print(str(error), style="red")
        messages.pop()
        return None
    messages.append({"role": "assistant", "content": result.text})
    return result
