"""Errors as statuses with a sentence: of a whole request, which app.py answers, and of one in a batch, which endpoints.py does."""

import logging

from recsys_batch.errors import EXIT_MISSING, EXIT_USAGE, RecsysBatchError
from recsys_batch.online import metrics
from recsys_batch.online.api.messages import BadRequest
from recsys_batch.online.http.router import RETRY_AFTER, HttpError
from recsys_batch.online.serving.admission import Overloaded
from recsys_batch.online.serving.ranking_service import NotReady, UnknownItem, UnknownUser
from recsys_batch.online.snapshot.lmdb_store import StoreUnavailable

logger = logging.getLogger("recsys_batch.online")


def find_error_status(error: BaseException, path: str) -> tuple[int, str, tuple[tuple[str, str], ...]]:
    """Find what a handler's error is to a client: (status, sentence, headers). What nobody foresaw is 500, and goes to the log.

    Args:
        path: of the route, for the log.
    """
    match error:
        case HttpError():
            return error.status, str(error), error.headers
        case BadRequest():
            return 400, str(error), ()
        case UnknownUser() | UnknownItem():
            return 404, str(error), ()
        case Overloaded():
            metrics.SHED.inc()
            return 503, str(error), (RETRY_AFTER,)
        case NotReady() | StoreUnavailable():
            return 503, str(error), (RETRY_AFTER,)
        case RecsysBatchError():
            return {EXIT_MISSING: 404, EXIT_USAGE: 400}.get(error.exit_code, 409), str(error), ()
    logger.error("a request to %s failed", path, exc_info=error)
    return 500, "something went wrong here; the server's log says what", ()
