"""A stand-in for a Kubernetes API server, and objects to put into it."""
