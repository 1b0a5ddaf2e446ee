"""Ctrl-C is heard wherever it comes."""

from __future__ import annotations

import signal
import sys
import threading
from typing import Any

AGAIN = 0.05  # seconds, after which the callback that lost it is over


def keep_interrupts() -> None:
    """Sends an interrupt again that came inside of a callback or a finalizer, where Python drops it.

    Python can raise nothing out of a weak reference's callback, ``__del__`` or a C callback: it
    writes "Exception ignored" and goes on, so that a single Ctrl-C would be lost.
    """
    before = sys.unraisablehook

    def hook(lost: Any) -> None:
        if lost.exc_type is KeyboardInterrupt:
            # From another thread and later: sent from here, it would come inside of this hook.
            main = threading.main_thread().ident
            again = threading.Timer(AGAIN, signal.pthread_kill, (main, signal.SIGINT))
            again.daemon = True
            again.start()
        else:
            before(lost)

    sys.unraisablehook = hook
