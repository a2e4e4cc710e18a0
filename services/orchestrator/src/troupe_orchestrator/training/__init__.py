"""Steps of a run: credit, batch, update, sync, commit."""
