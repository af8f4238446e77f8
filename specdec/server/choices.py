"""Several answers to one request, side by side: `together`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import TypeVar

T = TypeVar("T")


async def together(sources: Sequence[AsyncGenerator[T, None]], *, most: int) -> AsyncGenerator[tuple[int, T], None]:
    """Items of all sources as they come, each with the number of its source. The first error ends all.

    Args:
        sources: not begun; they are closed at the end.
        most: sources that run at once; the others wait, so that one request does not fill a queue.
    """
    if len(sources) == 1:
        async with aclosing(sources[0]) as source:
            async for item in source:
                yield 0, item
        return
    arrived: asyncio.Queue[tuple[int, T] | BaseException | None] = asyncio.Queue()
    gate = asyncio.Semaphore(most)
    tasks = [asyncio.create_task(_read(number, source, arrived, gate)) for number, source in enumerate(sources)]
    try:
        running = len(tasks)
        while running:
            found = await arrived.get()
            if isinstance(found, BaseException):
                raise found
            if found is None:
                running -= 1
            else:
                yield found
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _read(
    number: int,
    source: AsyncGenerator[T, None],
    arrived: asyncio.Queue[tuple[int, T] | BaseException | None],
    gate: asyncio.Semaphore,
) -> None:
    try:
        async with gate, aclosing(source) as items:
            async for item in items:
                arrived.put_nowait((number, item))
    except Exception as error:
        arrived.put_nowait(error)
    else:
        arrived.put_nowait(None)
