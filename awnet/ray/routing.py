"""Which replica a request goes to. Ray's proxies import this, and nothing of the server with it."""

from __future__ import annotations

import random

from ray.serve.request_router import FIFOMixin, PendingRequest, RequestRouter, RunningReplica


class EvenRouter(FIFOMixin, RequestRouter):
    """Of two replicas, drawn from all, Ray takes the one with fewer requests under way ("power of two choices").

    Ray's own router draws from the replicas on the proxy's node as long as one of them takes requests: 64 are then
    under way in it, and none in those of other nodes.
    """

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """As Ray asks for each request; it asks again where none of them takes it."""
        return [random.sample(candidate_replicas, min(2, len(candidate_replicas)))]
