"""The flows that chain the stages, and the command line."""

import os

# Prefect gives its temporary server 20 s to start, which is too short on a busy machine. The variable is read when Prefect is imported.
os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "120")


def reach_directly(*hosts: str) -> None:
    """Let requests of this process and of its children to these hosts use no proxy, if the environment names one."""
    if any(name.lower() in ("all_proxy", "http_proxy", "https_proxy") for name in os.environ):
        direct = [host for host in (os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or "").split(",") if host.strip()]
        # Both spellings, because clients and child processes prefer one or the other.
        os.environ["NO_PROXY"] = os.environ["no_proxy"] = ",".join(dict.fromkeys([*direct, *hosts]))


reach_directly("localhost", "127.0.0.1", "::1")
