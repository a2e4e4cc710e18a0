"""Stands in for the learner; `standin` says why."""
