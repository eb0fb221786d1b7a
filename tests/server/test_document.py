"""What the document of the API says holds: requests made from it, good and bad, are answered as it says, never by an
error of the server's own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi import checks
from serving import Served, serving

from headrace.engine.server.openapi import document

DOCUMENT = schemathesis.openapi.from_dict(document())
OPERATIONS = [one.ok() for one in DOCUMENT.get_all_operations()]
CHECKS = [
    not_a_server_error, checks.status_code_conformance, checks.content_type_conformance,
    checks.response_schema_conformance,
]  # fmt: skip
ENDLESS = "/live"  # test_live.py reads it
EXAMPLES = 20
# What a request must have to be answered at all, and what random numbers are seldom good for.
GOOD = {"messages": [{"role": "user", "content": "Hello"}], "prompt": "Hello", "input": "Hello", "tokens": [1, 2]}
SELDOM = (
    "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "repeat_penalty", "presence_penalty",
    "frequency_penalty", "seed", "n", "logit_bias", "stop_token_ids", "min_tokens", "logprobs", "top_logprobs",
    "grammar", "guided_grammar", "guided_regex", "guided_choice", "structured_outputs", "previous_response_id", "tools",
)  # fmt: skip


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    """With a small context: whatever is asked for, an answer is short."""
    with serving(options={"max_context": 128}, parallel=4, max_queue=16) as found:
        found.says("Hello")
        yield found


def better(body: dict[str, Any], likely: int) -> dict[str, Any]:
    """A request that gets further: as it is, with what it must have, or with little else."""
    found = {**body, **{key: value for key, value in GOOD.items() if key in body}} if likely else body
    return {key: value for key, value in found.items() if likely < 2 or key not in SELDOM}


def of(operation: Any) -> Any:
    """Requests by the document; of those with a body some that break it too."""
    modes = list(schemathesis.GenerationMode) if operation.method == "post" else [schemathesis.GenerationMode.POSITIVE]
    return st.one_of(*[operation.as_strategy(generation_mode=mode) for mode in modes])


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda one: one.label)
def test_answers_are_as_the_document_says(operation: Any, served: Served) -> None:
    if operation.path == ENDLESS:
        return

    @settings(
        max_examples=EXAMPLES, deadline=None, database=None, derandomize=True, phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(case=of(operation), likely=st.integers(0, 3))
    def check(case: Any, likely: int) -> None:
        if isinstance(case.body, dict):
            case.body = better(case.body, likely)
        case.validate_response(case.call(base_url=served.url, timeout=30), checks=CHECKS)

    check()
    assert not served.service.open
