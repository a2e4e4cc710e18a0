"""The leaves of configs with other values of them, and what an orchestrator does with a config."""
