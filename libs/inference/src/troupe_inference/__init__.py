"""Transcripts, renderers, engines and weight updates: what the executor and the designer share.

- `transcript`, `wire`   a conversation as tokens, and its protobuf form
- `renderers`            messages to tokens, one module per model family
"""
