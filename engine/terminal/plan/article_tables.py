"""What `headrace plan --article` prints: the worked numbers of the three articles, recomputed, beside what they say."""

from __future__ import annotations

from collections.abc import Iterable

from rich.table import Table

from ....loaders.architecture import catalogue
from ....loaders.architecture.architecture import Architecture
from ....loaders.architecture.readers import read
from ...bandwidth_model import flop_counts
from ...planning import articles
from ...planning.articles import Decoder, compute_bound, memory_bound
from ..tables import new_table

GB, TB, TFLOP = 1e9, 1e12, 1e12
QWEN3 = Decoder(hidden=2048, width=768, experts=128, top_k=8, layers=48, vocab=151936, heads=32)
BANDWIDTH, PEAK = 2.8 * TB, 800 * TFLOP  # an H100, as the article reaches it


def tables() -> Iterable[Table]:
    yield home_speed()
    yield partial_offload()
    yield moe_arithmetic()
    yield batch_sweep()
    yield parallel()


def home_speed() -> Table:
    """Kimi K2, 32 B active at 4 bits, 36 % common."""
    shown = new_table("home inference speed, Kimi K2 at 4 bits (tokens/s)", "machine", "article", "recomputed")
    cases = (
        ("RTX 3090 935 GB/s + 8x DDR5-6400 409 GB/s", 935, 409, 0.0, None, "32.2"),
        ("no GPU, 409 GB/s", 409, 409, 0.0, None, "-"),
        ("+ second RTX 3090 with 4 % of the experts", 935, 409, 0.04, 935, "32.7"),
        ("RTX 5090 1792 GB/s + 410 GB/s, 2 % of the experts in VRAM", 1792, 410, 0.02, 1792, "36.0"),
    )
    for what, gpu, ram, share, second, said in cases:
        seconds = articles.seconds_per_token(
            32e9, 4, 0.36, gpu * GB, ram * GB, second_share=share, second=second * GB if second else None
        )
        shown.add_row(what, said, f"{1 / seconds:.2f}")
    return shown


def partial_offload() -> Table:
    shown = new_table(
        "partial offload: 36 GB in 48 layers, 12 GB card, 4 GB in use", "quantity", "article", "recomputed"
    )
    rule = articles.rule_of_thumb(12 * GB, 4 * GB, 36 * GB, 48)
    shown.add_row("layers that fit", "11", f"{rule.layers} (of {rule.fraction:.2f})")
    shown.add_row("--n-cpu-moe", "37 (needs 8.25 GB of 8)", str(rule.n_cpu_moe))
    return shown


def moe_arithmetic() -> Table:
    """Qwen3-30B-A3B on an H100: the article's formulas (full attention, no shared expert) and the real architecture."""
    shown = new_table(
        "Qwen3-30B-A3B in bf16 on an H100 (2.8 TB/s, 800 TFLOP/s)", "quantity", "article", "its formula", "exact"
    )
    mixtral = read(catalogue.find("Mixtral-8x7B").config, "catalogue").architecture
    mixtral_active = mixtral.active_parameters + mixtral.embedding.elements
    for row in _qwen3_rows(read(catalogue.find("Qwen3-30B-A3B").config, "catalogue").architecture):
        shown.add_row(*row)
    shown.add_row("Mixtral 8x7B: all parameters", "46.7 B", "-", f"{mixtral.total_parameters / GB:.2f} B")
    shown.add_row("Mixtral 8x7B: active, with embedding", "12.9 B", "-", f"{mixtral_active / GB:.2f} B")
    return shown


def _qwen3_rows(real: Architecture) -> tuple[tuple[str, ...], ...]:
    """Quantity, what the article says, what its formula gives, and what the real architecture does."""
    context = QWEN3.context_of(7.7e9)
    ours, theirs = 2 * real.active_parameters, 2 * QWEN3.active_parameters
    return (
        ("weights read per token", "6 GB", f"{theirs / GB:.2f} GB", f"{ours / GB:.2f} GB"),
        ("time to read them", "2.1 ms", f"{theirs / BANDWIDTH * 1e3:.2f} ms", f"{ours / BANDWIDTH * 1e3:.2f} ms"),
        (
            "memory-bound tokens/s", "466", f"{memory_bound(BANDWIDTH, theirs):.0f}",
            f"{memory_bound(BANDWIDTH, ours):.0f}",
        ),
        (
            f"FLOPs per token, context {context:.0f}", "7.7 G", f"{QWEN3.decode_flops(round(context)) / GB:.2f} G",
            f"{flop_counts.decode_flops(real, round(context)) / GB:.2f} G",
        ),
        (
            "FLOPs per token, context 0", "-", f"{QWEN3.decode_flops(0) / GB:.2f} G",
            f"{flop_counts.decode_flops(real, 0) / GB:.2f} G",
        ),
        (
            "FLOPs of a prompt of 4096", "-", f"{QWEN3.prefill_flops(4096) / TFLOP:.1f} T",
            f"{flop_counts.prefill_flops(real, 4096) / TFLOP:.1f} T",
        ),
        (
            "compute-bound tokens/s", "100,000", f"{compute_bound(PEAK, 7.7e9):,.0f}",
            f"{compute_bound(PEAK, flop_counts.decode_flops(real, round(context))):,.0f}",
        ),
        (
            "cache of 4096 tokens", "-", f"{QWEN3.cache_bytes(4096) / GB:.2f} GB",
            f"{2 * real.cache_elements(4096) / GB:.2f} GB",
        ),
        ("crossover batch of a dense matrix", "286", f"{articles.crossover_batch(PEAK, BANDWIDTH):.0f}", "-"),
        (
            "crossover batch of an expert", "-", f"{articles.expert_crossover_batch(PEAK, BANDWIDTH, 128, 8):.0f}", "-",
        ),
        (
            "measured by the authors, tokens/s", "333", f"{333 * theirs / BANDWIDTH:.0%} of it",
            f"{333 * ours / BANDWIDTH:.0%} of it",
        ),
    )  # fmt: skip


def batch_sweep() -> Table:
    shown = new_table("batch sweep, context 16, uniform routing", "batch", "ms", "tokens/s", "experts a layer reads")
    for step in articles.sweep(QWEN3, [1, 4, 16, 64, 256, 1024, 4096, 16384], 16, BANDWIDTH, PEAK):
        touched = articles.distinct_experts(128, 8, step.batch)
        shown.add_row(str(step.batch), f"{step.seconds * 1e3:.2f}", f"{step.tokens_per_second:,.0f}", f"{touched:.1f}")
    return shown


def parallel() -> Table:
    shown = new_table("expert parallelism: bytes each way, 48 layers, per step", "devices", "batch 1", "batch 256")
    for devices in (2, 4, 8):
        sent = [48 * articles.expert_parallel_bytes(devices, batch, 8, 2048) for batch in (1, 256)]
        shown.add_row(str(devices), *(f"{size / 1e6:.2f} MB" for size in sent))
    return shown
