"""Eval jobs and single questions over the same rollout."""
