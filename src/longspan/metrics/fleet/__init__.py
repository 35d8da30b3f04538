"""What a fleet looks like: instances, their groups, KV, the queue, latencies; from events and actions alone.

The same model stands behind the page of a running server, which begins it from the scheduler's books when somebody
looks, and behind that of an event log, which begins with nothing. So both show the same.
"""

from longspan.metrics.fleet.fleet import Fleet
from longspan.metrics.fleet.frames import Frame, FrameMaker

__all__ = ["Fleet", "Frame", "FrameMaker"]
