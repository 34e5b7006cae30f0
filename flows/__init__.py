"""The flows that chain the stages, and the command line."""

import os

# A temporary server of Prefect is given 20 s to start, which it does not always do on a busy machine. Read when Prefect is imported.
os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "120")
