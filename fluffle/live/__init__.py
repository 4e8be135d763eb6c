"""The live page, `fluffle watch`: how runs stand while they go on, read from their ledgers."""
