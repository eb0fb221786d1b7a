"""A run in the terminal: text to standard output as it is written, everything about it to standard error.

Ctrl-C ends the completion, not the account: the text so far stays, the byte table follows, the ledger file is whole.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TransferSpeedColumn,
)

from ...errors import HeadraceError
from ...kernels.context import Context
from .. import writable
from ..bandwidth_model import profile as profiles
from ..bandwidth_model.profile import ELSEWHERE, STALE, Profile
from ..bench import calibrate
from ..config import SamplingParams
from ..drafts_asked import AUTO, OFF
from ..experts.cache import report
from ..generation.admission import Admission, Prompt
from ..generation.outputs import Completion
from ..llm import LLM
from ..measure import other_load
from ..speculation.speculation import NONE_PAYS
from . import generate_report, output
from .chat.interactive import talk
from .chat_options import ChatOptions
from .tables import Screen

INTERRUPTED = 130  # exit status of a program that Ctrl-C ended
notes = Screen(stderr=True)


def say(text: str, style: str | None = None) -> None:
    """A line about the run; the terminal wraps it, so that a path in it can be copied."""
    output.end_line()
    notes.print(text, style=style, soft_wrap=True)


@contextmanager
def load_progress() -> Iterator[dict[str, Any]]:
    """Bars of a load, each shown from its first call on: weights with bytes and GB/s, then kernels that are compiled.
    Gives what moves them, by the names that `LLM` has for them."""
    is_narrow = notes.width < 64  # there a bar's line would be broken
    rates = () if is_narrow else (TransferSpeedColumn(), TimeElapsedColumn())
    loading = (TextColumn("loading"), BarColumn(16 if is_narrow else 40), DownloadColumn(), *rates)
    compiling = (TextColumn("compiling kernels"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    bars = {"progress": Progress(*loading, console=notes), "compiling": Progress(*compiling, console=notes)}

    def move(bar: Progress, done: int, total: int) -> None:
        if not bar.live.is_started:  # not before: what is wrong with options and files is said first
            for other in bars.values():
                if other.live.is_started:  # one at a time
                    other.stop()
            bar.start()
        task = bar.task_ids[0] if bar.task_ids else bar.add_task("")
        bar.update(task, completed=done, total=total)

    try:
        yield {name: partial(move, bar) for name, bar in bars.items()}
    finally:
        for bar in bars.values():
            if bar.live.is_started:
                bar.stop()


def ensure_profile(llm: LLM, even_if_busy: bool = False, before: Profile | None = None) -> Profile | None:
    """Measures this machine once, once more for other kernels, and the formats of this model that it does not know yet,
    so that the run has a prediction to be held against. even_if_busy: also while others compute, and if it cannot be
    kept. before: what was found for the same model in this run, which is then said and measured no second time. Returns
    what counts from now on, or did before."""
    if not llm.predictions.can_predict or llm.config.no_measure:
        return before
    if before is not None:
        llm.predictions.use_profile(before)
        return before
    try:
        known, formats = llm.predictions.profile, llm.parts.checkpoint.formats.used
        profile = current(known, llm.parts.context, even_if_busy, llm.config.profile, formats)
    except HeadraceError as error:
        say(
            f"no prediction: {error}"
            if llm.predictions.profile is None
            else f"{STALE}, and could not be measured: {error}"
        )
        profile = llm.predictions.profile
    llm.predictions.use_profile(profile)
    return profile


def current(
    known: Profile | None,
    context: Context,
    even_if_busy: bool = False,
    file: Path | None = None,
    formats: Collection[str] = (),
) -> Profile | None:
    """The profile of this machine in this context, with these formats: the known one if it is of these kernels, else
    measured now, or what is missing of it; `known` where others compute now, or where it could not be kept in `file` or
    its usual place, unless `even_if_busy`. It is kept only if they left it alone. Raises MemoryNeeded."""
    missing = [] if known is None or known.is_stale else known.missing(formats)
    if known is not None and not known.is_stale and not missing:
        return known
    why = "this machine was not measured yet" if known is None else STALE
    why = f"{', '.join(missing)} were not measured on this machine yet" if missing else why
    if reason := "" if even_if_busy else _obstacle(context, file):
        outcome = "There is no prediction" if known is None else "Predictions may be off"
        outcome = "Predictions take the rates of formats that are alike" if missing else outcome
        say(f"{why}, and {'are' if missing else 'is'} not measured now: {reason}. {outcome}")
        return known
    say(f"{why}; reading its memory with the kernels, once ...")
    found = calibrate.add(known, context, missing) if known and missing else calibrate.measure(context, more=formats)
    if other_load.are_in_the_way(found.busy):
        say(
            f"not saved: other processes took {found.busy:.1f} cores meanwhile, so that these rates are too low. They "
            "count for this run; `headrace measure` keeps what it finds"
        )
    else:
        save_profile(found, "; `headrace measure` repeats it", file)
    return found


def _obstacle(context: Context, file: Path | None) -> str:
    """Why this machine should not be measured now, with what to do; "" where nothing is in the way."""
    path = file or profiles.profile_path(profiles.hardware_key(context))
    if error := writable.problem(path, with_folders=True):
        return f"what it finds would be {_not_saved(error)} (--no-measure leaves out this line)"
    others = other_load.look()
    if other_load.are_in_the_way(others):
        return f"other processes take {others:.1f} cores (run `headrace measure` when nothing else runs)"
    return ""


def watch(llm: LLM) -> None:
    """Lets a run that drifts from its prediction say so on standard error, on a line of its own."""
    llm.predictions.tell = lambda text: say(text, "dim")


def save_profile(profile: Profile, remark: str = "", file: Path | None = None) -> None:
    """Saves a profile for later runs and says where; a place that cannot be written is no reason to stop."""
    try:
        say(f"saved in {profiles.save_profile(profile, file)}{remark}")
    except OSError as error:
        say(_not_saved(error))


def _not_saved(error: OSError) -> str:
    return f"not saved: {error.strerror} ({error.filename}); {ELSEWHERE}, or name a file with --profile"


def complete(llm: LLM, prompts: list[Prompt], params: SamplingParams, as_json: bool, echo: str = "") -> int:
    """Completes prompts and reports; one prompt is streamed, after `echo`, several run as a batch. Returns the exit
    status."""
    if params.temperature == 0 and (params.top_k or 0 < params.top_p < 1 or params.min_p or params.seed is not None):
        say("greedy, because the temperature is 0: top-k, top-p, min-p and seed change nothing", style="dim")
    if len(prompts) == 1:
        _echo("" if as_json else echo)
        results = [stream_to(llm, prompts[0], params, show=not as_json)]
    else:
        results = run_together(llm, prompts, params)
        if not as_json:
            for i, result in enumerate(results):
                output.write(f"--- prompt {i + 1}\n{result.text}\n")
    finish(llm, results, as_json)
    return INTERRUPTED if any(r.finish_reason == "interrupted" for r in results) else 0


def _echo(text: str) -> None:
    """Shows the prompt before its completion, on standard error, so that a person reads one text and a pipe gets only
    what is new."""
    if text:
        notes.print(f"\n{text}", style="bold", end="", markup=False, soft_wrap=True)
        output.begun("err", text)


def run_together(llm: LLM, prompts: list[Prompt], params: SamplingParams) -> list[Completion]:
    """Completes several prompts as one batch; Ctrl-C ends all of them with the text so far."""
    group = llm.batch(prompts, params)
    with contextlib.suppress(KeyboardInterrupt):
        group.run()
    return group.results


def stream_to(llm: LLM, prompt: Prompt, params: SamplingParams, show: bool) -> Completion:
    """Streams one completion to standard output; Ctrl-C ends it with the text so far."""
    stream = llm.stream(prompt, params)
    shown = 0
    try:
        for chunk in stream:
            if show:
                output.write(chunk.text)
                shown += len(chunk.text)
    except KeyboardInterrupt:
        stream.close()
    result = stream.result
    if show:
        output.write(f"{result.text[shown:]}\n")  # what was held back when it was interrupted
    return result


def finish(llm: LLM, results: Sequence[Completion], as_json: bool) -> None:
    """The account of a run: one JSON object, or the byte table."""
    llm.close()
    if as_json:
        print(json.dumps(generate_report.run_json(llm, results)))
        return
    notes.print()
    notes.print(generate_report.byte_table(llm.ledger))
    if llm.parts.expert_cache is not None:
        say(report.so_far(llm.parts.expert_cache), style="dim")
    for remark in filter(None, [_no_drafts(llm), generate_report.remark(llm)]):
        say(remark, style="dim")


def _no_drafts(llm: LLM) -> str:
    """A line where drafts were asked for and none was made."""
    decode = llm.ledger.summary("decode")
    if llm.config.speculate in (AUTO, OFF) or not decode.passes or decode.drafted:
        return ""
    return f"nothing was drafted with --speculate {llm.config.speculate}: {NONE_PAYS}"


def start_up(llm: LLM) -> None:
    """What was loaded and where it lies."""
    say_notes(llm)
    notes.print(generate_report.startup_table(llm))


def say_notes(llm: LLM) -> None:
    """What a user should know of how the model's files were read, and of what fell back."""
    for line in llm.notes:
        say(f"note: {line}")


def asked(admission: Admission, chosen: ChatOptions, prompts: Sequence[str], params: SamplingParams) -> list[list[int]]:
    """Token ids of what is to be completed, checked: what cannot run is said before weights are loaded."""
    if chosen.is_chat:
        chats = chosen.conversations(["Hello"] if chosen.interactive else prompts)
        found = [admission.chat(messages, **chosen.settings) for messages in chats]
    else:
        found = [admission.encode(text) for text in prompts]
        if any(admission.spells_start(text) for text in prompts):
            say("the prompt spells the start token itself: no second one is put before it", style="dim")
    for ids in found:
        admission.sequence(ids, replace(params, max_new_tokens=1) if chosen.interactive else params)
    return found


def chat(llm: LLM, params: SamplingParams, chosen: ChatOptions) -> int:
    """An interactive conversation. Returns the exit status."""
    results = talk(llm, params, chosen, say)
    if results:
        finish(llm, results, as_json=False)
    return 0
