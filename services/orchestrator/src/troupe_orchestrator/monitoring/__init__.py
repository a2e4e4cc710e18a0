"""What the orchestrator exports for Prometheus, beside the calls that `troupe_contracts` counts."""
