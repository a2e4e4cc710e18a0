"""Stands in for the executor; `standin` says why."""
