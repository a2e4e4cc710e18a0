"""A deployment on Kubernetes, as the `troupe` command sees it with `--context` or `--namespace`.

- `place`        which cluster a command was told, and its API server
- `forwarding`   a port on loopback that leads to a Service's pod, whichever that is at the time
- `overview`     the pods with what keeps them from serving, for `troupe status`
- `examination`  whether a cluster can run a deployment, for `troupe doctor`
- `overlays`     the YAML of an overlay, for `troupe k8s render`
"""
