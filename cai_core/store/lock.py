"""One run at a time writes to a store.

The lock is an flock on a file that also names host and pid for people. Worker processes inherit it, so that after a
kill -9 of the run the store stays locked until its worker has gone too.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from cai_core.errors import EnvironmentProblem


@contextmanager
def store_lock(store: Path, *, say: Callable[[str], None], patience_s: float = 15.0) -> Iterator[int]:
    """Hold the store's lock; yields its file descriptor for workers to inherit.

    Waits ``patience_s`` for a holder that is on its way out, then raises ``EnvironmentProblem`` naming it.
    """
    store.mkdir(parents=True, exist_ok=True)
    path = store / "lock"
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        deadline = time.monotonic() + patience_s
        told = False
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                holder = path.read_text(encoding="utf-8", errors="replace")[:200] or "another process"
                if time.monotonic() > deadline:
                    raise EnvironmentProblem(
                        f"the store is in use by {holder}",
                        where=str(store),
                        hint="wait for it to finish, or use another --store",
                    ) from None
                if not told:
                    say(f"waiting for the store's lock, held by {holder}")
                    told = True
                time.sleep(0.1)
        os.ftruncate(handle, 0)
        os.pwrite(handle, json.dumps({"host": socket.gethostname(), "pid": os.getpid()}).encode(), 0)
        yield handle
    finally:
        os.close(handle)
