"""The flows that chain the stages, and the command line."""

import os

# A temporary server of Prefect is given 20 s to start, which it does not always do on a busy machine. Read when Prefect is imported.
os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "120")

# What is on this machine is asked without a proxy. Clients and the programs that are started read both spellings, some prefer one of them.
if any(name.lower() in ("all_proxy", "http_proxy", "https_proxy") for name in os.environ):
    _direct = [host for host in (os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or "").split(",") if host.strip()]
    os.environ["NO_PROXY"] = os.environ["no_proxy"] = ",".join(dict.fromkeys([*_direct, "localhost", "127.0.0.1", "::1"]))
