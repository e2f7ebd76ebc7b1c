"""Scores by another team's model server, within a deadline: pooled connections, few retries, and a circuit breaker."""

import asyncio
import logging
import os
import time

import aiohttp
import numpy as np

from recsys_batch.online import metrics
from recsys_batch.online.engine.circuit_breaker import BreakerState, CircuitBreaker
from recsys_batch.online.engine.remote_ranking import RemoteFailure
from recsys_batch.online.engine.retry_budget import RetryBudget
from recsys_batch.online.engine.wire_formats import BadAnswer, OpenInference, TensorFlowServing, TorchServe, WireFormat
from recsys_batch.online.ranking.rank_result import MODEL_MISMATCH, RANKER_FAILED, RANKER_UNAVAILABLE
from recsys_batch.online.settings import ENGINE_TOKEN, ServerSettings

_RETRIED = (503, 429)
_CHECK_SECONDS = 2.0

logger = logging.getLogger("recsys_batch.online")


class RemoteRanker:
    """Asks a model server for scores. Used by the one event loop that it is made in.

    Every call names the model's version, so a remote that has gone over to another one says so.

    Attributes:
        max_calls: that it may have at once.
    """

    def __init__(self, settings: ServerSettings) -> None:
        self._address, self._model = settings.engine_url.rstrip("/"), settings.engine_model
        self._timeout = settings.engine_timeout_ms / 1000
        self._format = make_wire_format(settings)
        self._breaker = CircuitBreaker(settings.engine_max_failures, settings.engine_rest_seconds)
        self._retries = RetryBudget(settings.engine_retry_share)
        self.max_calls = settings.engine_connections
        self._opened: aiohttp.ClientSession | None = None

    @property
    def breaker_state(self) -> BreakerState:
        return self._breaker.state

    async def score(
        self, version: str, users: np.ndarray, items: np.ndarray, features: np.ndarray, deadline: float | None = None
    ) -> np.ndarray:
        """Score candidates, as ``ScoringClient``."""
        if not self._breaker.allow():
            metrics.tally.add("engine_calls", "refused")
            raise RemoteFailure(RANKER_UNAVAILABLE, "the model server failed a moment ago")
        began = time.perf_counter()
        until = min(began + self._timeout, np.inf if deadline is None else deadline)
        self._retries.earn()
        try:
            scores = await self._call(version, (users, items, features), until)
        except RemoteFailure as failure:
            # A remote of another version is well, and soon of ours maybe.
            self._breaker.record(failed=failure.reason != MODEL_MISMATCH)
            metrics.tally.add("engine_calls", failure.reason)
            raise
        except BaseException:
            self._breaker.abandon()
            raise
        else:
            self._breaker.record(failed=False)
            metrics.tally.add("engine_calls", "scored")
            return scores
        finally:
            metrics.ENGINE_SECONDS.observe(time.perf_counter() - began)

    async def why_not(self, version: str) -> str | None:
        """Say why the remote cannot score for a model version: it has another one. None where it can, and where nobody can tell now."""
        try:
            async with asyncio.timeout(_CHECK_SECONDS):
                async with self._session.get(self._address + self._format.version_path(self._model, version)) as answer:
                    status, text = answer.status, await answer.text(errors="replace")
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            logger.warning("the model server at %s does not answer: %s", self._address, error or type(error).__name__)
            return None
        if status in (400, 404):
            return f"{self._address} has no version {version} of model {self._model} ready: {text[:200]}"
        return None

    async def close(self) -> None:
        if self._opened is not None:
            await self._opened.close()

    @property
    def _session(self) -> aiohttp.ClientSession:
        """The pool of connections: opened with the first call, as it belongs to the loop that runs then."""
        if self._opened is None:
            connector = aiohttp.TCPConnector(limit=self.max_calls, keepalive_timeout=60)
            token = os.environ.get(ENGINE_TOKEN)
            headers = {"Authorization": f"Bearer {token}"} if token else None
            self._opened = aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=None), headers=headers)
        return self._opened

    async def _call(self, version: str, arrays: tuple[np.ndarray, ...], until: float) -> np.ndarray:
        request = self._format.encode(self._model, version, arrays)
        while True:
            try:
                async with asyncio.timeout(until - time.perf_counter()):
                    async with self._session.post(self._address + request.path, data=request.body, headers=request.headers) as answer:
                        status, headers, body = answer.status, answer.headers, await answer.read()
            except TimeoutError:
                raise RemoteFailure(RANKER_UNAVAILABLE, "the model server did not answer in time") from None
            except (aiohttp.ClientError, OSError) as error:
                if self._retries.spend():
                    continue
                raise RemoteFailure(RANKER_UNAVAILABLE, f"the model server went away: {error}") from None
            if status in _RETRIED and self._retries.spend():
                continue
            break
        if status == 404:
            raise RemoteFailure(MODEL_MISMATCH, f"the model server has no version {version} any more")
        if status != 200:
            raise RemoteFailure(RANKER_UNAVAILABLE if status in _RETRIED else RANKER_FAILED, f"the model server answers {status}")
        try:
            scores = self._format.decode(headers, body)
        except BadAnswer as error:
            raise RemoteFailure(RANKER_FAILED, str(error)) from None
        expected = arrays[1].shape[:2]
        if scores.shape != expected or not np.isfinite(scores).all():
            raise RemoteFailure(
                RANKER_FAILED, f"the model server gave scores of shape {scores.shape} for {expected}, or some that are no numbers"
            )
        return scores


def make_wire_format(settings: ServerSettings) -> WireFormat:
    """Make what speaks to the model server of a server's settings."""
    if settings.engine == "tfserving":
        return TensorFlowServing()
    return TorchServe() if settings.engine == "torchserve" else OpenInference(binary=settings.engine_binary)
