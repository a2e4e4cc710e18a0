"""Generated gRPC stubs of Troupe, and the server and channel factories that every service uses.

- `settings`  what a service is told at start, by environment
- `server`    the server that every service runs: health, reflection, metrics, drain
- `calls`     what surrounds each call on the server: deadline, ids, typed errors, metrics
- `channel`   the channel that every client uses: sizes, keepalive, retries, default deadline, ids
- `errors`    typed errors on both sides
- `log`       structured logs, and the ids that tie the lines of one execution together
- `fence`     refusal of a caller that lost the store's lease
- `batch`     the digest of a batch of sequences, and what makes a sequence well formed
"""
