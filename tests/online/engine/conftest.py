"""A model server of a test's own, in this process: it scores by an ONNX file and speaks each wire, or does something else."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from recsys_batch.config import Online
from recsys_batch.online.settings import ServerSettings
from recsys_batch.ranking.onnx_ranker import INPUTS, OnnxRanker


class FakeModelServer:
    """Answers for model ``ranker``.

    Attributes:
        version: that it has. mode: ok, hang, nan, shape, error, busy or close.
        calls: queries of each call that it got. tokens: what their Authorization said.
    """

    def __init__(self, ranker: Path) -> None:
        self._ranker = OnnxRanker(ranker)
        self.version, self.mode = "1", "ok"
        self.calls: list[int] = []
        self.tokens: set[str | None] = set()

    def application(self) -> web.Application:
        application = web.Application(client_max_size=2**26)
        application.router.add_get("/v2/models/ranker/versions/{version}/ready", self._ready)
        application.router.add_get("/v1/models/ranker/versions/{version}", self._ready)
        application.router.add_post("/v2/models/ranker/versions/{version}/infer", self._oip)
        application.router.add_get("/predictions/ranker/{version}", self._ready)
        application.router.add_post("/predictions/ranker/{version}", self._oip)
        application.router.add_post("/v1/models/ranker/versions/{version}:predict", self._tfserving)
        return application

    async def _ready(self, request: web.Request) -> web.Response:
        return web.Response(status=200 if request.match_info["version"] == self.version else 404)

    async def _scores(self, request: web.Request, arrays: list[np.ndarray]) -> np.ndarray:
        self.calls.append(len(arrays[0]))
        if self.mode == "hang":
            await asyncio.sleep(30)
        if self.mode == "close":
            assert request.transport is not None
            request.transport.close()
        if request.match_info["version"] != self.version:
            raise web.HTTPNotFound
        if self.mode in ("error", "busy"):
            raise {"error": web.HTTPInternalServerError, "busy": web.HTTPServiceUnavailable}[self.mode]
        scores = self._ranker.score(*arrays)
        if self.mode == "nan":
            scores[0, 0] = np.nan
        return scores[:, :-1] if self.mode == "shape" else scores

    async def _oip(self, request: web.Request) -> web.Response:
        self.tokens.add(request.headers.get("Authorization"))
        body, header = await request.read(), request.headers.get("Inference-Header-Content-Length")
        if header is None:
            inputs = [np.array(spec["data"], np.float32).reshape(spec["shape"]) for spec in json.loads(body)["inputs"]]
            scores = await self._scores(request, inputs)
            output = {"name": "score", "datatype": "FP32", "shape": scores.shape, "data": scores.ravel().tolist()}
            return web.Response(text=json.dumps({"outputs": [output]}), content_type="application/json")
        n = int(header)
        arrays, at = [], n
        for spec in json.loads(body[:n])["inputs"]:
            size = spec["parameters"]["binary_data_size"]
            arrays.append(np.frombuffer(body[at : at + size], "<f4").reshape(spec["shape"]))
            at += size
        scores = await self._scores(request, arrays)
        raw = np.ascontiguousarray(scores).tobytes()
        output = {"name": "score", "datatype": "FP32", "shape": scores.shape, "parameters": {"binary_data_size": len(raw)}}
        head = json.dumps({"model_name": "ranker", "model_version": self.version, "outputs": [output]}).encode()
        return web.Response(body=head + raw, headers={"inference-header-content-length": str(len(head))})

    async def _tfserving(self, request: web.Request) -> web.Response:
        inputs = json.loads(await request.read())["inputs"]
        scores = await self._scores(request, [np.array(inputs[name], np.float32) for name in INPUTS])
        return web.Response(body=json.dumps({"outputs": scores.tolist()}), content_type="application/json")


@pytest.fixture
def model_server(tmp_path: Path, ranker: bytes) -> FakeModelServer:
    (tmp_path / "ranker.onnx").write_bytes(ranker)
    return FakeModelServer(tmp_path / "ranker.onnx")


@pytest.fixture
def settings_of(tmp_path: Path) -> Callable[..., ServerSettings]:
    def make(server: TestServer, **settings: Any) -> ServerSettings:
        section = Online(engine_url=str(server.make_url("/")), **{"engine": "oip", "engine_timeout_ms": 300, **settings})
        return ServerSettings.from_section(section, str(tmp_path), str(tmp_path / "warehouse"))

    return make
