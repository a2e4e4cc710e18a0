"""Runs on real deployments that are killed at. Each takes minutes; the matrix runs with --slow."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "harness"))
