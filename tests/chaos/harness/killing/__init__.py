"""Kills processes of a real local deployment at chosen points of a run, and checks what the run then is."""
