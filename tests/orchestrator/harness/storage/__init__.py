"""Real back ends of the store for tests and benchmarks."""
