"""From a task to its rollout tree: designs, executions, grading."""
