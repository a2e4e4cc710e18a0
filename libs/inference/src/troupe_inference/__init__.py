"""Transcripts, renderers, engines and weight updates."""
