"""A cable that is pulled: neither side hears anything of the other, no connection ends. Hosts are in network namespaces
of their own, where the system allows that."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

FAULTS = Path(__file__).parents[2] / "benchmarks" / "hosts_faults.py"
UNSHARE = ["unshare", "--net"] if os.geteuid() == 0 else ["unshare", "--user", "--map-root-user", "--net"]


def may() -> bool:
    """Whether there can be networks and cables between them."""
    link = "ip link add cable0 type veth peer name cable1"
    try:
        return not subprocess.run([*UNSHARE, "sh", "-c", link], capture_output=True, check=False, timeout=20).returncode
    except (OSError, subprocess.TimeoutExpired):
        return False


@pytest.mark.skipif(not may(), reason="networks of their own take root, or user namespaces, and ip")
@pytest.mark.parametrize("split_by", ["experts", "layers"])
def test_same_tokens_and_the_host_comes_back(split_by: str, tmp_path: Path) -> None:
    saved = tmp_path / "faults.json"
    words = [
        sys.executable,
        str(FAULTS),
        "--times",
        "1",
        "--kinds",
        "cut",
        "--split-by",
        split_by,
        "--save",
        str(saved),
    ]
    # Its exit status says how long it took, too, which a busy machine decides.
    subprocess.run(words, capture_output=True, check=False, timeout=500)
    found = json.loads(saved.read_text())["sums"]
    assert (found["times"], found["wrong_text"], found["errors"]) == (1, 0, 0)
    assert (found["losses"], found["returns"]) == (1, 1)
