"""Many workers in one process: to the broker each is a worker like any other.

    python benchmarks/load/crowd.py URL NAME WORKERS JOURNAL

Each has a port with its two connections, a mailbox, a slot with a trainer of its own, and trains
what its turns say: all that is shared is the process, its TensorFlow and the journal.
"""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

from fluffle.broker.rabbitmq.broker import RabbitMQBroker
from fluffle.logs import installed
from fluffle.worker.services.client_state import ClientStates
from fluffle.worker.services.journal import Journal
from fluffle.worker.services.worker import WorkerService
from fluffle.worker.training.runtime import configure

#: Until all have connected, on a busy machine.
_CONNECT_S = 300.0


def main() -> None:
    url, name, workers, journal = sys.argv[1], sys.argv[2], int(sys.argv[3]), Path(sys.argv[4])
    configure(os.cpu_count() or 1)
    broker = RabbitMQBroker(url, connect_timeout_s=_CONNECT_S)
    kept, states = Journal(journal), ClientStates()
    errors: list[BaseException] = []

    def work(worker: str) -> None:
        port = broker.worker(worker, 1)
        try:
            WorkerService(port, worker, 1, journal=kept, states=states).run()
        except BaseException as error:
            errors.append(error)
        finally:
            port.close()

    threads = [
        threading.Thread(target=work, args=(f"{name}-{i}",), daemon=True) for i in range(workers)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        sys.exit(f"{len(errors)} workers failed: {errors[0]!r}")
    print("done", flush=True)


if __name__ == "__main__":
    with installed("info", "text"):
        main()
