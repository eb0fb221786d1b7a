"""`--hosts auto`: processes that torchrun's variables make a coordinator and its hosts."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from host_processes import free_port
from refusals import refused

from headrace import LLM, SamplingParams
from headrace.engine.terminal.hosts import ranks
from headrace.errors import OptionError

PROMPT = "In the beginning"


def rank(number: int, port: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "headrace", "generate", "demo", PROMPT, "-n", "8", "--hosts", "auto", "--json"]
    command += ["--split-by", "layers", "--placement", "hosts", "--max-context", "128", "--no-measure"]
    variables = {"RANK": str(number), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return subprocess.Popen(
        [*command, "--threads", "1"], text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={**os.environ, **variables, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def test_two_ranks() -> None:
    port = free_port()
    both = [rank(number, port) for number in (1, 0)]
    (host_out, host_err), (out, err) = (one.communicate(timeout=120) for one in both)
    assert [one.returncode for one in both] == [0, 0], (host_err, err)
    with LLM("demo", device="cpu", max_context=128, no_measure=True) as llm:
        expected = llm.generate(PROMPT, SamplingParams(max_new_tokens=8))[0].text
    assert expected in json.dumps(json.loads(out), ensure_ascii=False)
    assert host_out == ""
    assert "layers 0 to 6" in host_err


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({}, "RANK is missing"),
        ({"RANK": "0", "WORLD_SIZE": "2", "MASTER_PORT": "9"}, "MASTER_ADDR is missing"),
        ({"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "a", "MASTER_PORT": "9"}, "RANK is 0 of WORLD_SIZE 1"),
        ({"RANK": "x", "WORLD_SIZE": "2", "MASTER_ADDR": "a", "MASTER_PORT": "9"}, "a number is missing"),
    ],
)
def test_variables_that_do_not_fit(variables: dict[str, str], said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ranks.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with refused(OptionError, "--hosts auto", said):
        ranks.settle({"config_listen": "127.0.0.1"})


def test_who_is_what(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in zip(ranks.VARIABLES, ("2", "4", "10.0.0.1", "29500"), strict=True):
        monkeypatch.setenv(name, value)
    params = {"config_listen": "127.0.0.1", "config_hosts": "auto"}
    assert ranks.settle(params) == ("10.0.0.1:29501", "rank2")
    assert ranks.settle({"config_listen": "10.0.0.9:5"}) == ("10.0.0.9:5", "rank2")
    monkeypatch.setenv("RANK", "0")
    assert ranks.settle(params) is None
    assert params == {"config_listen": "10.0.0.1:29501", "config_hosts": "3"}
