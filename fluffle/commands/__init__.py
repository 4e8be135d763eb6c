"""Commands: one file each, which says what the command takes and what it does with it."""
