"""What a grammar costs a decode step, in turns with steps that have none: medians of ratios of a step's seconds.

    asleep    tools are there and the model writes text: the grammar waits for a call
    awake     a grammar that allows every text: each token is checked, taken, and asked for what it forces
    schema    a JSON schema with free texts: tokens are masked where the model would write something else

python benchmarks/grammar_cost.py [MODEL] [--shape NAME [--layers 12]] [--new 64] [--rounds 7] [--json FILE]

MODEL is what `headrace generate` takes, and has a tokenizer. The bar is 1 % of a step of a model that lies in memory;
the demo's steps take a third of a millisecond, and say nothing about it. --shape: a model of the catalogue with random
weights (experts q4_0, the rest q8_0) and MODEL's tokenizer, which may be a GGUF file without weights; ids behind those
of the tokenizer are no text, so that with the demo's each step of `awake` and `schema` masks all logits. Nothing
else may compute meanwhile.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import result_file

from headrace import LLM, SamplingParams
from headrace.engine.bench.passport import passport
from headrace.engine.bench.random_weights import RandomWeights
from headrace.engine.generation.answer_text import AnswerText
from headrace.engine.generation.grammars.grammar import Grammar
from headrace.engine.generation.grammars.tool_calls import held
from headrace.engine.generation.own_answers import PromptIds
from headrace.kernels.context import Context
from headrace.loaders.architecture import catalogue
from headrace.loaders.files import gguf_set
from headrace.loaders.hub.local import DEMO, DEMO_DIRECTORY
from headrace.loaders.tokens.dialects.families import HERMES
from headrace.loaders.tokens.gguf.parts import parts_of

PROMPT = "The wheel turns as fast as the water arrives. "
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": f"tool_{number}",
            "parameters": {
                "type": "object",
                "properties": {"path": {"type": "string"}, "count": {"type": "integer"}},
                "required": ["path"],
            },
        },
    }
    for number in range(20)
]
SCHEMA = {
    "type": "object",
    "properties": {"title": {"type": "string", "minLength": 2000}},
    "required": ["title"],
    "additionalProperties": False,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="demo")
    parser.add_argument("--shape", help="a name of the catalogue")
    parser.add_argument("--layers", type=int, default=12, help="of the shape")
    parser.add_argument("--new", type=int, default=64, help="tokens of each answer")
    parser.add_argument("--rounds", type=int, default=7)
    result_file.add_option(parser, "grammar-cost")
    args = parser.parse_args()
    with opened(args) as llm:
        found = measure(llm, args.new, args.rounds)
    for name, value in found.items():
        print(f"{name:24} {value}")
    if args.json:
        result_file.write(
            args.json, "grammar-cost", {"passport": passport(Context()), "model": args.shape or args.model, **found}
        )


@contextmanager
def opened(args: argparse.Namespace) -> Iterator[LLM]:
    """MODEL, or one of another shape with its tokenizer."""
    if args.shape is None:
        with LLM(args.model, no_measure=True, speculate="off") as llm:
            yield llm
        return
    with tempfile.TemporaryDirectory() as place:
        write_tokenizer(DEMO_DIRECTORY if args.model == DEMO else Path(args.model), Path(place))
        (Path(place) / "config.json").write_text(json.dumps(catalogue.find(args.shape).config))
        formats = {"expert_format": "q4_0", "dense_format": "q8_0"}
        with LLM(
            RandomWeights(place, args.layers), no_measure=True, max_context=1024, speculate="off", **formats
        ) as llm:
            yield llm


def write_tokenizer(given: Path, place: Path) -> None:
    """The tokenizer of a model's directory, or of a GGUF file that may hold nothing but a vocabulary."""
    if given.is_file():
        parts = parts_of(gguf_set.of_path(given).metadata, str(given))
        parts.core.save(str(place / "tokenizer.json"))
        (place / "tokenizer_config.json").write_text(json.dumps(dict(parts.settings)))
        return
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (place / name).write_bytes((given / name).read_bytes())


def measure(llm: LLM, new: int, rounds: int) -> dict[str, Any]:
    """Seconds of a step with each grammar over those without, in turns."""
    assert llm.vocabulary is not None, "the model has no tokenizer"
    sleeping = held(HERMES, TOOLS, llm.vocabulary, True)
    assert sleeping is not None, "there is no grammar of calls with this tokenizer"
    kinds = {"asleep": sleeping, "awake": Grammar.of_regex("(?s:.*)"), "schema": Grammar.of_schema(SCHEMA)}
    ratios: dict[str, list[float]] = {name: [] for name in kinds}
    free: list[float] = []
    for _ in range(rounds + 1):  # the first round warms up
        for name, grammar in kinds.items():
            plain = step_s(llm, new, lambda text: None)
            free.append(plain)
            ratios[name].append(step_s(llm, new, lambda text, form=grammar: constrain(llm, text, form)) / plain)
    found: dict[str, Any] = {"step_ms": round(1e3 * statistics.median(free), 3)}
    for name, each in ratios.items():
        found[f"{name}_over_free"] = round(statistics.median(each[1:]), 4)
        found[f"{name}_ratios"] = [round(one, 4) for one in each[1:]]
    return found


def constrain(llm: LLM, text: AnswerText, grammar: Grammar) -> None:
    """Lets an answer follow a grammar."""
    assert text.sequence is not None
    text.sequence.constraint = llm.admission.constraint(grammar, text, HERMES)


def step_s(llm: LLM, new: int, prepare: Callable[[AnswerText], None]) -> float:
    """The median time from one token of an answer to the next: a pass and all that is done beside it."""
    params = SamplingParams(max_new_tokens=new, ignore_eos=True)
    request, text = llm.admission.told_apart(PromptIds(ids=llm.encode(PROMPT)), params, HERMES, TOOLS)
    prepare(text)
    times = [time.perf_counter() for _ in llm.loop.chunks(request)]
    return statistics.median(after - before for before, after in itertools.pairwise(times))


if __name__ == "__main__":
    main()
