"""Parts of `sandbox.py`, each a measurement of its own."""
