"""Returns once something listens at each service that the orchestrator will call, and at its database.

A Service without ready pods refuses or drops connections. Targets that are no host:port are the orchestrator's to look up.
"""

import os
import socket
import time
from urllib.parse import urlsplit

TARGETS = ("TROUPE_SANDBOX", "TROUPE_LEARNER", "TROUPE_DESIGNER_LEARNER", "TROUPE_EXECUTOR", "TROUPE_DESIGNER")

addresses = [target.strip().rpartition(":") for name in TARGETS for target in os.environ.get(name, "").split(",")]
wanted = [(host, int(port)) for host, _, port in addresses if port.isdigit() and "/" not in host]
store = urlsplit(os.environ.get("TROUPE_STORE_URL", ""))
if store.scheme.startswith("postgresql") and store.hostname:
    wanted.append((store.hostname, store.port or 5432))
for host, port in wanted:
    print(f"waiting for {host}:{port}", flush=True)
    while True:
        try:
            socket.create_connection((host, port), timeout=2).close()
        except OSError:
            time.sleep(1)
        else:
            break
