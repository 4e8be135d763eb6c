"""Local training: trainers, optimizers, client algorithms."""
