"""The helper of secure aggregation: unmasks sums, each update once, and sees none."""
