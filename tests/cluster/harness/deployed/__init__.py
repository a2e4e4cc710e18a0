"""The `local` overlay on a real cluster, what can be done to it, and what its store says of a run."""
