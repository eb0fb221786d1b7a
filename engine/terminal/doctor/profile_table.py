"""What `headrace measure` found, for people."""

from __future__ import annotations

from rich.table import Table

from ...bandwidth_model import contention
from ...bandwidth_model.profile import Profile
from ...units import GB
from ..tables import new_table


def profile_table(profile: Profile) -> Table:
    """What `headrace measure` found."""
    table = new_table(f"{profile.cpu}, {profile.isa}, {profile.threads} threads")
    for column in ("kernel", "matrix GB/s", "experts GB/s", "experts / plain read"):
        is_name = column == "kernel"  # headings take two lines sooner than names
        table.add_column(column, justify="left" if is_name else "right", no_wrap=is_name)
    table.add_row("plain read", f"{profile.stream / GB:.2f}", "", "")
    for name, rate in profile.linear.items():
        experts = profile.experts[name]
        table.add_row(name, f"{rate / GB:.2f}", f"{experts / GB:.2f}", f"{experts / profile.stream:.2f}")
    for queries, rate in profile.attention.items():
        table.add_row(f"attention, {queries} queries a key", f"{rate / GB:.2f}", "", "")
    return table


def profile_lines(profile: Profile) -> list[str]:
    """What a table of bandwidths has no place for."""
    reads = ", ".join(f"{rate / GB:.1f} with {count}" for count, rate in profile.stream_by_threads.items())
    lines = [
        f"plain read by threads, GB/s: {reads}",
        f"besides what is read: {1e6 * profile.layer_s:.0f} us a layer, {1e6 * profile.more_tokens(4):.0f} us more "
        f"with 4 tokens, {1e6 * profile.shared_s:.0f} us a shared expert, {1e6 * profile.pass_s:.0f} us a pass",
        f"undisturbed samples: {profile.undisturbed:.0%}; other processes took {profile.busy:.2f} cores meanwhile",
    ]
    ways = {"disk": profile.disk, "node": profile.nodes, "copy": profile.copies}
    for kind, rates in ways.items():
        if rates:
            lines.append(f"{kind}, GB/s: " + ", ".join(f"{rate / GB:.1f} {name}" for name, rate in rates.items()))
    return [*lines, *contention.lines(profile.together), *profile.notes]
