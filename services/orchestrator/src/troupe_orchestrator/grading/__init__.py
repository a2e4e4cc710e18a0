"""Strict, typed grading: values against references, programs against hidden tests."""
