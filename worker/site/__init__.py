"""A site's own say: its policy, the gate that holds to it, and the log of what passed."""
