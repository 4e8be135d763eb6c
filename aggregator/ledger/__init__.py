"""The ledger: a run's record in SQLite, and the files beside it."""
