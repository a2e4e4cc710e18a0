"""Transcripts, renderers, engines and weight updates: what the executor and the designer share.

- `transcript`, `wire`      a conversation as tokens, and its protobuf form
- `renderers`               messages to tokens, one module per model family
- `turns`, `turn_wire`      one turn asked of a policy and answered, and its protobuf form
- `engines`                 vLLM in this process, a hosted model, another Policy service
- `token_policy`            a policy with token access: renderer, engine, versions, limits
- `weights`                 begin, stage, commit, abort
- `policy_service`          the gRPC service; `policy_settings`, `policy_start`, `launch` run it as a process
- `model_folder`            digests and shapes of a model that is not loaded
"""
