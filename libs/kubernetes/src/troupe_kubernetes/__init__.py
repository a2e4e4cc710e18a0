"""What the orchestrator and the `troupe` command both know of Kubernetes.

- `api`        an API server, asked in plain dicts
- `mirror`     a list that is kept current, in a thread
- `endpoints`  who serves behind a Service, from its EndpointSlices
- `pods`       why a pod does not serve, from its status
- `status`     conditions of an object, and the patch from one status to another

`endpoints`, `pods` and `status` are pure: they read what the API server said.
"""
