"""Losses: pure functions on per-token tensors, one file each.

Every loss takes tokens that count only, as flat tensors of one length N, and returns the *sum* of weight x loss. Weights
arrive normalised over the whole batch, so nothing here divides.
"""
