"""The processes of the gang: the only part of the learner that imports torch.

`python -m troupe_learner.rank` is started by the front and waits for commands on a socket, never inside a collective.
"""
