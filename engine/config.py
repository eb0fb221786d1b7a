"""What a user can choose: `EngineConfig` for the model in memory, `SamplingParams` for one request.

Both are frozen and check themselves when they are built, so that a bad value is named before anything is loaded; what
values mean is read by the types of the fields (`coerce.py`). They know no tensors; "auto" is resolved in `llm.py`,
where the machine and the model are known. These fields are the command line's options (`option.py`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import OptionError, brief
from ..kernels import BACKENDS, FORMATS
from ..kernels.formats import KV_FORMATS
from ..loaders.quants.recipes import PACKED
from . import drafts_asked, ranges
from .coerce import by_meaning
from .option import COMMON, HOSTS, MODEL, PLACEMENT, SAMPLING, SPEED, file_or_text, lower, number_or_text, option, words
from .placement import hosts_asked
from .placement import placement as placing
from .placement.placement import Policy
from .policies.protocol import Policy as ExpertPolicy
from .sizes import KV_DISK_GB, PINNED_SHARE, parse_kv_disk, parse_limit

DTYPES = {"auto": None, "float32": "f32", "bfloat16": "bf16"}
GRAPHED = ("memop", "hostfunc", "spin")  # ways to hand experts over in a graph (`cuda_graphs/signals.py`)
HANDOFFS = (*GRAPHED, "eager")
MOST_LOGPROBS = 20
TO_THE_END = -1  # new tokens: as many as the context holds
TOKEN = "HEADRACE_HOST_TOKEN"  # the environment's
WIRES = ("f32", "bf16", "int8")
GPU_ALONE = ("tensor_split", "vram_limit", "pinned_limit")  # options that can only be meant for a GPU
ABOUT_COPIES = ("stream_from", "pinned_limit", "second_vram", "link_limit")  # to a GPU, of experts
FORMAT_NAMES = ["native", *FORMATS, *(name for name in PACKED if name not in FORMATS)]
FORMATS_HELP = ", ".join(FORMAT_NAMES)
DEVICE = re.compile(r"auto|cpu|cuda(:\d{1,2})?|simulated(:(cpu|reference|gpu))?")


@by_meaning
@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """How a model is loaded and run; each field says what it is. None and "auto" are resolved for the machine and the
    model.

    device "auto" is the first GPU that can be used, without one the CPU, unless an option about GPUs is given, which
    then has none to be about; "simulated:KERNELS" says whose kernels the
    RAM that plays the GPU has. cpu_moe, n_cpu_moe and placement say one thing in three ways: give one. cpu_activations
    holds for the whole process: "int8" rounds per 32 values, in matrix tiles per 256 and the weights too, and lets
    attention round queries and weights to bfloat16; "bf16" rounds nothing to less, and nothing in attention.
    deterministic: docs/reliability.md says how, and what it leaves out. kv_format "auto"
    is float32 where dtype is, and bf16. Raises OptionError for a value that cannot be used.
    """

    expert_format: str = option("native", COMMON, "FORMAT", f"of the routed experts: {FORMATS_HELP}", read=lower)
    placement: str | Path | None = option(
        None, COMMON, "WHERE", f"where the routed experts lie: {placing.PLACES}, NAME.json (docs/placement.md)"
    )

    dense_format: str = option(
        "native", MODEL, "FORMAT", f"of attention, shared experts and head: {FORMATS_HELP}", read=lower
    )
    dtype: str = option("auto", MODEL, "TYPE", "what 'native' means: auto (as stored), float32 or bfloat16")
    experts_per_token: int | None = option(
        None, MODEL, "N", "experts that a token uses, from 1 to twice the trained number; default that"
    )
    max_context: int | None = option(None, MODEL, "TOKENS", "longest prompt plus completion; default what fits")
    ram_limit: float | None = option(None, MODEL, "GB", "RAM that may be taken, whatever is said to be free")
    kv_format: str = option(
        "auto", MODEL, "NAME", "of the KV cache: auto (bf16, of a float32 model f32), f32, bf16, or q8_0 (half of bf16)"
    )
    kv_disk: str | Path | None = option(
        None, MODEL, "DIR[:GB]", f"keep the KV cache of prompts there, {KV_DISK_GB} GB at most"
    )
    revision: str | None = option(None, MODEL, "NAME", "branch, tag or commit of a hub model")
    offline: bool = option(False, MODEL, "", "use only what was downloaded before")
    cache_dir: Path | None = option(None, MODEL, "DIRECTORY", "where hub downloads are kept")
    ignore_config_keys: tuple[str, ...] = option((), MODEL, "KEY,...", "config keys to ignore", read=words)
    ignore_tensors: tuple[str, ...] = option((), MODEL, "NAME,...", "tensors to ignore, also as mtp.*", read=words)

    device: str = option("auto", PLACEMENT, "DEVICE", "of all but experts: auto, cpu, cuda, cuda:N, simulated (in RAM)")
    cpu_moe: bool = option(False, PLACEMENT, "", "beside a GPU: all routed experts in RAM")
    n_cpu_moe: int | str | None = option(None, PLACEMENT, "N|auto", "those of the first N layers; auto: as few as fit")
    policy: str | ExpertPolicy | None = option(
        None, PLACEMENT, "NAME", "of a cache in VRAM of experts in RAM, or in RAM of those on disk (docs/policies.md)"
    )
    expert_cache: float | str | None = option(
        None,
        PLACEMENT,
        "GB|SHARE%|auto",
        "memory of that cache; auto, the default: what the KV cache does not need now",
    )
    second_vram: float | None = option(
        None, PLACEMENT, "GB", "of a second GPU: what it stores of the experts, for policies that use one (second-gpu)"
    )
    policy_trace: Path | None = option(None, PLACEMENT, "FILE", "a trace that the policy learns from")
    seed_experts: bool = option(False, PLACEMENT, "", "tell the policy what a prompt chose, before the first token")
    tensor_split: str | None = option(None, PLACEMENT, "A,B", "deal layers in VRAM out over two GPUs; 0,1: the second")
    vram_limit: float | None = option(None, PLACEMENT, "GB", "most to take of each GPU; default what is free, less 1")
    pinned_limit: float | str | None = option(
        None, PLACEMENT, "GB|SHARE%", f"most of the experts in RAM to pin; 0: none; default {PINNED_SHARE:.0%}"
    )
    link_limit: float | None = option(None, PLACEMENT, "GB/S", "of a simulated GPU: how fast experts are copied to it")

    hosts: int | None = option(
        None, HOSTS, "N|auto", "machines that hold experts and compute them; auto: of torchrun (docs/hosts.md)",
        read=number_or_text,
    )  # fmt: skip
    split_by: str = option("experts", HOSTS, "WHAT", "what they hold: experts, or layers with their cache")
    listen: str = option("127.0.0.1", HOSTS, "ADDRESS[:PORT]", "where they join; an address of a private network")
    host_token: Path | None = option(None, HOSTS, "FILE", f"the secret that they share; default of {TOKEN}")
    wire: str = option("f32", HOSTS, "TYPE", "of rows that go there and back: f32 (no bit changes), bf16 or int8")
    replicate: str | None = option(
        None, HOSTS, "trace:FILE,SHARE", "a copy on a second host of the most chosen experts"
    )
    host_timeout: float = option(2.0, HOSTS, "SECONDS", "of silence after which a host that is at work is lost")
    host_wait: float = option(120.0, HOSTS, "SECONDS", "for all of them to join at the start")
    i_know: bool = option(False, HOSTS, "", "listen on a public address although nothing is encrypted")

    threads: int | None = option(None, SPEED, "N", "CPU threads; default one per core")
    kernels: str = option("auto", SPEED, "NAME", "of the CPU: auto (C++), cpu or reference (plain torch)")
    cpu_activations: str = option("int8", SPEED, "TYPE", "with quantised weights: int8, or bf16 (exact, slower)")
    deterministic: bool = option(
        False, SPEED, "", "same seed, same tokens: whatever else runs, on any number of threads (CPU; slower)"
    )
    prefill_chunk: int = option(512, SPEED, "TOKENS", "most prompt tokens in one forward pass")
    stream_from: int | str = option("auto", SPEED, "N|never|auto", "copy experts to the GPU from N tokens a pass on")
    handoff: str = option("auto", SPEED, "WAY", "GPU to CPU in decode: auto, eager; graphs by memop, hostfunc, spin")
    speculate: str = option(
        "auto", SPEED, "WHAT", "guess tokens, verify several a pass: auto, off, lookup, mtp, or a draft MODEL"
    )
    mtp: Path | None = option(None, SPEED, "FILE", "that holds the layer for 'mtp'; default the model's own")
    draft_vocabulary: int | str = option("auto", SPEED, "auto|all|N", "guesses choose among the first N tokens")
    profile: Path | None = option(None, SPEED, "FILE", "what headrace measure found; default in the user's cache")
    no_measure: bool = option(False, SPEED, "", "measure nothing at the first start, and predict nothing then")
    trace: Path | None = option(None, SPEED, "FILE", "record which experts every token chose (docs/traces.md)")
    max_sequences: int = 16  # most that decode together; a command knows it from what it is asked
    prefill_stall_ms: float | None = None  # how long a prompt may hold up text; None: prompts as fast as they can

    def __post_init__(self) -> None:
        ranges.choice("kernels", self.kernels, ["auto", *BACKENDS])
        ranges.choice("dtype", self.dtype, list(DTYPES))
        ranges.choice("expert_format", self.expert_format, FORMAT_NAMES)
        ranges.choice("dense_format", self.dense_format, FORMAT_NAMES)
        ranges.choice("kv_format", self.kv_format, ["auto", *KV_FORMATS])
        ranges.choice("cpu_activations", self.cpu_activations, ["int8", "bf16"])
        ranges.between("experts_per_token", self.experts_per_token, 1)
        drafts_asked.check_run(self.speculate, self.mtp, self.draft_vocabulary, self.trace)
        ranges.threads(self.threads)
        self._check_placement()
        self._check_deterministic()
        ranges.between("max_context", self.max_context, 1)
        ranges.between("ram_limit", self.ram_limit, 0.001)
        if self.kv_disk is not None:
            parse_kv_disk(str(self.kv_disk))
        ranges.between("max_sequences", self.max_sequences, 1)
        ranges.between("prefill_stall_ms", self.prefill_stall_ms, 0)
        ranges.strings("ignore_config_keys", self.ignore_config_keys)
        ranges.strings("ignore_tensors", self.ignore_tensors)

    def _check_placement(self) -> None:
        if not DEVICE.fullmatch(self.device):
            raise OptionError(
                f"device is {brief(self.device)}; choose auto, cpu, cuda, cuda:N, simulated or simulated:KERNELS "
                f"(cpu, reference or gpu){placing.nearest(self.device, ('auto', 'cpu', 'cuda', 'simulated'))}"
            )
        asked = [name for name in ("cpu_moe", "n_cpu_moe", "placement") if getattr(self, name) not in (None, False)]
        if len(asked) > 1:
            raise OptionError(f"{' and '.join(asked)} both say where experts lie: give one of them")
        self._check_hosts(asked)
        ranges.choice("handoff", self.handoff, ["auto", *HANDOFFS])
        self._check_cpu(asked)
        ranges.between("vram_limit", self.vram_limit, 0.001)
        ranges.count_or("stream_from", self.stream_from, 1, ["auto", "never"])
        self._check_policy(asked)
        parse_limit(self.pinned_limit)
        if self.shares is not None and self.asked_placement.kind in ("cpu", "file"):
            raise OptionError(f"tensor_split deals out layers that a policy puts into VRAM; {asked[0]} does not")
        if self.shares is not None and self.asked_placement == Policy("layers"):
            raise OptionError("tensor_split deals out experts in VRAM, and cpu_moe keeps all in RAM: leave one out")

    def _check_deterministic(self) -> None:
        """What is promised of C++ kernels here is not of others: those of a GPU go by the tokens of a pass, as does
        what it computes of experts in RAM; torch's by shapes and threads, other machines by what they have."""
        if not self.deterministic:
            return
        if self.kernels == "reference":
            raise OptionError(
                "deterministic is not promised for kernels 'reference', whose sums are torch's: take 'cpu'"
            )
        if self.hosts is not None:
            raise OptionError("deterministic is not promised beside hosts, which compute as they can: leave one out")
        if self.wants_gpu or self.device not in ("auto", "cpu"):
            raise OptionError(
                "deterministic is not promised beside a GPU, where rounding goes by the tokens of a pass: "
                "take device 'cpu', or leave it out"
            )

    def _check_hosts(self, asked: list[str]) -> None:
        ranges.choice("wire", self.wire, list(WIRES))
        ranges.between("hosts", self.hosts, 1, 256)
        ranges.between("host_timeout", self.host_timeout, 0.5)
        ranges.between("host_wait", self.host_wait, 0)
        ranges.between("prefill_chunk", self.prefill_chunk, 1, math.inf if self.hosts is None else 1 << 16)
        ranges.choice("split_by", self.split_by, ["experts", "layers"])
        hosts_asked.check(self.hosts, self.asked_placement.kind, asked, self.policy is not None, self.replicate)
        others = {name: getattr(self, name) for name in ("kv_disk", "trace", "replicate", "mtp")}
        others["speculate 'mtp'"] = self.speculate if self.speculate == "mtp" else None
        hosts_asked.check_split(self.split_by, self.hosts, self.asked_placement.kind, others)

    def _check_policy(self, asked: list[str]) -> None:
        """A policy has all experts in RAM and one GPU, or on disk; what is about it needs one, or has `lru` on disk."""
        ranges.between("link_limit", self.link_limit, 1e-6)
        if self.link_limit is not None and not self.device.startswith("simulated"):
            raise OptionError("link_limit is about a GPU that is played: take device 'simulated', or leave it out")
        is_on_disk = self.asked_placement.kind == "disk"
        if self.policy is None and not is_on_disk:
            names = "expert_cache", "second_vram", "policy_trace"
            about = [name for name in names if getattr(self, name) is not None]
            about += ["seed_experts"] if self.seed_experts else []
            if about:
                raise OptionError(f"{about[0]} is about a policy: give one (policy 'lru'), or leave it out")
            return
        ranges.between("second_vram", self.second_vram, 0.001)
        if self.expert_cache not in (None, "auto"):
            parse_limit(self.expert_cache, "expert_cache")
        if asked and not is_on_disk and self.asked_placement != Policy("layers"):
            raise OptionError(f"policy and {asked[0]} both say where experts lie: give one of them")
        if self.tensor_split is not None:
            raise OptionError("policy has its cache on one GPU, and tensor_split deals out over two: leave one out")

    def _check_cpu(self, asked: list[str]) -> None:
        """Without a GPU nothing can be asked of one; and the other way round."""
        is_on_disk, is_on_cpu = self.asked_placement.kind == "disk", self.is_on_cpu
        others = [name for name in GPU_ALONE if getattr(self, name) is not None]
        more = "second_vram" if is_on_disk else "policy"  # a policy rules the RAM of experts on a disk, too
        others += [more] if getattr(self, more) is not None else []
        others += [name for name in ("stream_from", "handoff") if getattr(self, name) != "auto"]
        if is_on_cpu and (others or self.device not in ("auto", "cpu")):
            given = (others or [f"device {self.device!r}"])[0]
            raise hosts_asked.without_gpu(self.hosts, self.split_by, self.placement, self.device, given)
        copies = [name for name in ABOUT_COPIES if getattr(self, name) not in (None, "auto")]
        if is_on_disk and not is_on_cpu and copies:
            raise OptionError(f"{copies[0]} is about experts that go to a GPU, and they stay on a disk: leave it out")
        if self.hosts is not None and not is_on_cpu:
            hosts_asked.check_gpu(copies, self.tensor_split is not None, self.handoff in GRAPHED)
        if self.device == "cpu" and not is_on_cpu and (asked or others):
            raise OptionError(f"{(asked or others)[0]} is about a GPU, and device is 'cpu': leave one out")

    @property
    def asked_placement(self) -> Policy:
        """Which experts are to lie where, beside a GPU; "auto" if nothing was said."""
        if self.placement is not None:
            return placing.parse(str(self.placement))
        if self.n_cpu_moe is not None:
            return placing.layers_in_ram(self.n_cpu_moe)
        if self.cpu_moe:
            return Policy("layers")
        return Policy("auto" if self.hosts is None else "hosts")

    @property
    def is_on_cpu(self) -> bool:
        """Whether no GPU is used: experts in RAM, in files, or on other machines."""
        is_said = self.device.startswith(("cuda", "simulated")) and self.split_by != "layers"  # which leaves out a GPU
        is_elsewhere = self.asked_placement.kind == "disk" or self.hosts is not None
        return self.asked_placement.kind == "cpu" or (is_elsewhere and not is_said)

    @property
    def ram_bytes(self) -> int | None:
        """ram_limit in bytes; None: what the system says is free."""
        return None if self.ram_limit is None else int(self.ram_limit * 1e9)

    @property
    def has_two_gpus(self) -> bool:
        """Whether what is asked for may use a second GPU."""
        is_file = self.asked_placement.kind == "file" and self.hosts is None
        return self.shares is not None or self.second_vram is not None or is_file

    @property
    def shares(self) -> tuple[float, float] | None:
        """The two shares of tensor_split."""
        if self.tensor_split is None:
            return None
        words = str(self.tensor_split).split(",")
        try:
            first, second = (float(word) for word in words)
        except ValueError:
            first = second = -1.0
        if not (first >= 0 and second >= 0 and 0 < first + second < math.inf):
            raise OptionError(f"tensor_split is {self.tensor_split!r}; give two shares from 0 on, such as 3,2 or 0,1")
        return first, second

    @property
    def wants_gpu(self) -> bool:
        """Whether an option can only be meant for a GPU."""
        return bool(self.gpu_option)

    @property
    def gpu_option(self) -> str:
        """The first option that can only be meant for a GPU, as "placement 'gpu'"; "" where there is none."""
        names = ("cpu_moe", "n_cpu_moe", "placement", "policy", *GPU_ALONE)
        said = [name for name in names if getattr(self, name) not in (None, False)]
        said += [name for name in ("stream_from", "handoff") if getattr(self, name) != "auto"]
        value = getattr(self, said[0]) if said else None
        return "" if self.is_on_cpu or not said else said[0] if value is True else f"{said[0]} {value!r}"

    @property
    def wants_graphs(self) -> bool:
        """Whether decode steps are to be graphs."""
        return self.handoff in GRAPHED

    def cache_bytes(self, experts: int) -> int | None:
        """expert_cache in bytes, of a model whose experts take so many; None: what is left."""
        if self.expert_cache in (None, "auto"):
            return None
        number, unit = parse_limit(self.expert_cache, "expert_cache")
        return min(experts, int(number / 100 * experts if unit == "%" else number * 1e9))

    @property
    def plain_format(self) -> str:
        """The format that "native" stands for: that of `dtype`, or the checkpoint's own."""
        return DTYPES[self.dtype] or "native"


@by_meaning
@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How tokens are chosen for one request; each field says what it is.

    repetition_penalty divides the positive (multiplies the negative) logits of tokens seen in prompt or completion;
    presence_penalty is subtracted from the logits of tokens in the completion, frequency_penalty as often as they are
    in it. logprobs are those of the model: before penalties, temperature and bias. Strings of stop are not part of the
    completion. json_schema: as JSON text, or as a dict; grammar: a text with "::=" is llama.cpp's GBNF, one with a rule
    `start:` is Lark, any other one is a regular expression of the whole answer. Raises OptionError for a value outside
    its range.
    """

    max_new_tokens: int = option(256, COMMON, "TOKENS", "most to write; -1: what the context holds", short="-n")
    temperature: float = option(0.0, COMMON, "X", "divides the logits; 0: always the likeliest token")
    top_k: int = option(0, SAMPLING, "K", "draw from the K likeliest tokens; 0 or -1: off")
    top_p: float = option(1.0, SAMPLING, "P", "draw from the likeliest that reach the sum P; 1: off, 0: greedy")
    min_p: float = option(0.0, SAMPLING, "P", "drop tokens below this share of the likeliest; 0: off")
    repetition_penalty: float = option(1.0, SAMPLING, "X", "divides the logits of tokens seen; 1: off")
    presence_penalty: float = option(0.0, SAMPLING, "X", "taken off the logits of tokens written; 0: off")
    frequency_penalty: float = option(0.0, SAMPLING, "X", "taken off them for each time they were written; 0: off")
    seed: int | None = option(None, SAMPLING, "N", "of the draws; default a new one each time")
    stop: tuple[str, ...] = option((), SAMPLING, "TEXT", "ends the completion")
    stop_token_ids: tuple[int, ...] = ()
    include_stop_str_in_output: bool = False  # text ends with the stop string that was found
    ignore_eos: bool = option(False, SAMPLING, "", "go on past end tokens")
    json_schema: str | Mapping[str, Any] | None = option(
        None, SAMPLING, "FILE|TEXT", "of the JSON that the answer is to be", read=file_or_text
    )
    grammar: str | None = option(
        None, SAMPLING, "FILE|TEXT", "that the answer follows: a regular expression, Lark or GBNF", read=file_or_text
    )
    min_tokens: int = 0  # no end token is drawn before
    logit_bias: Mapping[int, float] | None = None  # added to the logits of tokens, by id
    logprobs: int | None = None  # how many of the likeliest tokens come with their probabilities; None: none is known

    def __post_init__(self) -> None:
        if self.json_schema is not None and self.grammar is not None:
            raise OptionError("json_schema and grammar both say what form the answer has: give one of them")
        ranges.strings("stop", self.stop)
        for token in self.stop_token_ids:
            ranges.between("stop_token_ids", token, 0)
        ranges.between("max_new_tokens", None if self.max_new_tokens == TO_THE_END else self.max_new_tokens, 1)
        ranges.between("temperature", self.temperature, 0)
        ranges.between("top_k", self.top_k, -1)
        object.__setattr__(self, "top_k", max(0, self.top_k))
        ranges.between("top_p", self.top_p, 0, 1)
        ranges.between("min_p", self.min_p, 0, 1)
        ranges.between("repetition_penalty", self.repetition_penalty, 1e-6)
        ranges.between("presence_penalty", self.presence_penalty, -1e9)
        ranges.between("frequency_penalty", self.frequency_penalty, -1e9)
        ranges.between("min_tokens", self.min_tokens, 0)
        ranges.between("logprobs", self.logprobs, 0, MOST_LOGPROBS)
        if self.seed is not None and not -(2**63) <= self.seed < 2**64:
            raise OptionError(f"seed is {brief(self.seed)}; it must be a whole number of at most 64 bits")

    @property
    def is_greedy(self) -> bool:
        """Whether the likeliest token is taken, and nothing drawn."""
        return self.temperature == 0 or self.top_p == 0

    @property
    def is_plain_greedy(self) -> bool:
        """Greedy with no penalty: the argmax of the logits as they are."""
        changed = self.presence_penalty or self.frequency_penalty or self.logit_bias or self.min_tokens
        return self.is_greedy and self.repetition_penalty == 1 and not changed
