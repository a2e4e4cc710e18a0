"""`troupe doctor`: whether this machine can run a profile, check by check, each with what to do.

A check is a function of what it looks at, so that a test can give it something that is wrong; it returns findings and
raises nothing. `examination.examine` puts them together for a profile.
"""
