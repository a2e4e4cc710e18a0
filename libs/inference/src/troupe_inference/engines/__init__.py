"""Engines: `vllm` holds weights; `openai` and `remote` reach a model that another service holds."""
