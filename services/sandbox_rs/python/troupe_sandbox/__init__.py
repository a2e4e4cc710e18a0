"""Run model-written Python, isolated."""
