"""The Triton kernels against their plain twins, under Triton's interpreter: the same cases as the C++ kernels have.

The interpreter runs programs one after another in numpy, so the larger of the small cases are left out. It computes
products of bf16 in float32 (its own bf16 arithmetic is wrong), so that the bounds are those of float32; it rounds
float32 to bf16 towards zero. On a GPU `benchmarks/gpu_suite.py` runs all cases.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from itertools import product

import pytest
import torch
from busy import HANG_S
from torch import Tensor

from headrace import kernels
from headrace.kernels import FORMATS, ExpertLayout, reference
from headrace.kernels.cases.all import CASES, experts_case_of, linear_case
from headrace.kernels.cases.block_formats import MIXES, MORE, layout_of, whole_blocks
from headrace.kernels.cases.case import Case, Inputs, RandomSource, worst
from headrace.kernels.cases.families import FAMILY_CASES
from headrace.kernels.cases.few_rows import FewRows
from headrace.kernels.cases.recurrent import RECURRENT_CASES
from headrace.kernels.cases.variants.by_kind import KIND_CASES
from headrace.kernels.cases.variants.own_norms import OWN_NORMS_CASES
from headrace.kernels.cases.variants.warm import WARM_CASES
from headrace.kernels.decoder_layer import Router
from headrace.kernels.formats import PARTS
from headrace.kernels.packed import Matrix

triton = pytest.importorskip("triton", reason="the GPU kernels need Triton", exc_type=ImportError)
from headrace.kernels import gpu, scratch  # noqa: E402
from headrace.kernels.gpu.experts import many_tokens, unpacking  # noqa: E402
from headrace.kernels.gpu.experts.blocks import Blocks, blocks_of  # noqa: E402

MOST_FLOPS = {"linear": 3e6, "linear_by_head": 3e6, "experts": 1e6, "experts q4_0": 3e6, "attention": 1.2e7,
              "delta_rule": 2e7}  # fmt: skip
FUSED = 2e-5  # of numbers about 1


def is_small(case: Case) -> bool:
    """Whether the interpreter takes less than about two seconds for it."""
    form = case.name.split()[0]
    if case.bench or case.op == "quantize" or case.name.startswith(("40x128", "bfloat16 70x", "float32 70x")):
        return False
    return case.flops <= MOST_FLOPS.get(f"{case.op} {form}", MOST_FLOPS.get(case.op, 0))


def is_new(case: Case) -> bool:
    """Whether a case shows what another one does not. f16 differs from bf16 in the name of a type only, "exact"
    activations are for kernels that round them to int8, and a block or layers are their parts in any format."""
    form = case.name.split()[0]
    if case.op == "layers" and form == "own":  # three layers, one kind of cache in a step and the other in a prompt
        return "bf16 new [1]" in case.name or "q8_0 new [9]" in case.name
    if case.op == "attention_block" and "softmax_topk new [9, 1]" in case.name:  # routers have cases of their own
        return False
    if case.op == "layers" and "new [37, 5]" in case.name:  # test_triton_models.py has prompts of the same layers
        return False
    if case.op == "experts" and "x256x256" in case.name:  # what follows the products is the same for every format
        return form in ("f32", "q4_k") and "cubic" not in case.name
    if case.op in ("attention_block", "layers"):
        return form in ("f32", "window,", "windows,", "own", "narrow") and "few rows" not in case.name
    if case.op == "linear_by_head" and case.name.endswith(("16x40x256", "3x33x256")):
        return form in ("f32", "q4_0", "q6_k")
    return not (case.op in ("linear", "experts") and (form == "f16" or case.name.endswith("exact")))


def paths_of(case: Case) -> set[tuple[object, ...]]:
    """What decides how a case is computed, but for sizes: the format, and what else its name says, each with the op and
    with whether it has one token (or one of each sequence) or more."""
    form, *rest = re.split(r"[ ,:]+", case.name)
    new = re.search(r"new \[([\d, ]+)\]|\b(\d+) tokens", case.name) or re.search(r" (\d+)x", case.name)
    is_one = new is not None and set(re.findall(r"\d+", new[0])) == {"1"}
    words = frozenset(word for word in rest if word.isalpha())
    return {(case.op, is_one, "" if form[0].isdigit() else form), (case.op, is_one, words)}


def one_of_each_path(cases: list[Case]) -> set[str]:
    """The names, with their ops, of as many cases as every path is in, the smaller ones first."""
    seen: set[tuple[object, ...]] = set()
    found = set()
    for case in sorted(cases, key=lambda case: case.flops):
        if not paths_of(case) <= seen:
            seen |= paths_of(case)
            found.add(f"{case.op}: {case.name}")
    return found


def cases_of_formats() -> Iterator[Case]:
    """Of every format both cores, with rows that end within a group of blocks and within a step; experts in mixes."""
    for form in MORE:
        yield linear_case(form, 1, 9, whole_blocks(2080, form), bias=True, exact=False)
        yield linear_case(form, 2, 9, whole_blocks(800, form), bias=False, exact=False)
    for name in ("q5_0", "mxfp4", "int4_g128", "nvfp4", "fp8"):  # widths of models whose rows are no multiple of 256
        for tokens, cols in ((1, 640), (3, 1408)):
            yield linear_case(FORMATS[name], tokens, 5, cols, bias=False, exact=False)
    for gate, up, down in [*MIXES, ("q4_k", "q6_k", "mxfp4"), ("q3_k", "q5_0", "f32"), ("q2_k", "nvfp4", "iq4_nl")]:
        yield experts_case_of(layout_of(gate, up, down, 96, 64), 3, 1, 2, "partly elsewhere")
        yield experts_case_of(layout_of(gate, up, down, 96, 64), 2, 5, 1)


ALL = (*CASES, *FAMILY_CASES, *RECURRENT_CASES, *OWN_NORMS_CASES, *KIND_CASES, *WARM_CASES)
SMALL = [case for case in ALL if is_small(case) and is_new(case)]
# Caches of bf16 differ from those of float32 in what a load is cast from: one case of each way through attention.
IN_BF16 = [case for case in SMALL if case.op == "attention" and case.name.startswith("bfloat16")]
ONCE = one_of_each_path(IN_BF16)
SMALL = [case for case in SMALL if case not in IN_BF16 or f"{case.op}: {case.name}" in ONCE]
# Layers are their blocks one after the other, which have caches of q8_0 by themselves.
SMALL = [case for case in SMALL if case.op != "layers" or "q8_0" not in case.name]
# Ops whose products, sums and masks another version of Triton could see differently, and formats that stand for others.
SEEN = ("linear", "linear_by_head", "experts", "route", "attention", "delta_rule", "short_conv", "rotate_")
OF_VERSIONS = one_of_each_path([case for case in SMALL if case.op in SEEN])
FORMATS_OF_VERSIONS = ("q4_k", "q6_k", "mxfp4")


def marked(case: Case, of_versions: bool) -> object:
    """A case as a parameter. of_versions: test_target_versions.py runs it too."""
    marks = [pytest.mark.versions] if of_versions else []
    return pytest.param(case, marks=marks, id=f"{case.op}: {case.name}")


def test_the_interpreter_is_on() -> None:
    assert triton.knobs.runtime.interpret


@pytest.mark.parametrize("case", [marked(c, f"{c.op}: {c.name}" in OF_VERSIONS) for c in SMALL])
def test_case(case: Case) -> None:
    check(case, case.inputs())


@pytest.mark.parametrize("case", [marked(c, c.name.startswith(FORMATS_OF_VERSIONS)) for c in cases_of_formats()])
def test_format(case: Case) -> None:
    check(case, case.inputs(FewRows(torch.Generator().manual_seed(4))))


def check(case: Case, inputs: Inputs) -> None:
    """An op against its twin, in the bounds of its case."""
    expected = case.call(reference, inputs)  # type: ignore[arg-type]
    allowed = case.allowed({**inputs, "activations": "bf16"}, expected)
    if case.op in ("attention_block", "layers"):  # what they are less what their parts are, in other orders of sums
        allowed = [FUSED] * len(allowed)
    if case.op == "place_qkv_" and "bfloat16" in case.name:
        allowed[2] = towards_zero(expected[2])  # values in the cache
    outcome = case.call(gpu, inputs)  # type: ignore[arg-type]
    for number, (got, want, limit) in enumerate(zip(outcome, expected, allowed, strict=True)):
        problem = worst(got, want, limit)
        assert problem is None, f"{case.op} {case.name}, output {number}: {problem}"


@pytest.mark.versions
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy, of numbers that are none
@pytest.mark.parametrize("name", [form.name for form in FORMATS.values() if form.is_block])
def test_any_bytes_are_unpacked_to_the_same_bits(name: str) -> None:
    """Every code, and scales of every kind: not numbers, infinities, and numbers below the normal ones, too."""
    form, cols = FORMATS[name], whole_blocks(800, FORMATS[name])
    data = torch.randint(256, (6, form.row_bytes(cols)), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
    matrix = Matrix(form, 6, cols, data)
    expected = reference.dequantize(matrix)
    assert expected.isfinite().sum() > 0.4 * expected.numel()
    torch.testing.assert_close(gpu.dequantize(matrix), expected, rtol=0, atol=0, equal_nan=True)
    ids = torch.tensor([5, 0, 5])
    torch.testing.assert_close(gpu.embed(matrix, ids), expected[ids], rtol=0, atol=0, equal_nan=True)


def test_a_weight_that_is_no_number_stays_none() -> None:
    """In either core: the sum of its row is none, and the others are what they were."""
    matrix = RandomSource(torch.Generator().manual_seed(2)).matrix(FORMATS["fp8"], 5, 320)
    matrix.data[3, -7] = 127
    for tokens in (1, 2):
        x = torch.randn(tokens, 320, generator=torch.Generator().manual_seed(tokens))
        assert gpu.linear(x, matrix).isnan().nonzero()[:, 1].unique().tolist() == [3]


def towards_zero(values: Tensor) -> Tensor:
    """One unit in the last place of bf16: what a cast towards zero may differ by."""
    return values.float().abs() * 2.0**-7


def test_every_op_is_there_and_has_a_case() -> None:
    ops = {name for name in vars(kernels.Ops) if not name.startswith("_")}
    plain = {name for name in gpu.__all__ if getattr(gpu, name) is getattr(reference, name)}
    assert ops == set(gpu.__all__) == {case.op for case in SMALL} | plain
    assert kernels.load("gpu") is gpu  # type: ignore[comparison-overlap]


@pytest.mark.versions
@pytest.mark.parametrize(
    ("tokens", "top_k", "experts", "tile"), [(4, 2, 6, 16), (1, 1, 1, 16), (300, 8, 128, 128), (700, 4, 33, 64)]
)
def test_pairs_are_grouped_by_expert_in_order(tokens: int, top_k: int, experts: int, tile: int) -> None:
    """In one program, and in more than a turn of the loop that adds up what the programs before have."""
    from headrace.kernels.gpu.experts.grouping import group

    ids = torch.randint(-1, experts, (tokens, top_k), generator=torch.Generator().manual_seed(1), dtype=torch.int32)
    order, starts, tiles, owners = group(ids, experts, tile)
    pairs = [(ids.flatten() == expert).nonzero().flatten() for expert in range(experts)]
    counts = torch.tensor([len(mine) for mine in pairs])
    assert starts.tolist() == [0, *counts.cumsum(0).tolist()]
    assert order[: starts[-1]].tolist() == torch.cat(pairs).tolist()
    most = -(-counts // tile)
    assert tiles.tolist() == [0, *most.cumsum(0).tolist()]
    assert owners[: tiles[-1]].tolist() == torch.arange(experts).repeat_interleave(most).tolist()


@pytest.mark.versions
@pytest.mark.parametrize("name", ["q8_0", "q5_1", "q4_k", "q6_k", "mxfp4", "nvfp4", "iq4_xs"])
def test_experts_are_unpacked_to_what_they_stand_for(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two at a time, rows in two steps. In float32 here, so but for the order of a product and a sum exactly."""
    layout = layout_of(name, name, name, whole_blocks(300, FORMATS[name]), 40)
    bank = RandomSource(torch.Generator().manual_seed(6)).bank(layout, 3)
    monkeypatch.setattr(scratch, "UNPACKED_BYTES", 2 * 2 * 3 * layout.hidden * layout.width)
    ends = []
    for begin, end, plain in unpacking.unpacked(blocks_of(bank)):
        ends.append(end)
        for expert, part in product(range(begin, end), PARTS):
            values = getattr(plain, part).rows.values[expert - begin]
            want = reference.dequantize(bank.matrix(expert, part))
            torch.testing.assert_close(values[: want.numel()].view_as(want), want, rtol=1e-5, atol=1e-6)
    assert ends == [2, 3]


def test_experts_of_many_tokens_are_unpacked_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two at a time, with choices of experts that are elsewhere."""
    case = experts_case_of(layout_of("q4_0", "q8_0", "q5_0", 64, 32), 3, 17, 2)
    inputs = case.inputs()
    inputs["ids"][1, 0] = -1
    runs: list[tuple[int, int]] = []
    monkeypatch.setattr(scratch, "UNPACKED_FROM", 3)
    monkeypatch.setattr(scratch, "UNPACKED_BYTES", 2 * 2 * 3 * 64 * 32)

    def unpacked(blocks: Blocks) -> Iterator[unpacking.Run]:
        for run in unpacking.unpacked(blocks):
            runs.append((run.begin, run.end))
            yield run

    monkeypatch.setattr(many_tokens, "unpacked", unpacked)
    check(case, inputs)
    assert runs == [(0, 2), (2, 3)]


@pytest.mark.versions
@pytest.mark.parametrize(("name", "tokens"), [("q4_0", 1), ("q4_0", 5), ("q6_k", 1), ("q8_0", 17)])
def test_experts_find_their_numbers_in_a_bank(name: str, tokens: int) -> None:
    """Choices as in the model, a table of what they are in a bank of some: the bits of numbers looked up before,
    whichever kernels so many tokens take."""
    layout = layout_of(name, name, name, whole_blocks(64, FORMATS[name]), whole_blocks(32, FORMATS[name]))
    g = torch.Generator().manual_seed(8)
    bank = RandomSource(g).bank(layout, 3)
    local = torch.tensor([-1, 2, -1, 0, 1, -1], dtype=torch.int32)
    ids = torch.stack([torch.randperm(6, generator=g)[:4] for _ in range(tokens)]).int()
    ids[0, 0] = -1
    x, weights = torch.randn(tokens, layout.hidden, generator=g), torch.rand(tokens, 4, generator=g)
    before = torch.where(ids < 0, -1, local[ids.clamp(min=0).long()])
    assert (before >= 0).any()
    assert torch.equal(gpu.experts(x, ids, weights, bank, local), gpu.experts(x, before, weights, bank))


def test_a_router_gives_a_token_the_same_bits_in_any_small_batch() -> None:
    g = torch.Generator().manual_seed(7)
    x, router = torch.randn(16, 96, generator=g), Matrix.plain(torch.randn(24, 96, generator=g))
    alone = torch.cat([gpu.linear(row.unsqueeze(0), router) for row in x])
    for tokens in (2, 16):
        assert torch.equal(gpu.linear(x[:tokens], router), alone[:tokens])
    wide = torch.randn(3, 200, generator=g)
    assert torch.equal(
        gpu.linear(wide[:, 8:104], router), torch.cat([gpu.linear(r[None, 8:104], router) for r in wide])
    )


def test_a_long_prompt_goes_through_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    g = torch.Generator().manual_seed(5)
    bank = RandomSource(g).bank(ExpertLayout(format=FORMATS["q8_0"], hidden=64, width=32), 4)
    x, weights = torch.randn(7, 64, generator=g), torch.rand(7, 2, generator=g)
    ids = torch.tensor([[0, 1], [2, 3], [1, 3], [0, 2], [3, 0], [1, 2], [2, 0]], dtype=torch.int32)
    whole = gpu.experts(x, ids, weights, bank)
    monkeypatch.setattr(sys.modules["headrace.kernels.gpu.experts.experts"], "GPU_EXPERT_BYTES", 3 * 2 * 64 * 4)
    assert torch.equal(gpu.experts(x, ids, weights, bank), whole)


def test_wrong_shapes_are_refused() -> None:
    x, form = torch.zeros(2, 64), FORMATS["q4_0"]
    with pytest.raises(AssertionError, match="64 values, 96 columns"):
        gpu.linear(x, Matrix.empty(form, 8, 96))
    with pytest.raises(AssertionError, match=r"\[3\], not \[64\]"):
        gpu.rmsnorm(x, torch.zeros(3), 1e-6)
    with pytest.raises(AssertionError, match="top 9 of 8"):
        gpu.route(x, Router(matrix=Matrix.plain(torch.zeros(8, 64)), top_k=9, scoring="softmax", renormalise=True))
    with pytest.raises(AssertionError, match="strides"):
        gpu.glu(torch.zeros(64, 2).T)


def test_without_triton_the_error_says_what_to_install() -> None:
    code = "import sys; sys.modules['triton'] = None\nfrom headrace import kernels\nkernels.load('gpu')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=HANG_S)
    assert "OptionError: the GPU kernels need Triton" in done.stderr
    assert "pip install 'headrace[gpu]'" in done.stderr
