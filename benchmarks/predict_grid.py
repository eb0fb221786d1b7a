"""Prediction against measurement over a grid: 4 shapes x 3 formats x batch 1 and 4 x context 64 and 2048, and prompts.

    python benchmarks/predict_grid.py --profile FILE [--memory-gb 5] [--only SHAPE ...] [--formats FORMAT ...]
                                      [--json [FILE]]

The profile of the machine is measured once, before: where FILE is not there yet, it is written. Nothing is fitted to a
run. Each shape is cut to the layers that fit into --memory-gb, and filled with noise. A piece of the grid (--only,
--formats) is merged into the results that are there, if those come from the same profile.

`predicted` is what `headrace plan` says before the run (uniform routing); `as routed` the ledger's prediction for the
experts that were really chosen; `plain` the sum of an article: bytes of weights over the plain read bandwidth, no
cache, no fixed costs. An error is predicted over measured time, less one.

`measured` is the median over the steps that ran at the pace of the profile, within 6 %
(`engine/measure/quiet_samples.py`: a neighbour on the other threads of our cores makes everything slower by a quarter,
and nothing accounts for it); `kept` is how many of the steps these are, `all steps` the median over all of them. The
points of a model take turns until each has enough steps, and a turn is repeated while other processes compute. Prints
Markdown rows for docs/bandwidth-model.md, worst first.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import result_file

from headrace import SamplingParams
from headrace.engine.bandwidth_model import machine_file
from headrace.engine.bandwidth_model import profile as profiles
from headrace.engine.bandwidth_model.profile import Profile
from headrace.engine.bench import calibrate
from headrace.engine.bench.passport import passport
from headrace.engine.bench.random_weights import random_llm
from headrace.engine.ledger.passes import Pass
from headrace.engine.measure.other_load import CROWDED, Strangers
from headrace.engine.measure.quiet_samples import Pace, Sample, alike, is_alike
from headrace.engine.planning import layouts, plan, storage
from headrace.engine.planning.speed import Model, Workload
from headrace.kernels.context import Context
from headrace.loaders import model_source
from headrace.loaders.architecture import catalogue
from headrace.loaders.quants import of_config, of_text

SHAPES = ("OLMoE-1B-7B", "Qwen3-30B-A3B", "Mixtral-8x7B", "Qwen1.5-MoE-A2.7B")
FORMATS = ("q4_0", "q8_0", "bf16", "q4_k_m", "q5_k_m")
IN_MIXES = ("q4_k", "q5_k", "q6_k", "q5_0", "q5_1")  # what the mixes are made of; rows that 256 does not divide too
BATCHES, CONTEXTS = (1, 4), (64, 2048)
PROMPT = 512
NEW = 8  # decode steps of a turn
WANTED, PROMPTS_WANTED = 20, 3  # undisturbed steps of a point
PROFILE_TRIES, UNDISTURBED = 4, 0.4
LIMIT_S = 25.0  # of one model's turns: what is not there by then is taken from the least disturbed steps
LEAST_CROWDED = 4  # turns
Kind = tuple[str, int, int]  # phase, batch, context
PREDICTIONS = ("predicted", "as_routed", "plain")


@dataclass(frozen=True, kw_only=True)
class Point:
    """One run: seconds of a decode step (or of a prompt of `context` tokens), and of three predictions of it.

    all_s: the median over all steps, of which `measured_s` keeps the share `kept`, `steps` in all. strangers: cores
    that other processes took. pace: that of the kept steps over the profile's.
    """

    shape: str
    layers: int
    format: str
    phase: str
    batch: int
    context: int
    measured_s: float
    all_s: float
    kept: float
    steps: int
    pace: float
    strangers: float
    predicted_s: float
    as_routed_s: float
    plain_s: float

    @property
    def key(self) -> tuple[str, str, str, int, int]:
        return self.shape, self.format, self.phase, self.batch, self.context

    def error(self, name: str) -> float:
        """Of the prediction of that name: above 0, it says too long."""
        return float(getattr(self, f"{name}_s")) / self.measured_s - 1


def config_of(shape: str, format: str, budget: int) -> dict[str, Any]:
    """The shape cut to as many layers as `budget` bytes hold, two at least."""
    config = catalogue.find(shape).config
    sizes = storage_of(config, format)
    inside = sum(layer.common + layer.routed for layer in sizes.layers)  # of mixes some layers have more
    each, outside = -(-inside // len(sizes.layers)), sizes.in_memory - inside
    layers = max(2, min(len(sizes.layers), (budget - outside) // each))
    return {**config, "num_hidden_layers": layers}


def architecture_of(config: dict[str, Any]) -> Any:
    return model_source.of_config(config, "catalogue", "shape").described.architecture


def storage_of(config: dict[str, Any], format: str) -> storage.Storage:
    """As the engine packs it: matrices in the format, the embedding as in the config."""
    quant = of_text.parse(f"experts={format},dense={format},embed=bf16", of_config.native({}, ""))
    return storage.computed(architecture_of(config), quant)


def before(config: dict[str, Any], format: str, profile: Profile, work: Workload) -> tuple[float, float, float]:
    """Seconds of a step as planned and by the plain sum, and of the prompt as planned."""
    model, machine = architecture_of(config), machine_file.of_profile(profile)
    engine = Model(model, storage_of(config, format), machine)
    demand = plan.needs(model, work, machine)
    everything = layouts.on_cpu(engine.storage, machine, demand)
    routed = sum(engine.touched(i, work.batch) * layer.expert for i, layer in enumerate(engine.storage.layers))
    prompt = engine.prefill(everything, work)
    assert prompt is not None, "a measured CPU has a compute rate"
    step = engine.seconds(engine.decode(everything, work))
    plain = (engine.storage.common + routed) / profile.stream
    return step.seconds, plain, engine.seconds(prompt).seconds


class Runs:
    """The runs of one model: what each of its points measured so far."""

    def __init__(self, config: dict[str, Any], shape: str, format: str, profile: Profile) -> None:
        self.config, self.shape, self.format, self.profile = config, shape, format, profile
        self.llm = random_llm(
            config,
            expert_format=format,
            dense_format=format,
            max_context=max(CONTEXTS) + 2 * NEW,
            max_sequences=max(BATCHES) + 2,  # room for prompts beside the tokens that decoding comes after
            prefill_chunk=PROMPT,
        )
        self.llm.predictions.use_profile(profile)
        self.llm.predictions.tell = lambda text: None
        self.pace = Pace(self.llm.parts.context)
        self.taken: list[tuple[Pass, float]] = []
        self.samples: dict[Kind, list[tuple[Pass, float]]] = {}
        self.crowded: dict[Kind, list[float]] = {}
        self.aside: dict[Kind, list[tuple[float, list[tuple[Pass, float]]]]] = {}
        self.random = random.Random(0)
        self._watch()

    def _watch(self) -> None:
        """From now on every step of the model is taken with its pace."""
        step = self.llm.loop.step

        def watched() -> None:
            self.pace()
            step()
            self.taken.append((self.llm.ledger.last, self.pace.since_before()))

        self.llm.loop.step = watched  # type: ignore[method-assign]

    def turns(self) -> None:
        """Lets points take turns until each has what is wanted, or time is up."""
        kinds = [("decode", b, c) for c in CONTEXTS for b in BATCHES] + [("prefill", 1, PROMPT)]
        for kind in kinds:
            self._run(kind)  # fills caches, of the engine and of the CPU: not counted
        start = time.perf_counter()
        while time.perf_counter() - start < LIMIT_S and (open_ := [k for k in kinds if not self._has_enough(k)]):
            for kind in open_:
                others = Strangers()
                found = self._run(kind)
                self._keep(kind, others.cores(), found)
        for kind, turns in self.aside.items():  # where there was no other moment, the least crowded ones count
            if kind not in self.samples:
                for cores, found in sorted(turns, key=lambda turn: turn[0])[:LEAST_CROWDED]:
                    self._take(kind, cores, found)

    def _keep(self, kind: Kind, cores: float, found: list[tuple[Pass, float]]) -> None:
        if cores <= CROWDED:
            self._take(kind, cores, found)
        else:
            self.aside.setdefault(kind, []).append((cores, found))

    def _take(self, kind: Kind, cores: float, found: list[tuple[Pass, float]]) -> None:
        self.samples.setdefault(kind, []).extend(found)
        self.crowded.setdefault(kind, []).append(cores)

    def _run(self, kind: Kind) -> list[tuple[Pass, float]]:
        """A few steps; prompts are new every time, what lies before decoded tokens is computed once."""
        phase, batch, context = kind
        self.taken.clear()
        seed = self.random if phase == "prefill" else random.Random(context)
        length = context if phase == "prefill" else context - NEW // 2
        prompts = [[seed.randrange(self.llm.spec.vocab) for _ in range(length)] for _ in range(batch)]
        new = 1 if phase == "prefill" else NEW + 1
        self.llm.generate(prompts, SamplingParams(max_new_tokens=new, ignore_eos=True))
        return [(done, pace) for done, pace in self.taken if done.phase == phase]

    def _kept(self, kind: Kind) -> int:
        return sum(is_alike(pace, self.profile.pace_s) for _, pace in self.samples.get(kind, []))

    def _has_enough(self, kind: Kind) -> bool:
        return self._kept(kind) >= (PROMPTS_WANTED if kind[0] == "prefill" else WANTED)

    def points(self) -> Iterator[Point]:
        for kind, found in self.samples.items():
            yield self._point(kind, found)

    def _point(self, kind: Kind, found: list[tuple[Pass, float]]) -> Point:
        phase, batch, context = kind
        work = Workload(context=context, batch=batch, prompt=PROMPT)
        decode, plain, prompt = before(self.config, self.format, self.profile, work)

        def typical(value: Callable[[Pass], float]) -> float:
            return statistics.median(alike([Sample(value(p), pace) for p, pace in found], self.profile.pace_s))

        paces = [pace for _, pace in found]
        return Point(
            shape=self.shape,
            layers=len(self.llm.spec.layers),
            format=self.format,
            phase=phase,
            batch=batch,
            context=context,
            measured_s=typical(lambda p: p.measured_s),
            all_s=statistics.median(p.measured_s for p, _ in found),
            kept=round(self._kept(kind) / len(found), 3),
            steps=len(found),
            pace=statistics.median(alike([Sample(s, s) for s in paces], self.profile.pace_s)) / self.profile.pace_s,
            strangers=max(self.crowded[kind]),
            predicted_s=decode if phase == "decode" else prompt,
            as_routed_s=typical(lambda p: p.predicted_s or 0.0),
            plain_s=plain,
        )


def row(point: Point) -> str:
    """A row of the table in docs/bandwidth-model.md."""
    cells = [f"{point.shape}, {point.layers} layers", point.format, str(point.batch), str(point.context)]
    cells += [f"{1e3 * seconds:.2f} ms" for seconds in (point.predicted_s, point.measured_s)]
    cells += [f"{point.error(name):+.1%}" for name in PREDICTIONS]
    cells += [f"{1e3 * point.all_s:.2f} ms", f"{point.kept:.0%} of {point.steps}", f"{point.strangers:.2f}"]
    return "| " + " | ".join(cells) + " |"


def spread(errors: list[float]) -> dict[str, float]:
    """Median and worst of absolute errors, and the median with its sign."""
    sizes = [abs(e) for e in errors]
    return {
        "median": round(statistics.median(sizes), 4),
        "worst": round(max(sizes), 4),
        "bias": round(statistics.median(errors), 4),
    }


def summary(found: list[Point]) -> dict[str, Any]:
    """Errors of each prediction of decode steps, of the prediction against all steps, by shape, format, batch and
    context, and of prompts."""
    decode = [p for p in found if p.phase == "decode"]
    result: dict[str, Any] = {name: spread([p.error(name) for p in decode]) for name in PREDICTIONS}
    result["predicted, all steps"] = spread([p.predicted_s / p.all_s - 1 for p in decode])
    for field in ("shape", "format", "batch", "context"):
        for value in dict.fromkeys(getattr(p, field) for p in decode):
            part = [p for p in decode if getattr(p, field) == value]
            result[f"{field} {value}"] = {
                name: spread([p.error(name) for p in part]) for name in ("predicted", "plain")
            }
    result["left out"] = left_out(decode)
    if prompts := [p for p in found if p.phase == "prefill"]:
        result["prompts"] = spread([p.error("predicted") for p in prompts])
    return result


def left_out(decode: list[Point]) -> dict[str, Any]:
    """Each shape predicted with one factor on all times, fitted to the other shapes: whether what the model gets wrong
    is the same everywhere. The factors themselves, and what is left of the errors."""
    factors, errors = {}, []
    for shape in dict.fromkeys(p.shape for p in decode):
        others = [p.measured_s / p.predicted_s for p in decode if p.shape != shape]
        if not others:
            return {}
        factors[shape] = round(statistics.median(others), 4)
        errors += [factors[shape] * p.predicted_s / p.measured_s - 1 for p in decode if p.shape == shape]
    return {"factors": factors, **spread(errors)}


def the_profile(path: Path) -> Profile:
    """The one of the file; measured and written where there is no file."""
    if not path.exists():
        path.write_text(json.dumps(asdict(measured_profile()), indent=2) + "\n")
    profile = Profile(**json.loads(path.read_text()))
    if profile.key != profiles.hardware_key(Context()):
        raise SystemExit(f"{path} is the profile of other hardware ({profile.cpu}): name another file")
    if profile.is_stale:
        raise SystemExit(f"{path} was measured with other kernels: name another file")
    return profile


def measured_profile() -> Profile:
    """A profile of the machine by itself: the first of a few that was mostly undisturbed, else the least disturbed."""
    tries: list[Profile] = []
    for _ in range(PROFILE_TRIES):
        profile = calibrate.measure(Context(), more=IN_MIXES)
        print(f"profile: others took {profile.busy:.2f} cores, {profile.undisturbed:.0%} of samples undisturbed")
        if profile.busy <= CROWDED:
            tries.append(profile)
            if profile.undisturbed >= UNDISTURBED:
                break
    if not tries:
        raise SystemExit("other programs compute on this machine: no profile of it by itself could be measured")
    return max(tries, key=lambda profile: profile.undisturbed)


def merged(path: Path | None, profile: Profile, new: list[Point]) -> list[Point]:
    """The points of the results that are there, with the new ones in place of their likes; worst first."""
    found: dict[tuple[str, str, str, int, int], Point] = {}
    if path is not None and path.exists():
        before = json.loads(path.read_text())
        if before.get("profile") == asdict(profile):
            names = {field.name for field in fields(Point)}
            many = [Point(**{k: v for k, v in p.items() if k in names}) for p in before["points"]]
            found = {p.key: p for p in many}
    found.update({p.key: p for p in new})
    return sorted(found.values(), key=lambda p: (p.phase, -abs(p.error("predicted"))))


def missing(found: list[Point]) -> list[str]:
    """Points of the whole grid that are not there: not run yet, or never alone on the machine."""
    kinds = [("decode", b, c) for b in BATCHES for c in CONTEXTS] + [("prefill", 1, PROMPT)]
    there = {p.key for p in found}
    return [
        f"{shape} {format} {phase} batch {b} context {c}"
        for shape in SHAPES
        for format in FORMATS
        for phase, b, c in kinds
        if (shape, format, phase, b, c) not in there
    ]


def result_of(found: list[Point], profile: Profile) -> dict[str, Any]:
    return {
        "summary": summary(found),
        "fitted_constants": [],
        "missing": missing(found),
        "points": [{**asdict(p), "error": p.error("predicted"), "plain_error": p.error("plain")} for p in found],
        "profile": asdict(profile),
        "passport": passport(Context()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="decode: predicted against measured, over a grid")
    parser.add_argument("--memory-gb", type=float, default=2.5, help="weights of one model at most")
    parser.add_argument("--only", nargs="+", choices=SHAPES, default=SHAPES, metavar="SHAPE")
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=FORMATS)
    parser.add_argument("--profile", type=Path, required=True, help="measured and written if it is not there")
    result_file.add_option(parser, "predict")
    args = parser.parse_args()
    profile = the_profile(args.profile)
    path = result_file.asked(args.json, "predict", passport(Context()))  # results that are there are merged
    new: list[Point] = []
    for shape in args.only:
        for format in args.formats:
            runs = Runs(config_of(shape, format, int(args.memory_gb * 1e9)), shape, format, profile)
            runs.turns()
            for point in runs.points():
                new.append(point)
                print(row(point), flush=True)
            del runs
            gc.collect()
            found = merged(path, profile, new)
            result_file.write(path, "predict", result_of(found, profile))
    print("\n".join(["worst first:", *map(row, found), json.dumps(summary(found), indent=1)]))


if __name__ == "__main__":
    main()
