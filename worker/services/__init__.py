"""Services: worker, resident client and evaluator, wired to a transport."""
