"""The executor: continues the conversations of every agent in a design, with the weights that it holds.

`python -m troupe_executor` serves `troupe.v1.Policy`; `settings` lists what it reads from the environment.
"""
