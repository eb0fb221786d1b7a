"""What a stranger can hand to headrace, each as a function of bytes: it reads them, or refuses them by an error meant
for users. Anything else that comes out is a fault. `tools/fuzz.py` looks for faults; tests/mutations replays what it
found.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests" / part) for part in ("mutations", "gguf", "fakes", "helpers")]

import fuzz_hosts  # noqa: E402
from made_headers import GgufPieces, spoiled_gguf, spoiled_safetensors  # noqa: E402
from released import attention, biased, count, kinds, mixers, recurrent, warm  # noqa: E402

from headrace.engine.bandwidth_model import machine_file  # noqa: E402
from headrace.engine.bandwidth_model.profile import Profile, hardware_key, load_profile  # noqa: E402
from headrace.engine.config import SamplingParams  # noqa: E402
from headrace.engine.placement import placement_file  # noqa: E402
from headrace.engine.placement.placement import Tier  # noqa: E402
from headrace.engine.server.wire import chat, completions, errors, fields, messages, responses  # noqa: E402
from headrace.engine.terminal.trace import make_command  # noqa: E402
from headrace.engine.traces import reader  # noqa: E402
from headrace.errors import HeadraceError  # noqa: E402
from headrace.kernels.context import Context  # noqa: E402
from headrace.loaders import model_source  # noqa: E402
from headrace.loaders.families import spec_of  # noqa: E402
from headrace.loaders.families.config_reader import ConfigReader  # noqa: E402
from headrace.loaders.files import gguf_header, headers, weight_files  # noqa: E402
from headrace.loaders.tokens.chat_template import ChatTemplate  # noqa: E402
from headrace.loaders.tokens.tokenizer import Tokenizer  # noqa: E402
from headrace.loaders.weights.chosen_formats import LoadOptions  # noqa: E402
from headrace.loaders.weights.imagined import imagine  # noqa: E402

PLACE = Path(mkdtemp(prefix="headrace-fuzz-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
REFUSED = (HeadraceError, errors.ApiError)


@dataclass(frozen=True)
class Target:
    """run: reads bytes, raises one of `REFUSED` for what it refuses. seeds: bytes that it takes, to begin with. words:
    what is likely to matter somewhere within."""

    run: Callable[[bytes], object]
    seeds: Callable[[], list[bytes]]
    words: tuple[str, ...] = ()


def file_of(name: str, data: bytes) -> Path:
    path = PLACE / name
    path.write_bytes(data)
    return path


def gguf(data: bytes) -> None:
    """Header, then tokenizer, template and sizes of what could be read."""
    found = gguf_header.read(lambda at, n: data[at : at + n], "m.gguf", len(data))
    path = file_of("m.gguf", data)
    with contextlib.suppress(*REFUSED):
        _there_and_back(Tokenizer.of_gguf(found.metadata, "m.gguf"))
    imagine(str(path), LoadOptions())


def safetensors(data: bytes) -> None:
    headers.read(lambda at, n: data[at : at + n], "m.safetensors", size=len(data))


def index(data: bytes) -> None:
    """The index, and the folder whose files it names, of which none is there."""
    folder = PLACE / "sharded"
    folder.mkdir(exist_ok=True)
    headers.read_index(file_of("sharded/model.safetensors.index.json", data))
    weight_files.find(folder)


def config(data: bytes) -> None:
    """As a plan and as a run read it."""
    path = file_of("config.json", data)
    with contextlib.suppress(*REFUSED):
        model_source.find(str(path))
    try:
        values = json.loads(data)
    except (ValueError, RecursionError):
        return
    if isinstance(values, dict):
        spec_of(ConfigReader(values, "config.json"))


def tokenizer(data: bytes) -> None:
    file_of("tokenizer.json", data)
    _there_and_back(Tokenizer.load(PLACE))


def _there_and_back(found: Tokenizer) -> None:
    """Text to tokens, and these to text at once and one by one."""
    ids = found.encode("In the beginning, é\n")
    found.decode(ids)
    stream = found.stream()
    for one in ids:
        stream.push(one)
    stream.finish()


CHAT: list[dict[str, Any]] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "Hi", "tool_calls": [
        {"id": "a", "type": "function", "function": {"name": "look", "arguments": '{"at": 1}'}}]},
    {"role": "tool", "content": "nothing", "tool_call_id": "a"},
]  # fmt: skip


def template(data: bytes) -> None:
    text = data.decode("utf-8", "replace")
    tokens = {"bos_token": "<s>", "eos_token": "</s>"}
    ChatTemplate(text=text, tokens=tokens, source="a stranger").render(CHAT, True)


def placement(data: bytes) -> None:
    placement_file.read(file_of("placement.json", data), [0, 8, 8, 8], tuple(Tier))


def machine(data: bytes) -> None:
    machine_file.read_file(file_of("machine.json", data))


def profile(data: bytes) -> None:
    load_profile(Context(), file_of("profile.json", data))


def trace(data: bytes) -> None:
    found = reader.read(file_of("run.trace", data))
    assert found.ids.shape == found.weights.shape


def request(data: bytes) -> None:
    """The first byte chooses the API."""
    kinds: tuple[tuple[Any, Any, Any], ...] = (
        (chat.ChatRequest, chat.prompt_of, chat.params_of),
        (completions.CompletionRequest, completions.prompts_of, completions.params_of),
        (messages.MessagesRequest, messages.prompt_of, messages.params_of),
        (responses.ResponsesRequest, responses.prompt_of, responses.params_of),
    )
    kind, prompt_of, params_of = kinds[data[0] % len(kinds) if data else 0]
    asked = fields.read(data[1:], kind)
    fields.choices(asked)
    prompt_of(asked)
    params_of(asked, SamplingParams())


def _json(*values: Any) -> list[bytes]:
    return [json.dumps(value).encode() for value in values]


REQUESTS = (
    b"\0" + json.dumps({"model": "m", "messages": CHAT, "max_tokens": 5, "temperature": 0.5, "stop": ["a"], "n": 2,
                        "stream": True, "stream_options": {"include_usage": True}, "logit_bias": {"1": 2.0}}).encode(),
    b"\1" + json.dumps({"prompt": ["a", "b"], "max_tokens": 4, "logprobs": 2, "echo": False, "seed": 3}).encode(),
    b"\2" + json.dumps({"model": "m", "max_tokens": 9, "system": "x", "messages": [
        {"role": "user", "content": [{"type": "text", "text": "hi"}]},
        {"role": "assistant", "content": [{"type": "tool_use", "id": "t", "name": "f", "input": {"a": 1}}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": "ok"}]}]}).encode(),
    b"\3" + json.dumps({"input": [{"role": "user", "content": "hi"}, {"type": "function_call", "call_id": "c",
                        "name": "f", "arguments": "{}"}, {"type": "function_call_output", "call_id": "c",
                        "output": "1"}], "instructions": "x", "max_output_tokens": 7}).encode(),
)  # fmt: skip
MACHINE = {
    "name": "my box", "cpu": {"name": "EPYC", "memory_gb": 512, "channels": 8, "mts": 3200, "cores": 32},
    "gpus": [{"name": "RTX 3090", "memory_gb": 24, "bandwidth_gbs": 936, "bf16_tflops": 71, "pcie": "4.0x16"}],
}  # fmt: skip
PLACEMENT = {
    "version": 1, "default": "cpu",
    "rules": [{"layers": "1-2", "tier": "gpu0"}, {"layers": [3, "1-2"], "experts": ["0-4", 7], "tier": "gpu0"}],
}  # fmt: skip
TEMPLATES = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}a:{% endif %}",
    "{%- set ns = namespace(x='a') %}{% for i in range(3) %}{% set ns.x = ns.x ~ 'b' %}{% endfor %}{{ ns.x | upper }}",
    "{% macro f(a) %}{{ a | tojson }}{% endmacro %}{{ f(messages[0]) }}{{ messages | map(attribute='role') | join }}",
)
TEMPLATE_WORDS = (
    "{{", "}}", "{%", "%}", "{%-", "-%}", " for ", " in ", "messages", "endfor", "endif", "if ", "set ", "namespace(",
    ".__class__", "|join", "|replace(", "|format(", "|center(", "*", "**", "~", "range(", "loop.index0", "macro ",
    "endmacro", "|attr('", "|map(", "|tojson", "['role']", "raise_exception(", "strftime_now(", "dict(", "999999999",
    "lipsum(", "cycler(", "joiner(", "|batch(", "|slice(", "|indent(", "|truncate(", "|sort", "|groupby(", "|sum(",
)  # fmt: skip

TOKENIZER_WORDS = (
    "Sequence", "Replace", "Regex", "String", "Split", "Strip", "Precompiled", "Metaspace", "ByteLevel", "Digits",
    "FixedLength", "Prepend", "WordPiece", "WordLevel", "Unigram", "Fuse", "CTC", "BPEDecoder", "TemplateProcessing",
    "BertProcessing", "RobertaProcessing", "null", "unk_token", "unk_id", "single_word", "content", "length", "(?:)",
)  # fmt: skip


def _configs() -> list[bytes]:
    """Of every family, without what a family does not read: shorter seeds are mutated where it matters."""
    rooms = (attention, biased, count, kinds, mixers, recurrent, warm)
    found = [
        value for room in rooms for value in vars(room).values() if isinstance(value, dict) and "model_type" in value
    ]
    return _json(*found)


def _headers() -> list[bytes]:
    tensors = {
        "__metadata__": {"format": "pt"},
        "a.weight": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
        "b.weight": {"dtype": "BF16", "shape": [4], "data_offsets": [24, 32]},
    }
    return [spoiled_safetensors(tensors, [], 32)]


def _traces() -> list[bytes]:
    path = PLACE / "seed.trace"
    make_command.run("demo", path, kind="topics", tokens=40, seed=0, config={})
    return [path.read_bytes()]


def _profiles() -> list[bytes]:
    values = dict(stream=1e10, linear={"bf16": 1e9}, experts={"bf16": 1e9}, attention={"1": 1e9, "8": 1e9, "512": 1e9})
    found = Profile(
        key=hardware_key(Context()), cpu="a", isa="avx2", threads=2, memory_bytes=1 << 34, date="2026-01-01", **values,
        batch={"bf16": {"4": 1e9}}, crowd={"bf16": {"4": 1e9}},
    )  # fmt: skip
    return _json(asdict(found))


def _tokenizers() -> list[bytes]:
    """The demo's, and a few small ones, of which mutations meet more than the vocabulary."""
    model = {"type": "BPE", "vocab": {"a": 0, "b": 1, "n": 2, "ab": 3}, "merges": ["a b"]}
    scored = {"type": "Unigram", "unk_id": 0, "vocab": [["a", -1.0], ["n", -2.0]]}
    bare: dict[str, Any] = dict.fromkeys(
        ("truncation", "padding", "normalizer", "pre_tokenizer", "post_processor", "decoder")
    )
    replaced = {"type": "Replace", "pattern": {"String": "b"}, "content": "a"}
    split = {"type": "Split", "pattern": {"Regex": "n+"}, "behavior": "Isolated", "invert": False}
    begin, rest = ({kind: {"id": name, "type_id": 0}} for kind, name in (("SpecialToken", "n"), ("Sequence", "A")))
    special = {"n": {"id": "n", "ids": [2], "tokens": ["n"]}}
    begins = {"type": "TemplateProcessing", "pair": [], "special_tokens": special, "single": [begin, rest]}
    made = [
        {"normalizer": {"type": "Sequence", "normalizers": [replaced, {"type": "NFC"}]}},
        {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAAAAAA"}, "model": scored},
        {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [split]}, "decoder": {"type": "ByteLevel"}},
        {"post_processor": begins, "decoder": {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, replaced]}},
    ]
    bare |= {"version": "1.0", "added_tokens": [], "model": model}
    return [(ROOT / "demo/model/tokenizer.json").read_bytes(), *_json(*({**bare, **one} for one in made))]


def _ggufs() -> list[bytes]:
    """Of all versions, and with the other kinds of tokenizers."""
    scored = [spoiled_gguf(GgufPieces(3, kind=kind), []) for kind in ("llama", "t5", "gemma4")]
    return [spoiled_gguf(GgufPieces(version), []) for version in (1, 2, 3)] + scored


TARGETS: dict[str, Target] = {
    "gguf": Target(gguf, _ggufs, ("tokenizer.ggml.", "qwen3moe.")),
    "safetensors": Target(safetensors, _headers, ("data_offsets", "F32")),
    "index": Target(index, lambda: _json({"metadata": {}, "weight_map": {"a.weight": "model-1.safetensors"}})),
    "config": Target(config, _configs),
    "tokenizer": Target(tokenizer, _tokenizers, TOKENIZER_WORDS),
    "template": Target(template, lambda: [t.encode() for t in TEMPLATES], TEMPLATE_WORDS),
    "placement": Target(placement, lambda: _json(PLACEMENT)),
    "machine": Target(machine, lambda: _json(MACHINE)),
    "profile": Target(profile, _profiles),
    "trace": Target(trace, _traces),
    "host": Target(fuzz_hosts.run, fuzz_hosts.seeds, ("HRXH", "proof", "experts", "limit", "\\ud800")),
    "request": Target(request, lambda: list(REQUESTS)),
}
