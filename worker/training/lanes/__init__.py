"""The JAX engine: several clients' local trainings as lanes of one vectorised program."""
