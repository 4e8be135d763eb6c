"""The aggregator: coordinator, strategies, ledger. Never imports TensorFlow."""
