"""Client algorithms: one file each, opened by its paper and its equations."""
