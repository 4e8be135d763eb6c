"""The front door: command line, run wiring, reports."""
