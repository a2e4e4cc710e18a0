"""The executor service of Troupe."""
