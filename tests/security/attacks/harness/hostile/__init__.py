"""Hostile programs, what must stop each, and the service that they are let loose on."""
