"""Closed-loop load over gRPC by the official aio client: ModelInfer of ``recommend`` for one user a call; prints one JSON line.

Calls are spread over eight channels (--channels), each a connection of its own, so that a server of several processes gets work for all:
channels with equal settings would share one. One process and one event loop, 0.15 to 0.25 ms of processor time a call.

    python benchmarks/online_grpc.py --port 8081 --users 100000 --concurrency 32 --seconds 8
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import random
import time
from collections import Counter
from typing import Any

import grpc
import numpy as np
import tritonclient.grpc.aio as client
from tritonclient.utils import InferenceServerException

_INPUTS = 2000
"""Users whose inputs are made beforehand."""


class Load:
    """Calls of one event loop, each asked again as soon as it is answered.

    Attributes:
        seconds: of the calls that were answered OK. codes: how many ended with which status.
    """

    def __init__(self, inputs: list[list[Any]], timeout: float | None) -> None:
        self._inputs, self._timeout = inputs, timeout
        self._next = 0
        self.seconds: list[float] = []
        self.codes: Counter[str] = Counter()

    async def ask_until(self, server: client.InferenceServerClient, until: float) -> None:
        """Ask one user after the other until that moment of ``time.perf_counter()``."""
        while (began := time.perf_counter()) < until:
            self._next += 1
            try:
                await server.infer("recommend", self._inputs[self._next % len(self._inputs)], client_timeout=self._timeout)
            except InferenceServerException as error:
                self.codes[(error.status() or "no status").removeprefix("StatusCode.")] += 1
            else:
                self.codes["OK"] += 1
                self.seconds.append(time.perf_counter() - began)


def make_inputs(n_users: int) -> list[list[Any]]:
    """Make the inputs of users drawn at random."""
    draw, inputs = random.Random(7), []
    for _ in range(_INPUTS):
        tensor = client.InferInput("user_id", [1], "INT64")
        tensor.set_data_from_numpy(np.array([draw.randrange(n_users)]))
        inputs.append([tensor])
    return inputs


async def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Ask for a second to warm the connections, then measure."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    servers = [client.InferenceServerClient(f"127.0.0.1:{arguments.port}", channel_args=options) for _ in range(arguments.channels)]
    inputs = make_inputs(arguments.users)
    for seconds in (1.0, arguments.seconds):
        load, began = Load(inputs, arguments.timeout), time.perf_counter()
        asking = [load.ask_until(servers[n % len(servers)], began + seconds) for n in range(arguments.concurrency)]
        await asyncio.gather(*asking)
        took = time.perf_counter() - began
    for server in servers:
        await server.close()
    p50, p99 = np.percentile(np.array(load.seconds or [np.nan]) * 1000, (50, 99))
    calls_per_s = round(len(load.seconds) / took, 1)
    return {"calls_per_s": calls_per_s, "p50": round(float(p50), 3), "p99": round(float(p99), 3), "codes": dict(load.codes)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, required=True, help="of the server's gRPC")
    parser.add_argument("--users", type=int, required=True, help="users 0 to this, without it, are asked for")
    parser.add_argument("--concurrency", type=int, default=32, help="calls in flight")
    parser.add_argument("--channels", type=int, default=8, help="connections that they are spread over")
    parser.add_argument("--seconds", type=float, default=8.0, help="after a second that is not counted")
    parser.add_argument("--timeout", type=float, help="seconds that a call may take: its deadline")
    arguments = parser.parse_args()
    grpc.aio.init_grpc_aio()
    gc.disable()
    print(json.dumps(asyncio.run(measure(arguments))))


if __name__ == "__main__":
    main()
