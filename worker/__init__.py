"""The worker: task, trainer, data, and the services that wire them to a transport."""
