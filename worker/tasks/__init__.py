"""Tasks: the model, the loss and whose examples are whose."""
