"""Mechanisms of central privacy: how the noise of versions is made, and how much it hides."""
