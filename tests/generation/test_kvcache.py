"""Pages: handed out, shared, known by content, forgotten oldest first."""

from __future__ import annotations

import random

import pytest

from headrace.engine.model.kv_cache import PAGE, PageTable, pages_for, salted


def fill(table: PageTable, tokens: list[int]) -> list[int]:
    """A sequence that computes all its tokens; its pages are still owned."""
    pages, digests = table.reuse(tokens)
    pages = pages + table.allocate(pages_for(len(tokens)) - len(pages))
    table.publish(tokens, pages, digests, len(tokens))
    return pages


def tokens(pages: float, start: int = 0) -> list[int]:
    return list(range(start, start + int(pages * PAGE)))


def test_pages_for() -> None:
    assert [pages_for(n) for n in (0, 1, PAGE, PAGE + 1)] == [0, 1, 1, 2]


def test_a_prefix_is_found_page_by_page_but_never_whole() -> None:
    table = PageTable(8)
    pages = fill(table, tokens(2))
    assert table.reuse(tokens(2))[0] == pages[:1], "the last token must be computed for its logits"
    assert table.reuse(tokens(2.5))[0] == pages
    assert table.reuse([*tokens(1), 999, *tokens(1)])[0] == pages[:1]
    assert table.reuse([999, *tokens(2)])[0] == []


def test_a_page_that_is_not_full_is_not_known() -> None:
    table = PageTable(8)
    fill(table, tokens(1.5))
    assert len(table.reuse(tokens(3))[0]) == 1


def test_released_pages_keep_their_content_until_room_is_needed() -> None:
    table = PageTable(3)
    table.release(fill(table, tokens(2)))
    assert table.available == 3
    assert len(table.reuse(tokens(2.5))[0]) == 2
    table.release([0, 1] if table.owners[0] else [])
    for page, owners in enumerate(table.owners):
        if owners:
            table.release([page])
    table.allocate(2)
    assert len(table.reuse(tokens(2.5))[0]) == 1, "the end of the prefix goes first, its beginning stays useful"


def test_the_least_recently_used_content_goes_first() -> None:
    table = PageTable(4)
    old, new = fill(table, tokens(1, 0)), fill(table, tokens(1, 500))
    table.release(old)
    table.release(new)
    table.release(table.reuse(tokens(1.5, 0))[0])  # the older one is used again
    table.allocate(3)
    assert len(table.reuse(tokens(1.5, 0))[0]) == 1
    assert table.reuse(tokens(1.5, 500))[0] == []


def serve(table: PageTable, prompt: list[int]) -> int:
    """A sequence from its beginning to its end; how many of its pages were known."""
    pages, digests = table.reuse(prompt)
    known = len(pages)
    pages += table.allocate(pages_for(len(prompt)) - known)
    table.publish(prompt, pages, digests, len(prompt))
    table.release(pages)
    return known


def test_titles_do_not_push_out_a_system_prompt_that_is_in_use() -> None:
    """However many come between two turns; each is asked for once."""
    table, system = PageTable(40), tokens(20)
    assert serve(table, [*system, *tokens(1.5, 5000)]) == 0
    assert serve(table, [*system, *tokens(1.5, 6000)]) == 20
    for number in range(100):
        assert serve(table, tokens(2.5, 10_000 + 1000 * number)) == 0
    assert serve(table, [*system, *tokens(1.5, 7000)]) == 20


def test_what_was_useful_once_makes_room_for_what_is_useful_now() -> None:
    """Pages that were found again take two thirds at most: a second system prompt finds its place, and a third one."""
    table = PageTable(40)
    for start in (0, 100_000, 200_000):
        system = tokens(20, start)
        known = [serve(table, [*system, *tokens(1.5, start + 5000 + 100 * turn)]) for turn in range(4)]
        assert known == [0, 20, 20, 20]
        assert len(table.idle.again) <= 2 / 3 * 40 + 20
    assert serve(table, [*tokens(20, 0), 7]) < 20, "the first one has made room"


def test_every_page_is_somewhere_and_only_there() -> None:
    """Whatever prompts come, in whatever order."""
    chance, table = random.Random(4), PageTable(24)
    open_ones: list[list[int]] = []
    for _ in range(2000):
        if open_ones and (chance.random() < 0.5 or table.available < 8):
            table.release(open_ones.pop(chance.randrange(len(open_ones))))
        else:
            prompt = tokens(chance.uniform(0.5, 5), 1000 * chance.randrange(6))
            pages, digests = table.reuse(prompt)
            pages += table.allocate(pages_for(len(prompt)) - len(pages))
            table.publish(prompt, pages, digests, len(prompt))
            open_ones.append(pages)
        owned = [page for page, owners in enumerate(table.owners) if owners]
        assert sorted([*table.free, *table.idle.new, *table.idle.again, *owned]) == list(range(24))
        assert all(table.page_of[digest] == page for page, digest in table.digest_of.items())
        assert {*table.idle.new, *table.idle.again} <= table.digest_of.keys()


def test_shared_pages_live_until_their_last_owner_leaves() -> None:
    table = PageTable(4)
    first = fill(table, tokens(2))
    second, _ = table.reuse(tokens(2.5))
    table.release(first)
    assert table.available == 2
    table.release(second)
    assert table.available == 4


def test_twins_computed_at_the_same_time_both_work_and_one_is_known() -> None:
    table = PageTable(6)
    pages = table.allocate(4)
    table.publish(tokens(2), pages[:2], [], 2 * PAGE)
    digests: list[bytes] = []
    table.publish(tokens(2), pages[2:], digests, 2 * PAGE)
    assert len(digests) == 2
    assert table.reuse(tokens(2.5))[0] == pages[:2]
    table.release(pages)
    table.release(pages[:2])
    assert table.available == 6


def test_more_than_there_is_is_our_own_mistake() -> None:
    with pytest.raises(AssertionError, match="3 pages asked, 2 available"):
        PageTable(2).allocate(3)


def test_pages_of_another_salt_are_not_found() -> None:
    table, salts = PageTable(12), [b"", salted("one"), salted("two")]
    for salt in salts[:2]:
        pages, digests = table.reuse(tokens(2.5), salt=salt)
        assert pages == []
        pages = table.allocate(3)
        table.publish(tokens(2.5), pages, digests, len(tokens(2.5)), salt)
    found = [table.reuse(tokens(2.5), salt=salt)[0] for salt in salts]
    assert [len(pages) for pages in found] == [2, 2, 0]
    assert not {*found[0]} & {*found[1]}
