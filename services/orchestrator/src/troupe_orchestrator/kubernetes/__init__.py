"""The orchestrator on Kubernetes: who its services' replicas are, why they do not serve, and how many there are to be.

- `addresses`   `k8s:///SERVICE[.NAMESPACE][:PORT]`, a target that names a Service
- `membership`  keeps a fleet's members equal to a Service's endpoints
- `notices`     what is to be told to who runs a training: pods that do not serve, services without a replica
- `cluster`     puts these together, with the threads that ask the API server
- `run_events`  a run's events, as Events of the orchestrator's object
- `scaling`     replicas of the workloads, by stage
"""
