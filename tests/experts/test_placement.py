"""Policies as pure functions, the file format, and what options may be given together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from headrace import EngineConfig, OptionError
from headrace.engine.placement import placement as placing
from headrace.engine.placement import placement_file
from headrace.engine.placement.placement import Placement, Policy, Tier

GPU0, GPU1, CPU = Tier.GPU0, Tier.GPU1, Tier.CPU
COUNTS = (0, 4, 4, 4)  # the first layer is dense
SIZES = (0, 400, 400, 800)


def layers_on(placement: Placement, tier: Tier) -> list[int]:
    return [i for i, row in enumerate(placement.experts) if tier in row]


# ---- policies


@pytest.mark.parametrize(
    ("layers", "in_ram", "name"),
    [
        (0, [], "gpu"),
        (1, [], "gpu"),
        (2, [1], "n-cpu-moe=2"),
        (3, [1, 2], "n-cpu-moe=3"),
        (4, [1, 2, 3], "cpu-moe"),
    ],
)
def test_the_first_layers_in_ram(layers: int, in_ram: list[int], name: str) -> None:
    placement = placing.n_cpu_moe(COUNTS, layers)
    assert layers_on(placement, CPU) == in_ram
    assert layers_on(placement, GPU0) == [i for i in (1, 2, 3) if i not in in_ram]
    assert (placement.main, placement.name) == (GPU0, name)
    assert placement.experts[0] == ()


@pytest.mark.parametrize(("room", "in_ram"), [(0, [1, 2, 3]), (799, [1, 2, 3]), (800, [1, 2]), (1200, [1]), (1600, [])])
def test_auto_fills_from_the_last_layer_to_the_byte(room: int, in_ram: list[int]) -> None:
    assert layers_on(placing.auto(COUNTS, SIZES, room), CPU) == in_ram


def test_a_layer_that_does_not_fit_ends_the_filling() -> None:
    """Layers in VRAM are the last ones: a small layer before one that is too large stays in RAM."""
    placed = placing.fill_from_last([10, 100, 10], {"a": 30, "b": 5}, {"a": 0, "b": 0})
    assert placed == [None, None, "a"]
    assert placing.fill_from_last([10, 20, 0, 10], {"a": 15, "b": 30}, {"a": 0, "b": 5}) == [None, "b", None, "a"]
    assert placing.fill_from_last([10, 90, 10], {"a": 20}, {"a": 0}, first=1, must=True) == [None, "a", "a"]
    assert placing.fill_from_last([10, 90], {"a": None}, {"a": 0}) == ["a", "a"]


@pytest.mark.parametrize(
    ("shares", "first", "second"),
    [((1, 1), [1, 2], [3]), ((0, 1), [], [1, 2, 3]), ((1, 0), [1, 2, 3], []), ((1, 3), [1], [2, 3])],
)
def test_a_split_deals_out_layers_by_their_bytes(
    shares: tuple[float, float], first: list[int], second: list[int]
) -> None:
    placement = placing.split(placing.n_cpu_moe(COUNTS, 0), SIZES, shares)
    assert (layers_on(placement, GPU0), layers_on(placement, GPU1)) == (first, second)
    assert sum(placing.expert_bytes(placement, SIZES, tier) for tier in Tier) == sum(SIZES)


def test_a_split_leaves_ram_alone() -> None:
    placement = placing.split(placing.n_cpu_moe(COUNTS, 2), SIZES, (0, 1))
    assert (layers_on(placement, CPU), layers_on(placement, GPU1)) == ([1], [2, 3])
    assert placement.tiers == (GPU0, GPU1, CPU)


@pytest.mark.parametrize(
    ("rooms", "in_ram"), [((800, 800), []), ((799, 800), [1]), ((0, 0), [1, 2, 3]), ((400, 800), [1])]
)
def test_auto_over_two_gpus(rooms: tuple[int, int], in_ram: list[int]) -> None:
    found = placing.auto_split(COUNTS, SIZES, dict(zip((GPU0, GPU1), rooms, strict=True)), (1, 1))
    assert layers_on(found, CPU) == in_ram


def test_numbers_within_a_tier_rise_with_the_expert() -> None:
    placement = Placement(name="mixed", main=GPU0, experts=((CPU, GPU0, GPU1, CPU, GPU0, GPU0),))
    assert placement.local_ids(0, CPU) == [0, -1, -1, 1, -1, -1]
    assert placement.local_ids(0, GPU0) == [-1, 0, -1, -1, 1, 2]
    assert placement.local_ids(0, GPU1) == [-1, -1, 0, -1, -1, -1]
    assert [placement.count(0, tier) for tier in (GPU0, GPU1, CPU)] == [3, 1, 2]
    assert placing.expert_bytes(placement, (600,), GPU0) == 300


@pytest.mark.parametrize(
    ("text", "policy"),
    [
        ("cpu", Policy("cpu")),
        ("GPU", Policy("layers", 0)),
        ("auto", Policy("auto")),
        ("cpu_moe", Policy("layers")),
        ("n-cpu-moe=7", Policy("layers", 7)),
        ("n-cpu-moe=auto", Policy("auto")),
        ("some/where.json", Policy("file", file=Path("some/where.json"))),
    ],
)
def test_names_of_policies(text: str, policy: Policy) -> None:
    assert placing.parse(text) == policy


@pytest.mark.parametrize(
    ("text", "message"),
    [("cpu-mo", "did you mean cpu-moe"), ("gpu=3", "there are auto"), ("n-cpu-moe=-1", "from 0 on")],
)
def test_a_policy_that_there_is_not(text: str, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        placing.parse(text)


# ---- options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "cudda"}, r"device is 'cudda'.*did you mean cuda"),
        ({"device": "cuda:x"}, "cuda:N"),
        ({"cpu_moe": True, "n_cpu_moe": 3}, "cpu_moe and n_cpu_moe both say"),
        ({"n_cpu_moe": 3, "placement": "gpu"}, "n_cpu_moe and placement both say"),
        ({"n_cpu_moe": "many"}, "a number of layers from 0 on, or auto"),
        ({"n_cpu_moe": -1}, "a number of layers"),
        ({"device": "cpu", "cpu_moe": True}, "cpu_moe is about a GPU, and device is 'cpu'"),
        ({"device": "cpu", "vram_limit": 4}, "vram_limit is about a GPU"),
        ({"device": "cuda", "placement": "cpu"}, "leave out device"),
        ({"placement": "cpu", "tensor_split": "1,1"}, "leave out tensor_split"),
        ({"tensor_split": "1"}, "two shares"),
        ({"tensor_split": "0,0"}, "two shares"),
        ({"tensor_split": "-1,2"}, "two shares"),
        ({"tensor_split": "a,b"}, "two shares"),
        ({"tensor_split": "1,1", "cpu_moe": True}, "leave one out"),
        ({"tensor_split": "1,1", "placement": "x.json"}, "placement does not"),
        ({"vram_limit": 0}, "vram_limit"),
    ],
)
def test_options_that_cannot_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        EngineConfig(**options)


# ---- files


def write(path: Path, data: Any) -> Path:
    path = path / "experts.json"
    path.write_text(data if isinstance(data, str) else json.dumps(data))
    return path


def test_rules_down_to_single_experts(tmp_path: Path) -> None:
    rules = [
        {"layers": "all", "experts": "0-1", "tier": "gpu0"},
        {"layers": [1, "3"], "experts": [3, "0-0"], "tier": "gpu1"},
        {"layers": "0-1", "experts": 2, "tier": "gpu0"},
    ]
    path = write(tmp_path, {"version": 1, "default": "cpu", "rules": rules})
    found = placement_file.read(path, COUNTS, (CPU, GPU0, GPU1))
    assert found.experts == ((), (GPU1, GPU0, GPU0, GPU1), (GPU0, GPU0, CPU, CPU), (GPU1, GPU0, CPU, GPU1))
    assert (found.name, found.main) == ("experts.json", GPU0)


def rule(**changes: Any) -> dict[str, Any]:
    return {"version": 1, "default": "cpu", "rules": [{"layers": 1, "tier": "gpu0", **changes}]}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("{", "is not JSON"),
        ([], "the file is \\[\\]; give an object with version, default, rules"),
        ({"default": "cpu"}, "the file lacks 'version'"),
        ({"version": 2, "default": "cpu"}, "version is 2; this headrace reads version 1"),
        ({"version": 1}, "lacks 'default'"),
        ({"version": 1, "default": "gpu"}, 'default is "gpu"; .*did you mean gpu'),
        ({"version": 1, "default": "cpu", "rule": []}, "unknown key 'rule' \\(did you mean rules\\?\\)"),
        ({"version": 1, "default": "cpu", "rules": {}}, "rules is {}; give a list"),
        ({"version": 1, "default": "cpu", "rules": [3]}, "rules\\[0\\] is 3; give an object"),
        (rule(expert=3), "rules\\[0\\] has the unknown key 'expert' \\(did you mean experts\\?\\)"),
        (rule(tier="gpu1"), 'rules\\[0\\].tier is "gpu1"; this run has cpu, gpu0 only'),
        (rule(tier=["cpu"]), "there are gpu0, gpu1, cpu"),
        (rule(layers=0), "layer 0 has no routed experts"),
        (rule(layers=4), "layers are 0 to 3"),
        (rule(layers="3-1"), "a range goes up: 1-3"),
        (rule(layers="1-"), "give a number"),
        (rule(layers=-1), "give a number"),
        (rule(layers=1.5), "give a number"),
        (rule(layers=True), "give a number"),
        (rule(layers=[]), "name at least one"),
        (rule(experts=4), "rules\\[0\\].experts is 4; the experts of layer 1 are 0 to 3"),
        (rule(experts="0-9999999999"), "are 0 to 3"),
        (rule(experts=None), "experts is null"),
    ],
)
def test_files_that_cannot_be(data: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=message) as refused:
        placement_file.read(write(tmp_path, data), COUNTS, (CPU, GPU0))
    assert "experts.json" in str(refused.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"cannot read the placement .*No such file"):
        placement_file.read(tmp_path / "no.json", COUNTS, (CPU, GPU0))
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe")
    with pytest.raises(OptionError, match="not UTF-8"):
        placement_file.read(tmp_path / "bytes.json", COUNTS, (CPU, GPU0))


@pytest.mark.parametrize(
    "rule",
    [
        {"layers": ["1-3"] * 100_000, "experts": ["0-3"] * 100_000, "tier": "cpu"},
        {"layers": 1, "experts": ["0-3"] * 100_000, "tier": "cpu"},
    ],
)
def test_rules_that_name_everything_time_and_again_are_refused(rule: dict[str, Any], tmp_path: Path) -> None:
    """A megabyte would be hours."""
    with pytest.raises(OptionError, match="more than 16000 times; write each once"):
        placement_file.read(write(tmp_path, {"version": 1, "default": "cpu", "rules": [rule]}), COUNTS, (CPU,))
    again = {"layers": "all", "experts": "all", "tier": "cpu"}
    with pytest.raises(OptionError, match=r"rules\[\d+\]"):
        placement_file.read(write(tmp_path, {"version": 1, "default": "cpu", "rules": [again] * 9999}), COUNTS, (CPU,))


def test_a_number_of_thousands_of_digits(tmp_path: Path) -> None:
    data = {"version": 1, "default": "cpu", "rules": [{"layers": "1" * 5000, "tier": "cpu"}]}
    with pytest.raises(OptionError, match=r"rules\[0\]\.layers"):
        placement_file.read(write(tmp_path, data), COUNTS, (CPU,))
