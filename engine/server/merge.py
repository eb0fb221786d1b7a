"""Several answers to one request, read side by side."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence

from .generation import Generation, News

MOST_UNREAD = 16  # passes; what a slow client leaves is kept by the requests, which end when it is too much


async def merged(generations: Sequence[Generation]) -> AsyncGenerator[tuple[int, News | None], None]:
    """News of each by its number, as they come; None when it has ended. What ends one in an error is raised, and ends
    all."""
    if len(generations) == 1:  # as nearly all are: no queue and no task between its tokens
        news = generations[0].news()
        try:
            async for came in news:
                yield 0, came
            yield 0, None
        finally:
            await news.aclose()
        return
    queue: asyncio.Queue[tuple[int, News | BaseException | None]] = asyncio.Queue(MOST_UNREAD)

    async def read(number: int, generation: Generation) -> None:
        try:
            async for found in generation.news():
                await queue.put((number, found))
            await queue.put((number, None))
        except Exception as error:  # raised below, where it is waited for
            await queue.put((number, error))

    tasks = [asyncio.ensure_future(read(i, one)) for i, one in enumerate(generations)]
    try:
        left = len(tasks)
        while left:
            number, found = await queue.get()
            if isinstance(found, BaseException):
                raise found
            left -= found is None
            yield number, found
    finally:
        for task in tasks:
            task.cancel()
        for generation in generations:
            generation.cancel()
