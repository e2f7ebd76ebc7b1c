"""Dynamic batching: rows of requests that wait at the same time go through the model together.

Used by both wires, rest.py and grpc_server.py. Models run in the event loop's own thread: a run takes a tenth of a millisecond, handing it
to another thread about as long again. A long request is split into runs of a few milliseconds: a thousand users' recommendations would hold
up everybody else for 0.3 s. Long requests take turns, so that between two runs of one nobody waits for those of the others.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from recsys_batch.online.oip.model_api import OipModel
from recsys_batch.online.serving.admission import Admission

Outputs = Mapping[str, np.ndarray]
_QUIET_TURNS = 32
"""Turns of the event loop that bring no request, after which a run begins: gRPC brings a call every few turns."""
_LINGER_SECONDS = 0.005
"""For which a run waits at most while requests go on coming, or turns are long."""
ROWS_PER_REQUEST = 256
"""Rows that may wait for each request that may: users of ``recommend``, of whom a thousand take 0.3 s, and rows of ``ranker``."""


class ClientLeft(Exception):
    """Nobody waits for the answer any more."""


class DeadlinePassed(Exception):
    """The answer would come too late."""


class _Waiting(NamedTuple):
    """A request that waits for a joint run; ``deadline`` as in ``DynamicBatcher.infer``."""

    inputs: Mapping[str, np.ndarray]
    future: asyncio.Future[Any]
    deadline: float | None


@dataclass
class _Group:
    """Waiting requests of one model that one run can answer."""

    model: OipModel
    began: float
    requests: list[_Waiting] = field(default_factory=list)
    rows: int = 0


class DynamicBatcher:
    """Batches inference requests of one event loop into joint runs of a model.

    Args:
        max_rows: a run has no more rows, unless a single request has.
        max_delay: seconds that the first request of a run may wait for others; 0 joins what arrives while the loop is busy with arrivals.
        max_waiting: rows that may wait or be worked on; a request that has more itself is taken where no other waits.
    """

    def __init__(self, max_rows: int = 8, max_delay: float = 0.0, max_waiting: int = 32 * ROWS_PER_REQUEST) -> None:
        self._max_rows, self._max_delay = max_rows, max_delay
        self._groups: dict[tuple[Any, ...], _Group] = {}
        self._rows = Admission(max_waiting)
        self._long_request = asyncio.Lock()

    async def infer(
        self,
        model: OipModel,
        inputs: Mapping[str, np.ndarray],
        client_left: Callable[[], Awaitable[None]] | None = None,
        deadline: float | None = None,
    ) -> Outputs:
        """Return what ``model.infer`` returns for this request alone.

        Args:
            client_left: returns when the client has left: a long request is not worked on then. None where the caller is cancelled.
            deadline: of ``time.perf_counter()``, past which the model is not run for it any more; None for none.
        Raises:
            Overloaded: too many rows wait. ClientLeft. DeadlinePassed. Whatever ``model.infer`` raises for these inputs.
        """
        n_rows = _count_rows(inputs)
        with self._rows.hold(n_rows, "rows"), model.lease():
            inputs = await model.prepare(inputs)
            runs = model.split(inputs)
            if len(runs) > 1:
                work = self._infer_in_runs(model, runs, n_rows, deadline)
                return await (work if client_left is None else _await_unless(client_left, work))
            key = model.joint_key(inputs) if self._max_rows > 1 else None
            if key is not None:
                return await self._infer_with_others(model, key, inputs, n_rows, deadline)
            _check_deadline(deadline)
            return model.infer(inputs)

    def _infer_with_others(
        self, model: OipModel, joint_key: Hashable, inputs: Mapping[str, np.ndarray], rows: int, deadline: float | None
    ) -> asyncio.Future[Outputs]:
        """Put a request into the next run that has room for it."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Outputs] = loop.create_future()
        key = (id(model), joint_key)
        group = self._groups.get(key)
        if group is not None and group.rows + rows > self._max_rows:
            self._run(key)
            group = None
        if group is None:
            group = self._groups[key] = _Group(model, time.perf_counter())
            if self._max_delay > 0:
                loop.call_later(self._max_delay, self._run_if, key, group)
            else:
                loop.call_soon(self._linger, key, group, 1, 0)
        group.requests.append(_Waiting(inputs, future, deadline))
        group.rows += rows
        if group.rows >= self._max_rows:
            self._run(key)
        return future

    async def _infer_in_runs(self, model: OipModel, runs: list[Mapping[str, np.ndarray]], n_rows: int, deadline: float | None) -> Outputs:
        """Infer a long request run by run, each into its place of the outputs; others are answered in between."""
        outputs: dict[str, np.ndarray] = {}
        start = 0
        async with self._long_request:
            for inputs in runs:
                await asyncio.sleep(0)
                _check_deadline(deadline)
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

    def _linger(self, key: tuple[Any, ...], group: _Group, n_seen: int, n_quiet_turns: int) -> None:
        """Run a group once some turns of the loop have brought it nothing new."""
        if self._groups.get(key) is not group:
            return  # it was full before
        n_requests = len(group.requests)
        n_quiet_turns = n_quiet_turns + 1 if n_requests == n_seen else 0
        is_late = time.perf_counter() - group.began >= _LINGER_SECONDS
        if n_quiet_turns >= _QUIET_TURNS or is_late or self._long_request.locked():
            self._run(key)
        else:
            asyncio.get_running_loop().call_soon(self._linger, key, group, n_requests, n_quiet_turns)

    def _run(self, key: tuple[Any, ...]) -> None:
        group = self._groups.pop(key)
        waiting = _drop_late(group.requests)
        if len(waiting) > 1:
            try:
                outputs = group.model.infer_many([request.inputs for request in waiting])
            except Exception:
                pass  # one of them, or all: each alone tells whose fault it was
            else:
                for request, output in zip(waiting, outputs, strict=True):
                    request.future.set_result(output)
                return
        for request in waiting:
            try:
                request.future.set_result(group.model.infer(request.inputs))
            except Exception as error:
                request.future.set_exception(error)


def _drop_late(requests: list[_Waiting]) -> list[_Waiting]:
    """Keep the requests that somebody waits for: not who went away, nor whose deadline has passed, which is told so."""
    waiting = []
    for request in requests:
        if request.future.done():
            continue
        try:
            _check_deadline(request.deadline)
        except DeadlinePassed as error:
            request.future.set_exception(error)
        else:
            waiting.append(request)
    return waiting


def _check_deadline(deadline: float | None) -> None:
    """Raises DeadlinePassed: it has."""
    if deadline is not None and time.perf_counter() >= deadline:
        raise DeadlinePassed("the deadline passed before the model was run")


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
