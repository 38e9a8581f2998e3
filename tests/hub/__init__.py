"""A stand-in for the ModelScope hub, on loopback.

It speaks the HTTP interface that the SDK uses around models, and nothing more. Five parts to read:
`store` (models, revisions, blobs), `routes` (what each address answers), `rules` (what a hub may do
one way or the other), `faults` (how an answer goes wrong on purpose) and `server` (sockets, the
log, the queue of faults).
"""

from tests.hub.server import Hub
from tests.hub.store import Store

__all__ = ["Hub", "Store"]
