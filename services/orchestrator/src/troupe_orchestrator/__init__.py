"""The orchestrator of Troupe: runs, rollout trees, grading, credit, stages, eval jobs."""
