"""The process of a measurement; see probe.py."""

from __future__ import annotations

import os
import signal
from multiprocessing.connection import Connection

from longspan.errors import LongspanError
from longspan.tuning.probing import ProbeSettings
from longspan.worker.parent import end_with_parent


def main(settings: ProbeSettings, pipe: Connection) -> None:
    """Measure, and send what came out: `Probed`, or why it could not be."""
    end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        # torch is imported here, in the process that needs it.
        from longspan.worker.probe import measure

        pipe.send(measure(settings))
    except LongspanError as error:
        pipe.send(str(error))
    except Exception as error:
        pipe.send(f"{type(error).__name__}: {error}")
    os._exit(0)
