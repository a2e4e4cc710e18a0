"""Replacing a policy's weights: begin, stage, commit, abort.

- `states`    which phase may follow which, as a table
- `manifest`  what a set of weights consists of, checked against the model that is loaded
- `sources`   where the bytes come from
- `updates`   the four phases on one replica
"""
