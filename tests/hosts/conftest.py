"""What tests of hosts share: two hosts as threads, and what one machine computes of the demo model."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from host_processes import of_one_machine
from thread_hosts import ThreadHosts


@pytest.fixture(scope="module")
def two() -> Iterator[ThreadHosts]:
    """Two hosts, which join the coordinator of each test in turn."""
    hosts = ThreadHosts("demo", 2)
    yield hosts
    hosts.close()


@pytest.fixture(scope="module")
def one_machine() -> tuple[list[list[int]], torch.Tensor]:
    """Texts and logits."""
    return of_one_machine()
