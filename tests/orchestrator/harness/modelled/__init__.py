"""Store, learner, engine and orchestrators as a model, with the real decisions, task queue and ledger."""
