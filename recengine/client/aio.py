"""The asyncio twin of `recengine.client.RecommenderClient`."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import TypeVar

import grpc
import numpy.typing as npt
from tritonclient.grpc.aio import InferenceServerClient
from tritonclient.utils import InferenceServerException

from recengine.client import _request
from recengine.client._request import ChannelArgs, Excludes, Headers, Request, Served, Users
from recengine.client._retry import Call
from recengine.client.answer import Recommendations
from recengine.client.schema import Schema
from recengine.errors import InputError, ServerError

_Answer = TypeVar("_Answer")


class RecommenderClient(_request.ClientState):
    """Asks a served recommender; make and use it inside one running event loop.

    Arguments, answers and errors are those of `recengine.client.RecommenderClient`; `schema` is a
    method here, because it may have to ask the server.
    """

    def __init__(
        self,
        url: str,
        *,
        model: str = "recommend",
        timeout: float = 1.0,
        retries: int = 3,
        ssl: bool = False,
        root_certificates: str | None = None,
        private_key: str | None = None,
        certificate_chain: str | None = None,
        creds: grpc.ChannelCredentials | None = None,
        headers: Headers | None = None,
        channel_args: ChannelArgs | None = None,
    ) -> None:
        super().__init__(url, model, timeout, headers, retries)
        _request.check_files(
            root_certificates=root_certificates,
            private_key=private_key,
            certificate_chain=certificate_chain,
        )
        self._triton = InferenceServerClient(
            url,
            ssl=ssl,
            root_certificates=root_certificates,
            private_key=private_key,
            certificate_chain=certificate_chain,
            creds=creds,
            channel_args=_request.channel_args(channel_args),
        )

    async def schema(self) -> Schema:
        """What the model takes; read from the server once, and again when it refuses an input."""
        call = self._call(self.model, None)
        return (await self._read_served(self.model, call, self._headers)).schema

    async def recommend(
        self,
        users: Users,
        *,
        k: int | None = None,
        exclude: Excludes | None = None,
        num_candidates: int | None = None,
        timeout: float | None = None,
        headers: Headers | None = None,
    ) -> Recommendations:
        """Retrieves and ranks items for users."""
        return await self._infer(
            self.model,
            lambda served: _request.recommend_request(served, users, k, exclude, num_candidates),
            timeout,
            headers,
        )

    async def retrieve(
        self,
        users: Users,
        *,
        k: int | None = None,
        exclude: Excludes | None = None,
        timeout: float | None = None,
        headers: Headers | None = None,
    ) -> Recommendations:
        """The k nearest items of each user, unranked."""
        return await self._infer(
            _request.RETRIEVAL,
            lambda served: _request.recommend_request(served, users, None, exclude, k),
            timeout,
            headers,
        )

    async def rank(
        self,
        users: Users,
        candidates: npt.ArrayLike,
        candidate_scores: npt.ArrayLike,
        *,
        k: int | None = None,
        timeout: float | None = None,
        headers: Headers | None = None,
    ) -> Recommendations:
        """Orders given candidates for each user."""
        return await self._infer(
            _request.RANKING,
            lambda served: _request.rank_request(served, users, candidates, candidate_scores, k),
            timeout,
            headers,
        )

    async def ready(self, timeout: float | None = None) -> bool:
        """Whether the server is there and the model can answer."""
        left = self._call(self.model, timeout).remaining()
        try:
            return bool(
                await self._triton.is_model_ready(
                    self.model, headers=self._headers, client_timeout=left
                )
            )
        except InferenceServerException as error:
            return self._not_ready(error)

    async def close(self) -> None:
        """Closes the connection; calls after it are ServerUnavailable."""
        self._closed = True
        await self._triton.close()

    async def __aenter__(self) -> RecommenderClient:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def _infer(
        self,
        model: str,
        build: Callable[[Served], Request],
        timeout: float | None,
        headers: Headers | None,
    ) -> Recommendations:
        call, merged = self._call(model, timeout), self._merged(headers)
        served = await self._read_served(model, call, merged)
        try:
            return await self._send(build(served), model, call, merged)
        except InputError:
            # Another version may have been published since the schema was read.
            fresh = await self._reread(model, call, merged)
            if fresh is None or fresh == served:
                raise
        return await self._send(build(fresh), model, call, merged)

    async def _send(
        self, request: Request, model: str, call: Call, headers: Headers
    ) -> Recommendations:
        result = await self._attempt(
            call,
            lambda left: self._triton.infer(
                **_request.infer_arguments(request, model, headers, left)
            ),
        )
        return _request.decode(result, model)

    async def _read_served(self, model: str, call: Call, headers: Headers) -> Served:
        return self._cached(model) or await self._fetch(model, call, headers)

    async def _reread(self, model: str, call: Call, headers: Headers) -> Served | None:
        if self._may_reread(model):
            with contextlib.suppress(ServerError):
                return await self._fetch(model, call, headers)
        return None

    async def _fetch(self, model: str, call: Call, headers: Headers) -> Served:
        config = await self._attempt(
            call,
            lambda left: self._triton.get_model_config(model, headers=headers, client_timeout=left),
        )
        return self._keep(model, config)

    async def _attempt(self, call: Call, send: Callable[[float], Awaitable[_Answer]]) -> _Answer:
        """Sends until an answer comes or the call gives up."""
        while True:
            try:
                answer = await send(call.remaining())
            except InferenceServerException as error:
                await asyncio.sleep(call.delay_after(error))
            except grpc.aio.UsageError:
                self._check_open()  # gRPC's word for a channel that was closed meanwhile
                raise
            else:
                call.answered()
                return answer
