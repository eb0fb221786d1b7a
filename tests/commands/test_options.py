"""Which options every command takes, and that what was said reaches the model."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import click
import pytest

from headrace import EngineConfig, SamplingParams, cli
from headrace.engine import llm
from headrace.engine.core.weight_source import CheckpointFiles
from headrace.engine.terminal import generate_command
from headrace.engine.terminal.bench import bench_command
from headrace.engine.terminal.command_line.elsewhere import COMMANDS as COMMANDS_ELSEWHERE
from headrace.engine.terminal.command_line.elsewhere import HERE
from headrace.engine.terminal.command_line.options import takes
from headrace.engine.terminal.doctor import doctor_command

# (exit status, standard output, standard error) of a command
Run = Callable[..., tuple[int, str, str]]

CACHED = {"--policy": None, "--expert-cache": None, "--second-vram": None, "--policy-trace": None, "--link-limit": None,
          "--seed-experts": False}  # fmt: skip
HOSTS = {"--hosts": None, "--split-by": "experts", "--listen": "127.0.0.1", "--host-token": None, "--wire": "f32",
         "--replicate": None, "--host-timeout": 2.0, "--host-wait": 120.0, "--i-know": False}  # fmt: skip
# By command its options, with the value of one that is left out. Scripts rely on them: an option may come, none may go.
COMMANDS: dict[str, dict[str, Any]] = {
    "generate": {
        "--interactive -i": False, "--chat": False, "--system": None, "--messages": None, "--tools": None,
        "--template-arg": None, "--chat-template": None, "--dialect": None,
        "--max-new-tokens -n": None,  # 256, of a conversation -1
        "--temperature": 0.0, "--top-k": 0, "--top-p": 1.0, "--min-p": 0.0, "--repetition-penalty": 1.0,
        "--presence-penalty": 0.0, "--frequency-penalty": 0.0, "--seed": None, "--stop": None, "--ignore-eos": False,
        "--json-schema": None, "--grammar": None, "--ledger": None, "--json": False,
        "--expert-format": "native", "--dense-format": "native", "--dtype": "auto", "--kernels": "auto",
        "--experts-per-token": None, "--deterministic": False,
        "--cpu-activations": "int8", "--threads": None, "--device": "auto", "--cpu-moe": False, "--n-cpu-moe": None,
        "--placement": None, "--tensor-split": None, "--vram-limit": None, "--stream-from": "auto", **CACHED, **HOSTS,
        "--pinned-limit": None, "--handoff": "auto", "--max-context": None, "--prefill-chunk": 512, "--revision": None,
        "--offline": False, "--cache-dir": None, "--ignore-config-keys": "", "--ignore-tensors": "", "--profile": None,
        "--no-measure": False, "--ram-limit": None, "--kv-format": "auto", "--kv-disk": None, "--trace": None,
        "--speculate": "auto", "--mtp": None, "--draft-vocabulary": "auto",
    },
    "serve": {
        "--host": "127.0.0.1", "--port": 8000, "--parallel": 8, "--api-key": None, "--api-key-file": None,
        "--no-auth": False, "--served-name": None, "--strict-model": False, "--cors-origin": None, "--max-queue": 64,
        "--no-page": False, "--no-keep-alive": False, "--dialect": None, "--chat-template": None,
        "--prefill-stall-ms": 1000.0,
        "--expert-format": "native", "--dense-format": "native", "--dtype": "auto", "--kernels": "auto",
        "--experts-per-token": None, "--deterministic": False,
        "--cpu-activations": "int8", "--threads": None, "--device": "auto", "--cpu-moe": False, "--n-cpu-moe": None,
        "--placement": None, "--tensor-split": None, "--vram-limit": None, "--stream-from": "auto", **CACHED, **HOSTS,
        "--pinned-limit": None, "--handoff": "auto", "--max-context": None, "--prefill-chunk": 512, "--revision": None,
        "--offline": False, "--cache-dir": None, "--ignore-config-keys": "", "--ignore-tensors": "", "--profile": None,
        "--no-measure": False, "--ram-limit": None, "--kv-format": "auto", "--kv-disk": None, "--trace": None,
        "--speculate": "auto", "--mtp": None, "--draft-vocabulary": "auto",
    },
    "host": {
        "--join": None, "--name": None, "--host-token": None, "--i-know": False, "--threads": None, "--ram-limit": None,
        "--revision": None, "--offline": False, "--cache-dir": None,
    },
    "convert": {
        "--expert-format": "q4_0", "--dense-format": "native", "--dtype": "auto", "--revision": None,
        "--offline": False, "--cache-dir": None, "--ignore-config-keys": "", "--ignore-tensors": "",
    },
    "perplexity": {
        "--window": 512, "--stride": None, "--sweep": None, "--rounds": 1, "--plot": None, "--json": False,
        "--expert-format": "native", "--dense-format": "native", "--dtype": "auto", "--experts-per-token": None,
        "--deterministic": False,
        "--kernels": "auto", "--cpu-activations": "int8", "--threads": None, "--device": "auto", "--cpu-moe": False,
        "--n-cpu-moe": None, "--placement": None, "--tensor-split": None, "--vram-limit": None, "--stream-from": "auto",
        **CACHED, **HOSTS, "--pinned-limit": None, "--handoff": "auto", "--revision": None, "--offline": False,
        "--cache-dir": None, "--ignore-config-keys": "", "--ignore-tensors": "", "--profile": None,
        "--no-measure": False, "--ram-limit": None, "--kv-format": "auto",
    },
    "measure": {
        "--threads": None, "--profile": None, "--rounds": 25, "--quick": False, "--formats": "",
        "--json": False,
    },
    "bench": {
        "--prompt -p": "512", "--new -n": "128", "--batch -b": "1", "--depth -d": "0", "--rounds -r": 5,
        "--placement": "cpu", "--device": "auto", "--tensor-split": None, "--vram-limit": None, "--stream-from": "auto",
        **CACHED, **HOSTS, "--pinned-limit": None, "--handoff": "auto", "--random-weights": False, "--layers": None,
        "--json": None, "--compare": None, "--plot": None, "--from": None,
        "--expert-format": "native", "--dense-format": "native", "--dtype": "auto", "--experts-per-token": None,
        "--deterministic": False,
        "--cpu-activations": "int8", "--threads": None, "--prefill-chunk": 512, "--revision": None, "--offline": False,
        "--cache-dir": None, "--ignore-config-keys": "", "--ignore-tensors": "", "--profile": None,
        "--no-measure": False, "--ram-limit": None, "--kv-format": "auto", "--trace": None,
        "--speculate": "off", "--mtp": None, "--draft-vocabulary": "auto",
    },
    "doctor": {
        "--random-weights": False, "--expert-format": "native", "--dense-format": "native", "--threads": None,
        "--profile": None,
        "--revision": None, "--offline": False, "--cache-dir": None,
    },
    "plan": {
        "--hardware": None, "--quant": "native", "--context": None, "--batch": 1, "--prompt": 512,
        "--kv-format": "bf16",
        "--placement": "auto", "--model": "full", "--experts-per-token": None, "--trace": None, "--plot": None,
        "--article": False, "--json": False, "--hosts": None, "--wire": "f32", "--speculate": "auto",
        "--mtp": None, "--draft-vocabulary": "auto",
        "--revision": None, "--offline": False, "--cache-dir": None,
    },
    "inspect": {"--json": False, "--revision": None, "--offline": False, "--cache-dir": None},
    "trace record": {
        "--prompts": None, "--output -o": None, "--store": False, "--max-new-tokens -n": 256,
        "--temperature": 0.0, "--top-k": 0, "--top-p": 1.0, "--min-p": 0.0, "--repetition-penalty": 1.0,
        "--presence-penalty": 0.0, "--frequency-penalty": 0.0, "--seed": None, "--stop": None, "--ignore-eos": False,
        "--json-schema": None, "--grammar": None,
        "--expert-format": "native", "--dense-format": "native", "--dtype": "auto", "--kernels": "auto",
        "--experts-per-token": None, "--deterministic": False,
        "--cpu-activations": "int8", "--threads": None, "--device": "auto", "--cpu-moe": False, "--n-cpu-moe": None,
        "--placement": None, "--tensor-split": None, "--vram-limit": None, "--stream-from": "auto", **CACHED, **HOSTS,
        "--pinned-limit": None, "--handoff": "auto", "--max-context": None, "--prefill-chunk": 512, "--revision": None,
        "--offline": False, "--cache-dir": None, "--ignore-config-keys": "", "--ignore-tensors": "", "--profile": None,
        "--no-measure": False, "--ram-limit": None, "--kv-format": "auto",
    },
    "trace stats": {"--json": False, "--plot": None},
    "trace replay": {
        "--policy": None, "--vram": None, "--hardware": None, "--second-vram": None, "--dense": "0", "--model": "full",
        "--graphs": False, "--seed-experts": False, "--hold-out": False, "--with-prompts": False, "--json": False,
        "--plot": None,
    },
    "trace list": {"--json": False},
    "trace make": {
        "--output -o": None, "--kind": "topics", "--tokens": 1000, "--seed": 0, "--expert-format": "native",
        "--revision": None, "--offline": False, "--cache-dir": None,
    },
}  # fmt: skip
ARGUMENTS = {
    "generate": ["model", "prompts"],
    "serve": ["model"],
    "host": ["model"],
    "convert": ["model", "directory"],
    "perplexity": ["model", "file"],
    "measure": [],
    "bench": ["model"],
    "doctor": ["model"],
    "plan": ["model"],
    "inspect": ["model"],
    "trace record": ["model"],
    "trace stats": ["file"],
    "trace replay": ["file"],
    "trace list": [],
    "trace make": ["model"],
}


def commands(group: click.Group = cli.app, start: str = "") -> dict[str, click.Command]:
    """All commands by their words, those of groups too."""
    found: dict[str, click.Command] = {}
    for name, one in group.commands.items():
        found |= commands(one, f"{start}{name} ") if isinstance(one, click.Group) else {start + name: one}
    return found


def parameters(command: str, kind: str) -> list[Any]:
    """The options or the arguments of a command, as click made them."""
    return [one for one in commands()[command].params if one.param_type_name == kind]


def test_every_command_is_listed_here() -> None:
    assert set(commands()) == set(COMMANDS) == set(ARGUMENTS)


@pytest.mark.parametrize("command", COMMANDS)
def test_no_option_is_lost_and_none_changes(command: str) -> None:
    context = click.Context(commands()[command])
    options = parameters(command, "option")
    found = {" ".join(sorted(one.opts)): None if one.required else one.get_default(context) for one in options}
    assert found == COMMANDS[command]
    assert [one.name for one in parameters(command, "argument")] == ARGUMENTS[command]


@pytest.mark.parametrize("command", COMMANDS)
def test_no_option_is_hidden_and_each_is_explained(command: str) -> None:
    for one in parameters(command, "option"):
        assert not one.hidden
        assert one.help
        assert one.secondary_opts == [], "a flag has no --no- twin"


# ---- help


def panels(text: str) -> dict[str, list[str]]:
    """By panel of a help text the long names of its options."""
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        if line.endswith(":") and not line.startswith(" "):
            found[line[:-1]] = names = []
        elif option := re.match(r"  (?:-\w, )?(--[\w-]+)", line):
            names.append(option[1])
    return found


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("command", COMMANDS)
def test_help_says_every_option_in_full(command: str, width: int, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    status, out, _ = run(*command.split(), "--help")
    assert status == 0
    assert "..." not in out.replace(",...", "").replace("]...", "")
    shown = panels(out)
    expected = {"--help", *(names.split()[0] for names in COMMANDS[command])}
    assert {name for panel in shown.values() for name in panel} == expected
    assert len(shown["Options"]) <= 12, "a newcomer reads these"
    assert all(len(names) > 1 for title, names in shown.items() if title not in ("Arguments", "Options"))


def test_help_does_not_wait_for_torch() -> None:
    code = "import sys; from headrace import cli; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_field_that_is_no_option_is_found_before_any_command_runs() -> None:
    with pytest.raises(AssertionError, match="EngineConfig has no option thread"):
        takes(EngineConfig, "config", leave_out=["thread"])


# ---- what is said arrives

TRACE = "--trace run.trace"
ENGINE = {
    "--expert-format q8_0": {"expert_format": "q8_0"}, "--dense-format f16": {"dense_format": "f16"},
    "--dtype float32": {"dtype": "float32"}, "--experts-per-token 3": {"experts_per_token": 3},
    "--kernels reference": {"kernels": "reference"},
    "--cpu-activations bf16": {"cpu_activations": "bf16"}, "--threads 3": {"threads": 3},
    "--device cuda:1": {"device": "cuda:1"}, "--cpu-moe": {"cpu_moe": True}, "--n-cpu-moe 5": {"n_cpu_moe": "5"},
    "--placement gpu": {"placement": "gpu"}, "--tensor-split 3,2": {"tensor_split": "3,2"},
    "--vram-limit 7.5": {"vram_limit": 7.5}, "--stream-from 64": {"stream_from": "64"},
    "--policy lru": {"policy": "lru"}, "--expert-cache 40%": {"expert_cache": "40%"},
    "--second-vram 24": {"second_vram": 24},
    "--policy-trace old.trace": {"policy_trace": Path("old.trace")}, "--link-limit 25": {"link_limit": 25},
    "--seed-experts": {"seed_experts": True},
    "--pinned-limit 50%": {"pinned_limit": "50%"}, "--handoff eager": {"handoff": "eager"},
    "--max-context 99": {"max_context": 99}, "--prefill-chunk 64": {"prefill_chunk": 64},
    "--ram-limit 12.5": {"ram_limit": 12.5}, "--kv-format q8_0": {"kv_format": "q8_0"},
    "--kv-disk kept:5": {"kv_disk": "kept:5"},
    "--hosts 3": {"hosts": 3}, "--hosts 2 --split-by layers": {"hosts": 2, "split_by": "layers"},
    "--listen 10.0.0.1:4000": {"listen": "10.0.0.1:4000"}, "--wire int8": {"wire": "int8"},
    "--host-token secret": {"host_token": Path("secret")}, "--host-timeout 4": {"host_timeout": 4},
    "--host-wait 9": {"host_wait": 9}, "--i-know": {"i_know": True},
    "--replicate trace:r,10%": {"replicate": "trace:r,10%"},
    "--revision v2": {"revision": "v2"}, "--offline": {"offline": True},
    "--cache-dir kept": {"cache_dir": Path("kept")}, "--ignore-config-keys a,b,": {"ignore_config_keys": ("a", "b")},
    "--ignore-tensors mtp.*": {"ignore_tensors": ("mtp.*",)},
    "--profile kept.json": {"profile": Path("kept.json")}, "--no-measure": {"no_measure": True},
    TRACE: {"trace": Path("run.trace")}, "--speculate lookup": {"speculate": "lookup"},
    "--speculate mtp --mtp mtp.safetensors": {"speculate": "mtp", "mtp": Path("mtp.safetensors")},
    "--draft-vocabulary 32768": {"draft_vocabulary": "32768"},
}  # fmt: skip
SAMPLING = {
    "-n 7": {"max_new_tokens": 7}, "--temperature 0.5": {"temperature": 0.5}, "--top-k 4": {"top_k": 4},
    "--top-p 0.9": {"top_p": 0.9}, "--min-p 0.1": {"min_p": 0.1},
    "--repetition-penalty 1.1": {"repetition_penalty": 1.1}, "--presence-penalty 0.2": {"presence_penalty": 0.2},
    "--seed 11": {"seed": 11},
    "--stop one --stop two": {"stop": ("one", "two")}, "--ignore-eos": {"ignore_eos": True},
    '--json-schema {"type":"null"}': {"json_schema": '{"type":"null"}'},
}  # fmt: skip


FIXED_ORDER = {name for name, options in COMMANDS.items() if "--deterministic" in options}


class Loaded(Exception):
    """A model was to be loaded with these options."""


def stop_at_load(model: str, **options: Any) -> None:
    raise Loaded(options)


def loaded(run: Run, monkeypatch: pytest.MonkeyPatch, *arguments: object) -> dict[str, Any]:
    """The options that a command loads its model with, without the bar's."""
    for module in (llm, bench_command):
        monkeypatch.setattr(module, "LLM", stop_at_load)
    monkeypatch.setattr(doctor_command, "run", lambda load: load())
    with pytest.raises(Loaded) as caught:
        run(*arguments)
    options: dict[str, Any] = caught.value.args[0]
    for bar in ("progress", "compiling"):
        options.pop(bar, None)
    options.pop("check", None)
    return options


@pytest.mark.parametrize("command", ["generate", "convert", "perplexity", "bench", "doctor"])
def test_the_model_is_loaded_as_the_options_say(
    command: str, run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (text := tmp_path / "text").write_text("Water.")
    more = {"generate": ["Hello"], "convert": [tmp_path / "new"], "perplexity": [text]}
    asked = [command, "m", *more.get(command, [])]
    said = [options for options in ENGINE if options.split()[0] in COMMANDS[command]]
    expected = {name: value for options in said for name, value in ENGINE[options].items()}
    fixed = {
        "convert": {"max_context": 1, "speculate": "off"},
        "perplexity": {"speculate": "off"},
        "bench": {"max_context": 512 + 128, "max_sequences": 1, "placement": "n-cpu-moe=2"},
        "doctor": {"max_context": 64, "max_sequences": 1},
    }
    if command == "bench":
        said += ["--new 128 --depth 512", "--placement n-cpu-moe=2"]  # a policy that --tensor-split is for
    if command in FIXED_ORDER:  # not beside a GPU, nor with reference kernels, which all others ask for
        assert loaded(run, monkeypatch, *asked, "--deterministic")["deterministic"] is True
        expected["deterministic"] = False
    if TRACE in said:  # with which nothing is drafted
        said.remove(TRACE)
        assert loaded(run, monkeypatch, *asked, *TRACE.split())["trace"] == Path("run.trace")
        expected["trace"] = None
    found = loaded(run, monkeypatch, *asked, *" ".join(said).split())
    assert found == {**expected, **fixed.get(command, {})}


def test_options_that_are_left_out_are_the_defaults(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    assert EngineConfig(**loaded(run, monkeypatch, "generate", "m", "Hello")) == EngineConfig()
    bench = loaded(run, monkeypatch, "bench", "m", "-p", "8,30", "-n", 4, "-b", "1,3", "-d", "0,20")
    assert EngineConfig(**bench) == EngineConfig(device="cpu", max_context=30, max_sequences=3, speculate="off")


@pytest.mark.parametrize("said", [[], [*SAMPLING]])
def test_a_request_is_as_the_options_say(said: list[str], run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    complete = MagicMock(return_value=0)
    monkeypatch.setattr(llm, "LLM", MagicMock())
    monkeypatch.setattr(generate_command, "ensure_profile", MagicMock())
    monkeypatch.setattr(generate_command, "complete", complete)
    assert run("generate", "m", "Hello", "--json", *" ".join(said).split())[0] == 0
    expected = {name: value for options in said for name, value in SAMPLING[options].items()}
    assert complete.call_args.args[2] == SamplingParams(**expected)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["-p", "8,x"], "--prompt is '8,x': give whole numbers separated by commas"),
        (["-b", ""], "--batch is '': give whole numbers separated by commas"),
        (["--depth=-1"], "--depth is -1: give whole numbers of at least 0"),
        (["-r", "0"], "--rounds is 0: give at least 1"),
        (["--placement", "cpu,"], "--placement is ''"),
        (["--layers", "2"], "add --random-weights"),
        (["-n", "0", "--speculate", "lookup"], "--speculate is lookup, and no test decodes: give --new above 0"),
    ],
)
def test_lists_of_bench_that_cannot_be_read(arguments: list[str], said: str, run: Run) -> None:
    status, out, err = run("bench", "m", *arguments)
    assert (status, out) == (1, "")
    assert err.startswith("headrace: ")
    assert said in err


@pytest.mark.parametrize(
    ("arguments", "said"), [(["--context", "0"], "--context is 0"), (["--model", "best"], "--model is 'best'")]
)
def test_what_plan_refuses(arguments: list[str], said: str, run: Run) -> None:
    status, _, err = run("plan", "m", *arguments)
    assert status == 1
    assert said in err


# ---- the form of an answer

OBJECT = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"], "additionalProperties": False}


def says(run: Run, *options: str) -> str:
    status, out, err = run(
        "generate", "demo", "It is", "--temperature", 1, "--seed", 3, "--no-measure", "-n", 100, *options
    )
    assert status == 0, err
    return out.removesuffix("\n")


@pytest.mark.parametrize("in_a_file", [False, True])
@pytest.mark.parametrize(
    ("option", "text", "pattern"),
    [
        ("--json-schema", json.dumps(OBJECT), r"\{\s*\"a\"\s*:\s*(true|false)\s*\}"),
        ("--grammar", "(ab|cd)+ef", "(ab|cd)+ef"),
        ("--grammar", 'root ::= ("ab" | "cd") "!"', "(ab|cd)!"),
        ("--grammar", 'start: "x" /[0-9]{2,4}/ "y"', r"x\d{2,4}y"),
    ],
)
def test_the_answer_has_the_form(
    option: str, text: str, pattern: str, in_a_file: bool, run: Run, tmp_path: Path
) -> None:
    if in_a_file:
        (tmp_path / "form").write_text(text)
    assert re.fullmatch(pattern, says(run, option, str(tmp_path / "form") if in_a_file else text))


def test_the_form_in_python() -> None:
    with llm.LLM("demo", no_measure=True) as demo:
        each = [SamplingParams(json_schema=OBJECT), SamplingParams(grammar="yes|no"), SamplingParams(max_new_tokens=5)]
        first, second, third = demo.generate(["It is", "And", "It is"], each)
        assert isinstance(json.loads(first.text)["a"], bool)
        assert second.text in ("yes", "no")
        assert third.text == demo.generate("It is", SamplingParams(max_new_tokens=5))[0].text
        answer = demo.chat([{"role": "user", "content": "Hello"}], SamplingParams(grammar="yes|no"))
        assert answer.text in ("yes", "no")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--json-schema", "{"], "json_schema: the JSON schema cannot be used"),
        (["--json-schema", '{"type": "nothing"}'], "json_schema: the JSON schema cannot be used: the grammar"),
        (["--json-schema", "nowhere.json"], "--json-schema: cannot read nowhere.json: No such file or directory"),
        (["--grammar", "nowhere.gbnf"], "--grammar: cannot read nowhere.gbnf"),
        (["--grammar", "["], "grammar: the grammar cannot be used"),
        (["--grammar", "root ::= ("], "grammar: the GBNF grammar cannot be read"),
        (["--grammar", "start: ("], "grammar: the grammar cannot be used"),
        (["--grammar", "a", "--json-schema", "{}"], "json_schema and grammar both say what form the answer has"),
    ],
)
def test_forms_that_are_none_are_refused_before_weights_are_read(
    options: list[str], said: str, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CheckpointFiles, "load", MagicMock(side_effect=AssertionError("weights were read")))
    status, out, err = run("generate", "demo", "It is", *options)
    assert (status, out) == (1, "")
    assert said in err
    assert len(err.splitlines()) == 1


# ---- words of other programs


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("generate -m m.gguf -p hi -n 8", ["-m: the model stands first", "-p: the prompt stands behind the model"]),
        ("generate m.gguf hi -c 4096 -t 8 --temp 0", ["-c: --max-context", "-t: --threads", "--temp: --temperature"]),
        ("generate m.gguf hi -n 8 -ngl 99", ["-ngl: the GPU is filled by itself, or --n-cpu-moe N"]),  # not: -n gl
        ("generate m.gguf hi -ot exps=CPU --ctx-size=64", ["-ot: --placement", "--ctx-size: --max-context"]),
        ("bench m.gguf -ngl 99", ["-ngl: the GPU is filled by itself, or --placement"]),  # which has no --n-cpu-moe
        ("serve m.gguf -c 8192 -np 4", ["-c: --max-context", "-np: --parallel"]),
        ("plan m.gguf -c 8192", ["-c: --context"]),
        ("perplexity -m m.gguf -f text.txt", ["-f: the file stands behind the model"]),
        ("run m.gguf", ["headrace generate MODEL -i"]),
        ("llama-bench -m m.gguf", ["headrace bench MODEL"]),
        ("-m m.gguf -p hi", ['a command comes first, as in headrace generate MODEL "text"']),
        ("demo hi", ['a command comes first, as in headrace generate demo "text"']),
    ],
)
def test_options_of_other_programs_are_answered_with_those_of_here(line: str, said: list[str], run: Run) -> None:
    status, _, err = run(*line.split())
    assert status == 2
    assert all(one in err.splitlines()[-1] for one in said), err


def test_a_prompt_or_a_value_may_look_like_an_option_of_other_programs(run: Run) -> None:
    _, _, err = run("generate", "/no/such/model", "--system=-ngl", "--chat", "--", "-c")
    assert "other programs" not in err
    _, _, err = run("generate", "/no/such/model", "--seed", "x", "--", "-c")
    assert "'x' is not a valid integer" in err


def test_what_other_programs_words_are_here_can_be_typed() -> None:
    everywhere = {name for command in COMMANDS.values() for names in command for name in names.split()}
    for word, remedies in HERE.items():
        for remedy in remedies:
            assert {*re.findall(r"--[a-z-]+", remedy)} <= everywhere, word
    for word, line in COMMANDS_ELSEWHERE.items():
        assert word not in cli.app.commands
        assert line.split()[1] in cli.app.commands, line
