"""What a client does: task, trainer, data, and the service that wires them to a transport."""
