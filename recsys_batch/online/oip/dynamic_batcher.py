"""Dynamic batching: rows of requests that wait at the same time go through the model together.

Used by both wires, rest.py and grpc_server.py. Models run in the event loop's own thread: a run takes a tenth of a millisecond, handing it
to another thread about as long again. A long request is split into runs of a few milliseconds: a thousand users' recommendations would hold
up everybody else for 0.3 s. Long requests take turns, so that between two runs of one nobody waits for those of the others.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from recsys_batch.online.oip.model_api import OipModel
from recsys_batch.online.serving.admission import Admission

Outputs = Mapping[str, np.ndarray]
ROWS_PER_REQUEST = 256
"""Rows that may wait for each request that may: users of ``recommend``, of whom a thousand take 0.3 s, and rows of ``ranker``."""


class ClientLeft(Exception):
    """Nobody waits for the answer any more."""


@dataclass
class _Group:
    """Waiting requests of one model whose tensors can be joined."""

    model: OipModel
    requests: list[tuple[Mapping[str, np.ndarray], asyncio.Future[Any]]] = field(default_factory=list)
    rows: int = 0


class DynamicBatcher:
    """Batches inference requests of one event loop into joint runs of a model.

    Args:
        max_rows: a run has no more rows, unless a single request has.
        max_delay: seconds that the first request of a run may wait for others; 0 joins what has arrived already.
        max_waiting: rows that may wait or be worked on; a request that has more itself is taken where no other waits.
    """

    def __init__(self, max_rows: int = 8, max_delay: float = 0.0, max_waiting: int = 32 * ROWS_PER_REQUEST) -> None:
        self._max_rows, self._max_delay = max_rows, max_delay
        self._groups: dict[tuple[Any, ...], _Group] = {}
        self._rows = Admission(max_waiting)
        self._long_request = asyncio.Lock()

    async def infer(
        self, model: OipModel, inputs: Mapping[str, np.ndarray], client_left: Callable[[], Awaitable[None]] | None = None
    ) -> Outputs:
        """Return what ``model.infer`` returns for this request alone.

        Args:
            client_left: returns when the client has left: a long request is not worked on then. None where the caller is cancelled.
        Raises:
            Overloaded: too many rows wait. ClientLeft. Whatever ``model.infer`` raises for these inputs.
        """
        n_rows = _count_rows(inputs)
        with self._rows.hold(n_rows, "rows"), model.lease():
            inputs = await model.prepare(inputs)
            runs = model.split(inputs)
            if len(runs) > 1:
                work = self._infer_in_runs(model, runs, n_rows)
                return await (work if client_left is None else _await_unless(client_left, work))
            lengths = {array.shape[0] if array.ndim else -1 for array in inputs.values()}
            if not model.rows_are_independent or len(lengths) != 1 or self._max_rows <= 1:
                return model.infer(inputs)
            return await self._infer_with_others(model, inputs, n_rows)

    def _infer_with_others(self, model: OipModel, inputs: Mapping[str, np.ndarray], rows: int) -> asyncio.Future[Outputs]:
        """Put a request into the next run that has room for it."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Outputs] = loop.create_future()
        shapes = tuple(sorted((name, array.dtype.str, array.shape[1:]) for name, array in inputs.items()))
        key = (id(model), shapes)
        group = self._groups.get(key)
        if group is not None and group.rows + rows > self._max_rows:
            self._run(key)
            group = None
        if group is None:
            group = self._groups[key] = _Group(model)
            if self._max_delay > 0:
                loop.call_later(self._max_delay, self._run_if, key, group)
            else:
                loop.call_soon(self._run_if, key, group)
        group.requests.append((inputs, future))
        group.rows += rows
        if group.rows >= self._max_rows:
            self._run(key)
        return future

    async def _infer_in_runs(self, model: OipModel, runs: list[Mapping[str, np.ndarray]], n_rows: int) -> Outputs:
        """Infer a long request run by run, each into its place of the outputs; others are answered in between."""
        outputs: dict[str, np.ndarray] = {}
        start = 0
        async with self._long_request:
            for inputs in runs:
                await asyncio.sleep(0)
                found = model.infer(inputs)
                for name, array in found.items():
                    if name not in outputs:
                        outputs[name] = np.empty((n_rows, *array.shape[1:]), array.dtype)
                    outputs[name][start : start + len(array)] = array
                start += _count_rows(found)
        return outputs

    def _run_if(self, key: tuple[Any, ...], group: _Group) -> None:
        """The group's time is up, unless it was full before."""
        if self._groups.get(key) is group:
            self._run(key)

    def _run(self, key: tuple[Any, ...]) -> None:
        group = self._groups.pop(key)
        waiting = [(inputs, future) for inputs, future in group.requests if not future.done()]  # who went away needs no answer
        if len(waiting) > 1:
            try:
                outputs = _infer_joined(group.model, [inputs for inputs, _ in waiting])
            except Exception:
                pass  # one of them, or all: each alone tells whose fault it was
            else:
                for (_, future), output in zip(waiting, outputs, strict=True):
                    future.set_result(output)
                return
        for inputs, future in waiting:
            try:
                future.set_result(group.model.infer(inputs))
            except Exception as error:
                future.set_exception(error)


def _count_rows(inputs: Mapping[str, np.ndarray]) -> int:
    return max((len(array) if array.ndim else 1 for array in inputs.values()), default=0)


async def _await_unless(left: Callable[[], Awaitable[None]], work: Coroutine[Any, Any, Outputs]) -> Outputs:
    """Await work that is cancelled when ``left`` returns before it. Raises ClientLeft: then."""
    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(left())
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientLeft("the client left")
        return working.result()
    finally:
        working.cancel()
        leaving.cancel()


def _infer_joined(model: OipModel, requests: list[Mapping[str, np.ndarray]]) -> list[Mapping[str, np.ndarray]]:
    names = list(requests[0])
    outputs = model.infer({name: np.concatenate([inputs[name] for inputs in requests]) for name in names})
    ends = np.cumsum([len(inputs[names[0]]) for inputs in requests])
    parts = {name: np.split(array, ends[:-1]) for name, array in outputs.items()}
    return [{name: parts[name][n] for name in outputs} for n in range(len(requests))]
