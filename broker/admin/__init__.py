"""Administration: a private node, permissions, and looking at a broker without changing it."""
