"""A client's simulated device: availability, connectivity, completeness, responsiveness.

The four axes of FLGo, each optional and a pure function of (seed, client, turn, time). The virtual
clock adds their times up; a worker under the real clock waits them out. The code is the same.
"""

from fluffle.worker.devices.attack import as_sent
from fluffle.worker.devices.devices import DeviceOutcome, Devices, LostAt, pause_s

__all__ = ["DeviceOutcome", "Devices", "LostAt", "as_sent", "pause_s"]
