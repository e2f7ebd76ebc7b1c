"""Spark's daemon of Python workers, whose workers end without a word when Spark closes their connection between tasks.

pyspark's own take the end of the connection for a task that fails, and print the BrokenPipeError of reporting it to nobody: at the
end of a session, and after a minute without a task. ``spark.session`` names this module to Spark; it imports nothing but pyspark.
"""

import signal
import socket

from pyspark import daemon

_run_task = daemon.worker


def serve_connection(sock: socket.socket, authenticated: bool) -> int:
    """Run the next task of a worker's connection; its exit code, or 1 where Spark has closed the connection, which ends the process."""
    # While it waits a worker dies of the daemon's signals, as pyspark's does, and does not handle them as the daemon.
    for number in (signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    try:
        is_closed = not sock.recv(1, socket.MSG_PEEK)
    except ConnectionResetError:
        is_closed = True
    return 1 if is_closed else _run_task(sock, authenticated)


if __name__ == "__main__":
    daemon.worker = serve_connection
    daemon.manager()
