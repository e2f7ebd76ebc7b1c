"""Dynamic batching: rows of requests that wait at the same time go through the model together.

Used by both wires, rest.py and grpc_server.py. Models run in the event loop's own thread: a run takes a tenth of a millisecond, handing it
to another thread about as long again. A long request is split into runs of a few milliseconds: a thousand users' recommendations would hold
up everybody else for 0.3 s.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from recsys_batch.online.oip.model_api import OipModel, Overloaded


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
        max_waiting: requests that may wait.
    """

    def __init__(self, max_rows: int = 8, max_delay: float = 0.0, max_waiting: int = 256) -> None:
        self._max_rows, self._max_delay, self._max_waiting = max_rows, max_delay, max_waiting
        self._groups: dict[tuple[Any, ...], _Group] = {}
        self._waiting = 0

    async def infer(self, model: OipModel, inputs: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        """Return what ``model.infer`` returns for this request alone.

        Raises:
            Overloaded: too many requests wait. Whatever ``model.infer`` raises for these inputs.
        """
        inputs = await model.prepare(inputs)
        runs = model.split(inputs)
        if len(runs) > 1:
            return await _infer_in_runs(model, runs)
        n_rows = {array.shape[0] if array.ndim else -1 for array in inputs.values()}
        if not model.rows_are_independent or len(n_rows) != 1 or self._max_rows <= 1:
            return model.infer(inputs)
        if self._waiting >= self._max_waiting:
            raise Overloaded(f"{self._waiting} requests wait for a model: try again")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Mapping[str, np.ndarray]] = loop.create_future()
        rows = n_rows.pop()
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
        self._waiting += 1
        try:
            if group.rows >= self._max_rows:
                self._run(key)
            return await future
        finally:
            self._waiting -= 1

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


async def _infer_in_runs(model: OipModel, runs: list[Mapping[str, np.ndarray]]) -> Mapping[str, np.ndarray]:
    """Infer a long request run by run, so that nobody waits for all of it."""
    with model.lease():
        outputs = [model.infer(runs[0])]
        for inputs in runs[1:]:
            await asyncio.sleep(0)
            outputs.append(model.infer(inputs))
    return {name: np.concatenate([each[name] for each in outputs]) for name in outputs[0]}


def _infer_joined(model: OipModel, requests: list[Mapping[str, np.ndarray]]) -> list[Mapping[str, np.ndarray]]:
    names = list(requests[0])
    outputs = model.infer({name: np.concatenate([inputs[name] for inputs in requests]) for name in names})
    ends = np.cumsum([len(inputs[names[0]]) for inputs in requests])
    parts = {name: np.split(array, ends[:-1]) for name, array in outputs.items()}
    return [{name: parts[name][n] for name in outputs} for n in range(len(requests))]
