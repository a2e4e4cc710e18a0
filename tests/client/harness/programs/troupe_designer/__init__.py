"""Stands in for the designer; `standin` says why."""
