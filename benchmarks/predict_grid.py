"""Prediction against measurement of decode over a grid: 4 shapes x 3 formats x batch 1 and 4 x context 64 and 2048.

    python benchmarks/predict_grid.py [--memory-gb 2.5] [--json benchmarks/results/predict-....json]

The profile of the machine is measured once, before; nothing is fitted to a run. Each shape is cut to the layers that
fit into --memory-gb, and filled with noise. `predicted` is what `headrace plan` says before the run (uniform routing);
`as routed` the ledger's prediction for the experts that were really chosen; `plain` the sum of an article: bytes of
weights over the plain read bandwidth, no cache, no fixed costs. An error is predicted over measured time, less one.
Worst first, with
the cores that other programs and guests took meanwhile. Prints Markdown rows for docs/bandwidth-model.md.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import statistics
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from headrace import SamplingParams
from headrace.engine import calibrate
from headrace.engine.ledger import Pass
from headrace.engine.planning import machine_file, placement, plan, storage
from headrace.engine.planning.speed import Model, Workload
from headrace.engine.profile import Profile
from headrace.engine.random_model import RandomLLM
from headrace.loaders import catalogue, encodings, model_source
from interleave import Strangers
from passport import passport

SHAPES = ("OLMoE-1B-7B", "Qwen3-30B-A3B", "Mixtral-8x7B", "Qwen1.5-MoE-A2.7B")
FORMATS = ("q4_0", "q8_0", "bf16")
BATCHES, CONTEXTS = (1, 4), (64, 2048)
NEW, ROUNDS = 16, 3


@dataclass(frozen=True, kw_only=True)
class Point:
    """One run: seconds of a decode step, and of three predictions of it. `strangers`: cores that others took."""

    shape: str
    layers: int
    format: str
    batch: int
    context: int
    measured_s: float
    predicted_s: float
    as_routed_s: float
    plain_s: float
    strangers: float

    def error(self, name: str) -> float:
        """Of the prediction of that name: above 0, it says too long."""
        return float(getattr(self, f"{name}_s")) / self.measured_s - 1


def config_of(shape: str, format: str, budget: int) -> dict[str, Any]:
    """The shape cut to as many layers as `budget` bytes hold, two at least."""
    config = catalogue.find(shape).config
    sizes = storage_of(config, format)
    outside = sizes.total - sum(layer.common + layer.routed for layer in sizes.layers)
    each = sizes.layers[0].common + sizes.layers[0].routed
    layers = max(2, min(len(sizes.layers), (budget - outside) // each))
    return {**config, "num_hidden_layers": layers}


def architecture_of(config: dict[str, Any]) -> Any:
    return model_source.of_config(config, "catalogue", "shape").described.architecture


def storage_of(config: dict[str, Any], format: str) -> storage.Storage:
    """As the engine packs it: matrices in the format, the embedding as in the config."""
    quant = encodings.parse(f"experts={format},dense={format},embed=bf16", encodings.native({}, ""))
    return storage.computed(architecture_of(config), quant)


def before(config: dict[str, Any], format: str, profile: Profile, work: Workload) -> tuple[float, float]:
    """Seconds of a step as planned, and by the plain sum."""
    model, machine = architecture_of(config), machine_file.of_profile(profile)
    engine = Model(model, storage_of(config, format), machine)
    demand = plan.needs(model, work, machine)
    step = engine.decode(placement.on_cpu(engine.storage, machine, demand), work)
    routed = sum(engine.touched(i, work.batch) * layer.expert for i, layer in enumerate(engine.storage.layers))
    return step.seconds, (engine.storage.common + routed) / profile.stream


def steps(llm: RandomLLM, batch: int, context: int) -> list[Pass]:
    """Decode passes whose caches hold about `context` tokens; the tokens before them are computed once."""
    rng = random.Random(0)
    prompts = [[rng.randrange(llm.spec.vocab) for _ in range(context - NEW // 2)] for _ in range(batch)]
    found: list[Pass] = []
    for turn in range(ROUNDS + 1):
        done = len(llm.ledger.passes)
        llm.generate(list(prompts), SamplingParams(max_new_tokens=NEW + 1, ignore_eos=True))
        if turn:
            found += [p for p in llm.ledger.passes[done:] if p.phase == "decode"]
    return found


def points(shape: str, format: str, profile: Profile, budget: int) -> Iterator[Point]:
    """All batches and contexts of one model."""
    config = config_of(shape, format, budget)
    llm = RandomLLM(
        config, expert_format=format, dense_format=format, max_context=max(CONTEXTS) + NEW, max_sequences=max(BATCHES)
    )
    llm.use_profile(profile)
    llm.tell = lambda text: None
    for context in CONTEXTS:
        for batch in BATCHES:
            predicted, plain = before(config, format, profile, Workload(context=context, batch=batch, prompt=1))
            others = Strangers()
            passes = steps(llm, batch, context)
            yield Point(
                shape=shape,
                layers=llm.spec.layers,
                format=format,
                batch=batch,
                context=context,
                measured_s=statistics.median(p.measured_s for p in passes),
                predicted_s=predicted,
                as_routed_s=statistics.median(p.predicted_s or 0.0 for p in passes),
                plain_s=plain,
                strangers=others.cores(),
            )


def row(point: Point) -> str:
    """A row of the table in docs/bandwidth-model.md."""
    cells = [f"{point.shape}, {point.layers} layers", point.format, str(point.batch), str(point.context)]
    cells += [f"{1e3 * seconds:.2f} ms" for seconds in (point.predicted_s, point.measured_s)]
    cells += [f"{point.error(name):+.1%}" for name in ("predicted", "as_routed", "plain")]
    return "| " + " | ".join([*cells, f"{point.strangers:.2f}"]) + " |"


def summary(found: list[Point]) -> dict[str, dict[str, float]]:
    """Median and worst absolute error of each prediction."""
    errors = {name: [abs(p.error(name)) for p in found] for name in ("predicted", "as_routed", "plain")}
    return {
        name: {"median": round(statistics.median(each), 4), "worst": round(max(each), 4)}
        for name, each in errors.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="decode: predicted against measured, over a grid")
    parser.add_argument("--memory-gb", type=float, default=2.5, help="weights of one model at most")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=SHAPES)
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=FORMATS)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    profile = calibrate.measure()
    print(json.dumps(asdict(profile)), flush=True)
    found: list[Point] = []
    for shape in args.shapes:
        for format in args.formats:
            for point in points(shape, format, profile, int(args.memory_gb * 1e9)):
                found.append(point)
                print(row(point), flush=True)
            gc.collect()
    found.sort(key=lambda p: -abs(p.error("predicted")))
    result = {
        "summary": summary(found),
        "fitted_constants": [],
        "points": [{**asdict(p), "error": p.error("predicted"), "plain_error": p.error("plain")} for p in found],
        "profile": asdict(profile),
        "passport": passport(),
    }
    print("\n".join(["worst first:", *map(row, found), json.dumps(result["summary"])]))
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
