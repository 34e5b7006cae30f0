"""`gsec up`, `gsec down` and `gsec deploy`."""

import os
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from deployments import config
from flows import reach_directly, terminal

StackFile = Annotated[
    Path | None, Parameter(name="--config", help="The stack file (docs/operations.md). Default: a stack with the demonstration, in ./gsec-stack.")
]


def up(*, stack: StackFile = None) -> int:
    """Start the services of gsec on this machine (Prefect's server, a worker, the report server, a Ray head if one is set), and deploy the pipelines.

    A service that runs already is restarted only if its command or its environment has changed.
    """
    found = config.load(stack)
    reach_directly(found.host)  # it may be another address of this machine
    from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

    from deployments import apply, processes

    told = config.worker_environment(found, os.environ)
    here = {PREFECT_API_URL: told["PREFECT_API_URL"], PREFECT_API_AUTH_STRING: told.get("PREFECT_API_AUTH_STRING")}
    processes.check_home(found, stack)
    processes.check_secrets(found)
    processes.check_ports(found)
    processes.claim(found, stack)
    services = processes.services(found, os.environ)
    for name in set(processes.started(found)) - {service.name for service in services}:
        processes.stop(found, name)
        terminal.err.print(f"{name} stopped: it has nothing to do")
    for service in services:
        new = processes.start(found, service)
        terminal.err.print(f"{service.name} {'started' if new else 'is running'}, log {processes.log_of(found, service.name)}")
        if service is services[0]:  # the server, which the other services need
            with temporary_settings({name: value for name, value in here.items() if value is not None}):
                for name in apply.apply(found):
                    terminal.err.print(f"  deployed {name}")
    terminal.out.print(f"dashboard  {found.url().removesuffix('/api')}")
    if found.pipelines:
        terminal.out.print(f"reports    {found.reports_url()}")
    return 0


def down(*, stack: StackFile = None) -> int:
    """Stop the services that `gsec up` started. Runs that are in progress continue after the next `gsec up`."""
    found = config.load(stack, complete=False)
    from deployments import processes

    running = processes.started(found)
    for name in running:
        processes.stop(found, name)
        terminal.err.print(f"{name} stopped")
    if not running:
        terminal.err.print("nothing is running")
    return 0


def deploy(*, stack: StackFile = None) -> int:
    """Make the Prefect server at PREFECT_API_URL match a stack file: its work pool, deployments, limits and automations."""
    found = config.load(stack)
    from deployments import apply

    for name in apply.apply(found):
        terminal.out.print(name)
    return 0
