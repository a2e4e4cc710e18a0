"""The designer service of Troupe."""
