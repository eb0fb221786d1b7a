"""Words that people know from other programs, and what they are here: llama.cpp, Ollama and vLLM.

A command line that cannot be read is looked through for them (`options.py`), so that its error says headrace's word.
A remedy counts only where every option that it names is one of the command's.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator

MODEL_FIRST = "the model stands first, without it"
FILLED = "the GPU is filled by itself"
ALWAYS = "always so, leave it out"
# The first remedy counts whose options a command has.
OPTIONS: dict[str, tuple[str, ...]] = {
    "-m --model": (MODEL_FIRST,),
    "-hf -hfr --hf-repo": (f"{MODEL_FIRST}: org/name, or org/name:Q4_K_M",),
    "-p --prompt": ("the prompt stands behind the model",),
    "-f --file": ("- as the prompt and < FILE read one, --chat as a question", "the file stands behind the model"),
    "-n --predict --n-predict --max-tokens": ("--max-new-tokens",),
    "-c --ctx-size --n-ctx --max-model-len --num-ctx": ("--max-context", "--context"),
    "-t --threads -tb --threads-batch": ("--threads",),
    "-ngl --gpu-layers --n-gpu-layers": (f"{FILLED}, or --n-cpu-moe N", f"{FILLED}, or --placement"),
    "-ot --override-tensor": ("--placement, --cpu-moe or --n-cpu-moe N", "--placement"),
    "-ncmoe": ("--n-cpu-moe", "--placement n-cpu-moe=N"),
    "-cmoe": ("--cpu-moe", "--placement cpu-moe"),
    "-ts": ("--tensor-split",),
    "-dev -mg --main-gpu": ("--device cuda:N",),
    "--gpu-memory-utilization": ("--vram-limit GB",),
    "-ub --ubatch-size -b --batch-size --max-num-batched-tokens": ("--prefill-chunk",),
    "-np --parallel --max-num-seqs": ("--parallel",),
    "-ctk -ctv --cache-type-k --cache-type-v --kv-cache-dtype": ("--kv-format",),
    "-q --quantization --load-format": ("--expert-format",),
    "--temp": ("--temperature",),
    "-s": ("--seed",),
    "--repeat-penalty": ("--repetition-penalty",),
    "-cnv --conversation -if --interactive-first": ("-i (--interactive)",),
    "-no-cnv --no-conversation": ("the text is completed as it is, unless --chat or -i is given",),
    "-sys --system-prompt": ("--system",),
    "-r --reverse-prompt": ("--stop",),
    "-j": ("--json-schema",),
    "--grammar-file": ("--grammar",),
    "--chat-template-file": ("--chat-template",),
    "--chat-template-kwargs": ("--template-arg NAME=VALUE",),
    "-md --model-draft --spec-draft-model --speculative-config": ("--speculate MODEL",),
    "-a --alias --served-model-name": ("--served-name",),
    "-mm --mmproj --image": ("of models that see, the text part runs: leave it out",),
    "--lora --lora-scaled --enable-lora": ("adapters are not supported: merge it into the model first",),
    "--rpc": ("--hosts N (docs/hosts.md)",),
    "-fa --flash-attn --jinja --no-mmap --no-warmup -cb --cont-batching --enable-prefix-caching --trust-remote-code": (
        ALWAYS,
    ),
    "--mlock": ("weights are read into RAM and stay there, leave it out",),
    "--numa": ("threads and memory are placed by node, leave it out",),
    "--chunks": ("the whole file is read: give a shorter one",),
    "--no-display-prompt --log-disable --no-perf -v --verbose": ("text goes to standard output alone: 2>/dev/null",),
}  # fmt: skip
COMMANDS = {
    "run": "headrace generate MODEL -i", "chat": "headrace generate MODEL -i",
    "complete": 'headrace generate MODEL "text"', "llama-cli": 'headrace generate MODEL "text", or with -i',
    "pull": "headrace generate org/name, which fetches it", "show": "headrace inspect MODEL",
    "info": "headrace inspect MODEL", "llama-server": "headrace serve MODEL", "server": "headrace serve MODEL",
    "quantize": "headrace convert MODEL DIRECTORY", "llama-quantize": "headrace convert MODEL DIRECTORY",
    "llama-bench": "headrace bench MODEL",
    "llama-perplexity": "headrace perplexity MODEL FILE", "benchmark": "headrace bench MODEL",
    "calibrate": "headrace measure",
}  # fmt: skip
HERE = {word: remedies for words, remedies in OPTIONS.items() for word in words.split()}
_OPTION = re.compile(r"--[a-z-]+")


def said_here(arguments: Iterable[str], own: Collection[str]) -> str:
    """What other programs' words among arguments are here, "" where there are none. own: a command's options."""
    found = dict.fromkeys(f"{word}: {remedy}" for word, remedy in _known(arguments, own))
    return f"other programs' options, and what they are here: {'; '.join(found)}" if found else ""


def _known(arguments: Iterable[str], own: Collection[str]) -> Iterator[tuple[str, str]]:
    for argument in arguments:
        if argument == "--":
            return
        word = argument.split("=")[0]
        if word not in own:
            remedies = (one for one in HERE.get(word, ()) if {*_OPTION.findall(one)} <= {*own})
            yield from ((word, remedy) for remedy in [*remedies][:1])


def command_here(word: str, is_model: bool) -> str:
    """What is said of a command that there is not, "" where nobody knows. is_model: whether it can be a model."""
    if is_model or word.startswith("-"):
        return f'a command comes first, as in headrace generate {word if is_model else "MODEL"} "text"'
    return f"there is no command {word}, here it is {COMMANDS[word]}" if word in COMMANDS else ""
