"""Programs that stand in for the services in tests of the supervisor and the command.

Each is a real gRPC server in a process of its own, started exactly as the service that it stands in for, with answers
that are written down here. `misbehave` makes one fail in a way that the supervisor must cope with.
"""
