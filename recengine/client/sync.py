"""The blocking client."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from types import TracebackType
from typing import TypeVar

import grpc
import numpy.typing as npt
from tritonclient.grpc import InferenceServerClient
from tritonclient.utils import InferenceServerException

from recengine.client import _request
from recengine.client._request import ChannelArgs, Excludes, Headers, Request, Served, Users
from recengine.client._retry import Call
from recengine.client.answer import Recommendations
from recengine.client.schema import Schema
from recengine.errors import InputError, ServerError

_Answer = TypeVar("_Answer")


class RecommenderClient(_request.ClientState):
    """Asks a served recommender; safe to share between threads.

    Args:
        url: host:port of the server's gRPC endpoint, or a name with a scheme of gRPC, as in
            dns:///host:port or unix:/path.
        model: the public model.
        timeout: seconds that a call may take, its retries included, unless the call says.
        retries: most times that one shed request is sent again, within a budget over all calls; 0
            for no retries at all. Otherwise a request waits until its deadline while the server
            cannot be reached (its name not being found included), stops, or has the model
            unloaded; one whose connection broke is sent once more. A port that does not speak
            gRPC, or a TLS peer that is not trusted, is an error at once where gRPC can tell.
        ssl: connect by TLS.
        root_certificates: PEM file of the authorities to trust.
        private_key: PEM file of the client's key, for mutual TLS.
        certificate_chain: PEM file of the client's certificate, for mutual TLS.
        creds: gRPC channel credentials instead of the four above.
        headers: sent with every call.
        channel_args: gRPC channel arguments beside, or instead of, the client's own.
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

    @property
    def schema(self) -> Schema:
        """What the model takes; read from the server once, and again when it refuses an input."""
        call = self._call(self.model, None)
        return self._read_served(self.model, call, self._headers).schema

    def recommend(
        self,
        users: Users,
        *,
        k: int | None = None,
        exclude: Excludes | None = None,
        num_candidates: int | None = None,
        timeout: float | None = None,
        headers: Headers | None = None,
    ) -> Recommendations:
        """Retrieves and ranks items for users.

        Args:
            users: one mapping feature name -> value, a sequence of them, or packed users.
            k: items per user; the schema's k when not given.
            exclude: a list or set of item ids not to recommend; for several users, one per user,
                or None for who has none. Those of the history are not excluded by themselves.
            num_candidates: items retrieved before ranking; the schema's when not given.
            timeout: seconds that this call may take.
            headers: sent with this call.

        Returns:
            item_ids and scores [batch, k], best first.

        Raises:
            InputError: a user does not fit the schema (nothing was sent), or the server says so.
            ServerError: or one of its kinds: no answer came.
        """
        return self._infer(
            self.model,
            lambda served: _request.recommend_request(served, users, k, exclude, num_candidates),
            timeout,
            headers,
        )

    def retrieve(
        self,
        users: Users,
        *,
        k: int | None = None,
        exclude: Excludes | None = None,
        timeout: float | None = None,
        headers: Headers | None = None,
    ) -> Recommendations:
        """The k nearest items of each user, unranked; as `recommend` otherwise."""
        return self._infer(
            _request.RETRIEVAL,
            lambda served: _request.recommend_request(served, users, None, exclude, k),
            timeout,
            headers,
        )

    def rank(
        self,
        users: Users,
        candidates: npt.ArrayLike,
        candidate_scores: npt.ArrayLike,
        *,
        k: int | None = None,
        timeout: float | None = None,
        headers: Headers | None = None,
    ) -> Recommendations:
        """Orders given candidates for each user; as `recommend` otherwise.

        Args:
            users: as for `recommend`.
            candidates: item ids int64 [batch, n], or strings where the schema says
                `hashed_items`; -1 is an empty slot.
            candidate_scores: retrieval scores float32 [batch, n].
            k: items per user; the schema's k when not given.
            timeout: seconds that this call may take.
            headers: sent with this call.
        """
        return self._infer(
            _request.RANKING,
            lambda served: _request.rank_request(served, users, candidates, candidate_scores, k),
            timeout,
            headers,
        )

    def ready(self, timeout: float | None = None) -> bool:
        """Whether the server is there and the model can answer."""
        left = self._call(self.model, timeout).remaining()
        try:
            return bool(
                self._triton.is_model_ready(self.model, headers=self._headers, client_timeout=left)
            )
        except InferenceServerException as error:
            return self._not_ready(error)

    def close(self) -> None:
        """Closes the connection; calls after it are ServerUnavailable."""
        self._closed = True
        self._triton.close()

    def __enter__(self) -> RecommenderClient:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _infer(
        self,
        model: str,
        build: Callable[[Served], Request],
        timeout: float | None,
        headers: Headers | None,
    ) -> Recommendations:
        call, merged = self._call(model, timeout), self._merged(headers)
        served = self._read_served(model, call, merged)
        try:
            return self._send(build(served), model, call, merged)
        except InputError:
            # Another version may have been published since the schema was read.
            fresh = self._reread(model, call, merged)
            if fresh is None or fresh == served:
                raise
        return self._send(build(fresh), model, call, merged)

    def _send(self, request: Request, model: str, call: Call, headers: Headers) -> Recommendations:
        result = self._attempt(
            call,
            lambda left: self._triton.infer(
                **_request.infer_arguments(request, model, headers, left)
            ),
        )
        return _request.decode(result, model)

    def _read_served(self, model: str, call: Call, headers: Headers) -> Served:
        return self._cached(model) or self._fetch(model, call, headers)

    def _reread(self, model: str, call: Call, headers: Headers) -> Served | None:
        if self._may_reread(model):
            with contextlib.suppress(ServerError):
                return self._fetch(model, call, headers)
        return None

    def _fetch(self, model: str, call: Call, headers: Headers) -> Served:
        config = self._attempt(
            call,
            lambda left: self._triton.get_model_config(model, headers=headers, client_timeout=left),
        )
        return self._keep(model, config)

    def _attempt(self, call: Call, send: Callable[[float], _Answer]) -> _Answer:
        """Sends until an answer comes or the call gives up."""
        while True:
            try:
                answer = send(call.remaining())
            except InferenceServerException as error:
                time.sleep(call.delay_after(error))
            except ValueError:
                self._check_open()  # gRPC's word for a channel that was closed meanwhile
                raise
            else:
                call.answered()
                return answer
