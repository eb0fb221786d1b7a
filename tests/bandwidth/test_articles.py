"""Every worked number of the three articles, in the article's version and in the exact one."""

from __future__ import annotations

from dataclasses import replace

import pytest

from headrace import OptionError
from headrace.engine.bandwidth_model import flop_counts, roofline
from headrace.engine.bandwidth_model.hardware import Device, Hardware, exactly
from headrace.engine.ledger.passes import GPU_HBM
from headrace.engine.planning import articles
from headrace.engine.planning.articles import Decoder
from headrace.kernels import FORMATS
from headrace.loaders.architecture import catalogue
from headrace.loaders.architecture.readers import read
from headrace.loaders.quants.by_format import ByFormat

GB, TB = 1e9, 1e12
QWEN3 = Decoder(hidden=2048, width=768, experts=128, top_k=8, layers=48, vocab=151936, heads=32)
H100_BANDWIDTH, H100_PEAK = 2.8 * TB, 800e12  # what the article calls achievable


def architecture(name: str):  # type: ignore[no-untyped-def]
    return read(catalogue.find(name).config, name).architecture


@pytest.mark.parametrize(
    ("gpu", "ram", "share", "second", "exact_tok_s", "article_tok_s"),
    [
        (935, 409, 0.0, None, 32.05, 32.2),
        (409, 409, 0.0, None, 25.56, None),
        (935, 409, 0.04, 935, 32.64, 32.7),
        (1792, 410, 0.02, 1792, 35.97, 36.0),
    ],
)
def test_home_speed_of_kimi_k2(
    gpu: float, ram: float, share: float, second: float | None, exact_tok_s: float, article_tok_s: float | None
) -> None:
    """32 B active at 4 bits, 36 % of it common."""
    seconds = articles.seconds_per_token(
        32e9, 4, 0.36, gpu * GB, ram * GB, second_share=share, second=second and second * GB
    )
    assert 1 / seconds == pytest.approx(exact_tok_s, abs=0.005)
    if article_tok_s is not None:
        assert 1 / seconds == pytest.approx(article_tok_s, rel=0.005)
    if gpu == 1792:
        assert seconds == pytest.approx(27.80e-3, abs=5e-6)


def test_layers_on_a_card_by_rule_of_thumb() -> None:
    """36 GB in 48 layers, 8 GB free: 10.67 layers, so 10 on the card and 38 not. The article's 37 would need 8.25
    GB."""
    found = articles.rule_of_thumb(12 * GB, 4 * GB, 36 * GB, 48)
    assert found.fraction == pytest.approx(10.67, abs=0.005)
    assert (found.layers, found.n_cpu_moe) == (10, 38)
    assert (48 - 37) * 36 / 48 > 8


@pytest.mark.parametrize(("vram", "used", "n_cpu_moe"), [(80, 0, 0), (2, 4, 48), (4, 4, 48)])
def test_rule_of_thumb_at_the_ends(vram: float, used: float, n_cpu_moe: int) -> None:
    assert articles.rule_of_thumb(vram * GB, used * GB, 36 * GB, 48).n_cpu_moe == n_cpu_moe


def test_rule_of_thumb_needs_a_size() -> None:
    with pytest.raises(OptionError, match="0 layers"):
        articles.rule_of_thumb(12 * GB, 0, 36 * GB, 0)


def test_storage_formula_by_hand() -> None:
    """h 4, f 3, E 5, L 2, V 7: block = 16 + 64 + 20 + 180 = 280; all = 2*7*4 + 2*280."""
    small = Decoder(hidden=4, width=3, experts=5, top_k=2, layers=2, vocab=7, heads=2)
    assert small.block_parameters() == 280
    assert small.parameters == 616
    assert small.active_parameters == 28 + 2 * (16 + 64 + 20 + 72)
    assert small.cache_bytes(10) == 2 * 2 * 2 * 10 * 4


def test_flops_formula_by_hand() -> None:
    """One block of the small decoder, S = 3: norms 168, attention 384 + 144 + 54, rope 18, router 120 + 45,
    experts 2 * (216 + 9 + 45); unembedding 168."""
    small = Decoder(hidden=4, width=3, experts=5, top_k=2, layers=1, vocab=7, heads=2)
    assert small.prefill_flops(3) == 168 + 384 + 144 + 54 + 18 + 165 + 540 + 168
    assert small.decode_flops(3) == 56 + 128 + 48 + 18 + 6 + 55 + 180 + 56


def test_a_prompt_of_one_token_is_a_decoded_token() -> None:
    assert QWEN3.prefill_flops(1) == QWEN3.decode_flops(1)


def test_active_weights_of_qwen3() -> None:
    """~6 GB in bf16; exactly 3.04 B parameters = 6.08 GB."""
    assert 2 * QWEN3.active_parameters / GB == pytest.approx(6, rel=0.03)
    found = architecture("Qwen3-30B-A3B")
    assert found.active_parameters == pytest.approx(3.04e9, rel=1e-3)
    assert 2 * found.active_parameters == pytest.approx(6.08 * GB, rel=1e-3)


def test_time_to_read_them_and_memory_bound_throughput() -> None:
    """2.1 ms and 466 tokens/s; exactly 460."""
    read_bytes = 2 * QWEN3.active_parameters
    assert read_bytes / H100_BANDWIDTH == pytest.approx(2.1e-3, rel=0.03)
    assert articles.memory_bound(H100_BANDWIDTH, read_bytes) == pytest.approx(466, rel=0.03)
    real = 2 * architecture("Qwen3-30B-A3B").active_parameters
    assert articles.memory_bound(H100_BANDWIDTH, real) == pytest.approx(460, rel=2e-3)


def test_compute_of_a_decoded_token() -> None:
    """7.7 GFLOP is what the article's formula gives at a context of 4562 tokens; the exact count is 6.1 at context
    0."""
    assert QWEN3.context_of(7.7e9) == pytest.approx(4562, abs=1)
    assert QWEN3.decode_flops(4562) == pytest.approx(7.7e9, rel=1e-4)
    assert flop_counts.decode_flops(architecture("Qwen3-30B-A3B"), 0) == pytest.approx(6.1e9, rel=5e-3)


def test_time_to_compute_a_token_and_compute_bound_throughput() -> None:
    """7.7 GFLOP at 800 TFLOP/s: 9.6 us, about 100,000 tokens a second; reading takes 99.5 % of the time."""
    seconds = 7.7e9 / H100_PEAK
    assert seconds == pytest.approx(9.6e-6, rel=0.01)
    assert articles.compute_bound(H100_PEAK, 7.7e9) == pytest.approx(1e5, rel=0.05)
    assert 2.1e-3 / (2.1e-3 + seconds) == pytest.approx(0.995, abs=1e-3)


def test_what_the_authors_measured_is_seventy_percent() -> None:
    assert 333 / articles.memory_bound(H100_BANDWIDTH, 2 * QWEN3.active_parameters) == pytest.approx(0.70, abs=0.02)
    assert pytest.approx(333, abs=1) == 1 / 3e-3


def test_crossover_batch() -> None:
    assert round(articles.crossover_batch(H100_PEAK, H100_BANDWIDTH)) == 286
    assert articles.expert_crossover_batch(H100_PEAK, H100_BANDWIDTH, 128, 8) == pytest.approx(285.7 * 16, rel=1e-3)


def test_the_roofline_crosses_over_where_the_article_does() -> None:
    """286 tokens for bf16; a format of half the bytes half as soon; never where the compute is not known."""
    gpu = Device(name="h100", kind="gpu", memory=None, nominal=H100_BANDWIDTH, bandwidth=exactly(H100_BANDWIDTH),
                 flops=exactly(H100_PEAK))  # fmt: skip
    machine, weights = Hardware(name="h100", gpus=(gpu,)), ByFormat((("bf16", 1e6),))
    expected = articles.crossover_batch(H100_PEAK, H100_BANDWIDTH)
    assert roofline.crossover(weights, 5e5, GPU_HBM, machine) == pytest.approx(expected)
    assert round(expected) == 286
    packed = ByFormat((("q8_0", 1e6),))
    found = roofline.crossover(packed, roofline.weights_of(packed), GPU_HBM, machine)
    assert found == pytest.approx(expected * FORMATS["q8_0"].row_bytes(4096) / 8192)
    unknown = Hardware(name="?", gpus=(replace(gpu, flops=None),))
    assert roofline.crossover(weights, 5e5, GPU_HBM, unknown) is None


def test_mixtral_is_not_8_times_7() -> None:
    """46.7 B parameters, 12.9 B active with the embedding counted as published counts do: "13 B"."""
    found = architecture("Mixtral-8x7B")
    assert found.total_parameters == pytest.approx(46.7e9, rel=0.01)
    assert found.active_parameters + found.embedding.elements == pytest.approx(12.9e9, rel=0.01)


def test_batch_sweep_is_flat_and_then_rises() -> None:
    """With one sequence a step is 2.1 ms. A step grows with the experts that are touched until all of them are, then
    with compute."""
    steps = articles.sweep(QWEN3, [1, 128, 256, 100_000, 200_000], 16, H100_BANDWIDTH, H100_PEAK)
    assert steps[0].seconds == pytest.approx(2.1e-3, rel=0.03)
    assert steps[2].seconds / steps[1].seconds < 1.02
    assert steps[2].tokens_per_second > 1.9 * steps[1].tokens_per_second
    assert steps[4].seconds == pytest.approx(2 * steps[3].seconds)


def test_distinct_experts_uniform() -> None:
    assert articles.distinct_experts(128, 8, 1) == pytest.approx(8)
    assert articles.distinct_experts(128, 8, 2) == pytest.approx(15.5)
    assert articles.distinct_experts(8, 2, 10_000) == pytest.approx(8)


def test_distinct_experts_in_a_trace() -> None:
    """Runs of two tokens: {0,1,2} and {3,4}; the fifth token has no partner."""
    trace = [[0, 1], [1, 2], [3, 4], [3, 4], [5, 6]]
    assert articles.distinct_in_trace(trace, 2) == 2.5
    assert articles.distinct_in_trace(trace, 1) == 2
    with pytest.raises(OptionError, match="5 tokens has no batch of 6"):
        articles.distinct_in_trace(trace, 6)


def test_expert_parallel_traffic() -> None:
    """Half of 4 tokens x 8 experts x 2048 x 2 bytes leaves one of two devices; four times the batch, four times
    that."""
    assert articles.expert_parallel_bytes(2, 4, 8, 2048) == 65536
    assert articles.expert_parallel_bytes(2, 16, 8, 2048) == 4 * 65536
    assert articles.expert_parallel_bytes(1, 4, 8, 2048) == 0


def test_exact_flops_by_hand() -> None:
    """Two FLOPs an active parameter in a matrix, and 4 x heads x head size for every token seen, 48 layers."""
    found = architecture("Qwen3-30B-A3B")
    vectors = 48 * (2 * 2048 + 2 * 128) + 2048
    at_zero = 2 * (found.active_parameters - vectors)
    assert flop_counts.decode_flops(found, 0) == at_zero
    assert flop_counts.decode_flops(found, 1000) == at_zero + 48 * 1000 * 4 * 32 * 128


def test_latents_are_attended_directly_in_decode() -> None:
    """DeepSeek-V3: 2 x 128 x (2 x 512 + 64) a pair in decode, 2 x 128 x (128 + 64 + 128) in a prompt."""
    layer = architecture("DeepSeek-V3").layers[10]
    assert flop_counts.attention_flops(layer, 7, True) == 7 * 2 * 128 * 1088
    assert flop_counts.attention_flops(layer, 7, False) == 7 * 2 * 128 * 320
