"""What turns cost that a runtime drafts and verifies by itself, against plain steps that go ahead: `measure_turns`.

Passes of `measure_costs` show logits to the host, which takes as long as a third of a step of a small model on a GPU. A
plain step of a long launch and a turn have no such part, so they are compared with each other.
"""

from __future__ import annotations

import time

from specdec.model.architecture import ModelConfig
from specdec.model.effort import resolve_efforts
from specdec.runtimes.base import Recycling, Rows, Runtime, forward_one

TURN_WIDTHS = (4, 8, 16)  # rows of the turns that policies may ask for
PLAIN = 1  # key of a plain step
_CONTEXT = 64  # tokens of a text that repeats itself now and then
_PERIOD = 24
_STEPS, _TURNS = 16, 8  # of a pass
_TIMES = 2  # of each kind, the faster of which counts; one more warms up


def widths_of(runtime: Runtime, config: ModelConfig) -> list[int]:
    """Rows of the turns that can be measured; none where the runtime does not draft by itself, or the model's context
    is too short."""
    widths = [width for width in TURN_WIDTHS if width <= runtime.info.recycles]
    fits = runtime.info.most_ahead >= _STEPS - 1 and _room(max(widths, default=0)) <= config.max_context
    return widths if fits else []


def _room(width: int) -> int:
    """Tokens of the text after a pass with turns of that width, or with plain steps."""
    return _CONTEXT + max(_STEPS, (1 + _TURNS) * width)


def measure_turns(runtime: Runtime, config: ModelConfig) -> dict[int, float]:
    """Seconds of one of several turns, by its rows (`widths_of`), and of a plain step (`PLAIN`) in a pass that goes
    ahead.

    Args:
        runtime: runs the passes.
        config: of its model.
    """
    widths = widths_of(runtime, config)
    room = _room(max(widths))
    text = [index % _PERIOD * 997 % config.vocab_size for index in range(_CONTEXT)]
    cache = runtime.new_cache(room)
    forward_one(runtime, text[:-1], cache, logits="none")
    efforts = resolve_efforts(1.0, config)
    found: dict[int, float] = {}
    for number in range(_TIMES + 1):
        for width in (PLAIN, *widths):
            count = _STEPS if width == PLAIN else _TURNS
            wish = None if width == PLAIN else Recycling(list(text), width, room)
            rows = Rows(cache, text[-1:], efforts, logits="choices", ahead=count - 1, recycling=wish)
            start_s = time.perf_counter()
            result = runtime.forward([rows])[0]
            seconds = (time.perf_counter() - start_s) / len(result.turns or result.choices or (0,))
            cache.trim(_CONTEXT - 1)
            if number:
                found[width] = min(seconds, found.get(width, seconds))
    return found
