"""A thread for long conversions, from bodies to tensors and from tensors to answers, so that the event loop goes on meanwhile.

Used by both wires and tfserving. One thread: two would share the same interpreter's lock, and the loop would wait for both.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

_THREAD = ThreadPoolExecutor(1, thread_name_prefix="tensors")
_LARGE_BYTES = 64 * 1024
"""Converted in half a millisecond, which is what handing over is worth."""

P = ParamSpec("P")
Result = TypeVar("Result")


async def run_by_size(n_bytes: int, function: Callable[P, Result], *args: P.args, **kwargs: P.kwargs) -> Result:
    """Run a function here where it works on few bytes, else in the thread."""
    if n_bytes < _LARGE_BYTES:
        return function(*args, **kwargs)
    return await asyncio.get_running_loop().run_in_executor(_THREAD, lambda: function(*args, **kwargs))
