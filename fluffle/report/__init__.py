"""``fluffle report``: what became of one run or several, as a page and as figures for a paper."""
