"""Files that ``fluffle init`` copies into a user's folder."""
