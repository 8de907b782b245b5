"""Work that is done while the main thread goes on, and that nothing waits for."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any


def in_daemon_thread(work: Callable[[], Any]) -> Future:
    """Return what `work` will have returned or raised, done in a thread that the end of the process does not wait for.

    The threads of `concurrent.futures` are joined at exit: a run that was stopped would live on until they are done.
    """
    future: Future = Future()

    def run() -> None:
        try:
            result = work()
        # Whatever it is, it is raised again where the result is asked for.
        except BaseException as error:
            future.set_exception(error)
        else:
            future.set_result(result)

    threading.Thread(target=run, name="background", daemon=True).start()
    return future
