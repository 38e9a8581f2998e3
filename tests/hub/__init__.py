"""A stand-in for the ModelScope hub, on loopback.

It speaks the HTTP interface that the SDK uses around models, and nothing more. To read: `store`
(models, revisions, blobs), `routes` (what each address answers), `faults` (how an answer goes
wrong on purpose) and `server` (rules, the log, the queue of faults, sockets).
"""

from tests.hub.faults import Answer, Fault, Response
from tests.hub.server import Hub, Request
from tests.hub.store import Store

__all__ = ["Answer", "Fault", "Hub", "Request", "Response", "Store"]
