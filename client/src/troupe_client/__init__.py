"""The SDK and the troupe command."""
