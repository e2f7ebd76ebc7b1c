"""A process that ends with its parent: one that was killed cannot end those that it started.

By a look at the parent's id, twice a second: PR_SET_PDEATHSIG fires as soon as the thread that forked has ended, and ends nobody who does
not answer the signal.
"""

import logging
import os
import signal
import threading
import time

logger = logging.getLogger("recsys_batch.online")

_LOOK_SECONDS = 0.5
_GRACE_SECONDS = 10.0


def end_with_parent(parent: int, what: str) -> None:
    """Have this process end itself, by SIGTERM and then for good, once ``parent`` is its parent no more.

    Args:
        parent: process id, as told by the parent itself: asked for here it may be of whoever took an orphan in.
        what: the parent in words, for the log.
    """
    threading.Thread(target=_watch, args=(parent, what), name="parent-watch", daemon=True).start()


def _watch(parent: int, what: str) -> None:
    while os.getppid() == parent:
        time.sleep(_LOOK_SECONDS)
    logger.error("%s, process %d, is gone: process %d ends as well", what, parent, os.getpid())
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_GRACE_SECONDS)
    os._exit(1)
