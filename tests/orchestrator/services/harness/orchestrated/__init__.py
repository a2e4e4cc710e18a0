"""An orchestrator in this process, between stand-ins for the models and the real sandbox."""
