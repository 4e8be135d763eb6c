"""What a client's device is like: availability, connectivity, completeness, responsiveness.

The four axes of FLGo, each optional and a pure function of (seed, client, turn, time). The virtual
clock adds their times up; a worker under the real clock waits them out. The code is the same.
"""

from worker.devices.attack import as_sent
from worker.devices.devices import Devices, Fate, LostAt

__all__ = ["Devices", "Fate", "LostAt", "as_sent"]
