"""What happens to updates: coordinator, strategies, ledger. Never imports TensorFlow."""
