"""Stands in for the sandbox; `standin` says why."""
