"""The coordinator: a pure state machine, and what it decides with."""
