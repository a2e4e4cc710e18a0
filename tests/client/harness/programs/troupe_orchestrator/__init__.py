"""Stands in for the orchestrator; `standin` says why."""
