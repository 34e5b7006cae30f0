"""Bring Prefect's server in line with a stack: work pool, deployments, limits, automations.

Applying twice changes nothing. Deployments and automations that are no longer in the stack are deleted.
"""

from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import Any, cast
from uuid import UUID

import httpx
from prefect.automations import AutomationCore
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterId, DeploymentFilterTags
from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy, StateType
from prefect.deployments.runner import DeploymentApplyError, RunnerDeployment
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import EventTrigger, Posture
from prefect.exceptions import ObjectNotFound
from prefect.flows import Flow
from prefect.schedules import Schedule
from prefect.settings import PREFECT_API_URL
from prefect.types.entrypoint import EntrypointType

from deployments.config import POOL, StackConfig
from flows.assign import assign
from flows.ingest import ingest
from flows.maintenance import maintenance
from flows.pipeline import run_pipeline
from flows.stages import DESCRIBERS, FLOWS
from gsec_core.errors import GsecError, Refused
from gsec_core.pipeline import stages_of

TAG = "gsec"
RESUMES = "gsec-resumes"
"""Tag of flow runs that are restarted when they crash."""

CRASHED = "gsec: without a sign of life a flow run has crashed"
RESUMED = "gsec: a crashed run goes on"
TAKEN = "gsec: a run that its worker took and did not begin is taken again"

MOST_BEGINNINGS = 3
"""How often a crashed run is restarted: whatever kills it could do so forever. A run that crashed before it began is not restarted."""

BEGINS_WITHIN = timedelta(minutes=5)
"""If a process has not begun its flow by then, it is gone, and so is its worker, which would have reported that."""

SETTLES_WITHIN = timedelta(seconds=30)
"""Wait before a crashed run is restarted: the worker reports the crash a second time, which would count as a crash of the restarted run."""

_JOBS: dict[str, Any] = {"job_configuration": {"stream_output": True}, "variables": {"type": "object", "properties": {}}}
"""Job template. Users may set only the parameters of a run: not the worker's command, and not its environment, which contains the roots.

Prefect requires both keys to have content."""


def apply(stack: StackConfig) -> list[str]:
    """Bring the server at PREFECT_API_URL in line with a stack. Returns the full names of the deployments.

    Raises Refused if no server is named, GsecError if it does not answer, or refuses.
    """
    if not PREFECT_API_URL.value():  # with an empty one, Prefect would start a temporary server and deploy there
        raise Refused("PREFECT_API_URL: it says where Prefect's server is, as http://127.0.0.1:4200/api. Set it, or let gsec up start a server.")
    wanted = list(deployments(stack))
    try:
        with get_client(sync_client=True) as client:
            _apply_pool(client, stack)
            client.upsert_global_concurrency_limit_by_name(DESCRIBERS, stack.describe_at_once)
            for deployment in wanted:
                _keep_toggles(client, deployment)
            _drop_others(client, [cast(Any, deployment.apply)(_sync=True) for deployment in wanted])  # _sync: even if an event loop runs in this thread
            _apply_automations(client, {automation.name: automation for automation in automations(stack)})
    except DeploymentApplyError as error:  # it wraps the actual error
        raise _error(error.__cause__ or error) from None
    except httpx.HTTPError as error:
        raise _error(error) from None
    return [deployment.full_name for deployment in wanted]


def _error(error: BaseException) -> GsecError:
    """Convert an error of the server, or of the connection to it, to one with a message for users."""
    where = f"PREFECT_API_URL = {PREFECT_API_URL.value()}"
    if isinstance(error, httpx.HTTPStatusError):
        status = error.response.status_code
        if status in (401, 403):
            return Refused(f"{where}: {status}; set PREFECT_API_AUTH_STRING to the server's user:password.")
        return GsecError(f"{where}: {status}; {error.response.text[:200]}.")
    if isinstance(error, httpx.HTTPError):
        return GsecError(f"{where}: the server does not answer ({error}).")
    return GsecError(f"{where}: a deployment cannot be made ({error}).")


def deployments(stack: StackConfig) -> Iterator[RunnerDeployment]:
    """The deployments of a stack: for every pipeline the whole, ingest, each stage alone, and assign; and maintenance of all stores."""
    for name, entry in stack.pipelines.items():
        config = stack.pipeline(name)
        settings = config.model_dump(mode="json")
        cron = Schedule(cron=entry.cron, timezone=entry.timezone) if entry.cron else None
        about = f"The whole pipeline {name}: what is new in {config.source}, then what is missing of every stage."
        yield _deployment(run_pipeline, name, about, {"config": settings}, cron, (RESUMES,) if stack.resume_crashed else (), one_at_a_time=True)
        yield _deployment(ingest, name, f"The corpus of {name} brought up to date with {config.source}, and nothing else.", {"config": settings})
        for stage in stages_of(config):
            about = f"Stage {stage.name} of pipeline {name} alone. With another setting it makes a new run, which shares all earlier stages."
            yield _deployment(FLOWS[stage.name], name, about, {"config": settings})
        about = f"Assigns new images to the published clusters of {name}, which stay as they are."
        yield _deployment(assign, name, about, {"store": config.store, "pipeline_name": config.pipeline})
    if stack.pipelines:
        cron = Schedule(cron=stack.maintenance_cron, timezone="UTC") if stack.maintenance_cron else None
        about = "Deletes tables and runs that are no longer needed."
        yield _deployment(maintenance, "all", about, {"stores": stack.stores(), "keep_runs": stack.keep_runs}, cron, one_at_a_time=True)


def _deployment(
    flow: Flow[..., Any],
    name: str,
    about: str,
    parameters: dict[str, Any],
    cron: Schedule | None = None,
    tags: tuple[str, ...] = (),
    one_at_a_time: bool = False,
) -> RunnerDeployment:
    queued = ConcurrencyLimitConfig(limit=1, collision_strategy=ConcurrencyLimitStrategy.ENQUEUE)
    return RunnerDeployment.from_flow(
        flow,
        name,
        schedules=[cron] if cron else [],
        concurrency_limit=queued if one_at_a_time else None,
        parameters=parameters,
        description=about,
        tags=[TAG, *tags],
        work_pool_name=POOL,
        entrypoint_type=EntrypointType.MODULE_PATH,
    )


def automations(stack: StackConfig) -> Iterator[AutomationCore]:
    """The automations of a stack. Without them, a flow run that is killed together with its worker would stay running or pending forever, and hold its slot.

    Those that restart runs do not expect the state that they set: Prefect may read its event before it removes the trigger that fired, and fire again.
    """
    ends, taken = _events("Completed", "Failed", "Cancelled", "Crashed"), _events("Pending", "Submitting")
    alive = "prefect.flow-run.heartbeat"
    again = ChangeFlowRunState(state=StateType.SCHEDULED, name="AwaitingRetry", message="It is restarted, and continues.")
    yield AutomationCore(
        name=CRASHED,
        description="Flow runs of the worker send heartbeats. A run that stopped sending them and did not end was killed.",
        trigger=_silence(after={alive}, expect={alive, *ends}, within=timedelta(seconds=stack.crashed_after)),
        actions=[ChangeFlowRunState(state=StateType.CRASHED, message=f"No sign of life for {stack.crashed_after:.0f} s: it was killed.")],
    )
    yield AutomationCore(
        name=TAKEN,
        description="A worker that is stopped after taking a run and before starting it leaves it pending.",
        trigger=_silence(after=taken, expect={alive, *ends, *_events("Running", "Cancelling")}, within=BEGINS_WITHIN, tag=TAG),
        actions=[again],
    )
    if stack.resume_crashed:
        begun = {"prefect.run-count": [str(count + 1) for count in range(MOST_BEGINNINGS)]}
        yield AutomationCore(
            name=RESUMED,
            description="What was committed stays, so a restarted run continues.",
            trigger=_silence(after=_events("Crashed"), expect={*taken, *_events("Scheduled")}, within=SETTLES_WITHIN, tag=RESUMES, labels=begun),
            actions=[again],
        )


def _silence(*, after: set[str], expect: set[str], within: timedelta, tag: str | None = None, labels: Mapping[str, list[str]] | None = None) -> EventTrigger:
    """Trigger that fires if a flow run (with this ``tag`` and ``labels``) has none of the events ``expect`` within this time after one of ``after``."""
    return EventTrigger(
        after=after,
        expect=expect,
        match={"prefect.resource.id": "prefect.flow-run.*", **(labels or {})},
        match_related={"prefect.resource.id": f"prefect.tag.{tag}", "prefect.resource.role": "tag"} if tag else {},
        for_each={"prefect.resource.id"},
        posture=Posture.Proactive,
        threshold=1,
        within=within,
    )


def _events(*states: str) -> set[str]:
    """Names of the events of flow runs that enter one of these states."""
    return {f"prefect.flow-run.{state}" for state in states}


def _apply_pool(client: SyncPrefectClient, stack: StackConfig) -> None:
    try:
        client.read_work_pool(POOL)
    except ObjectNotFound:
        client.create_work_pool(WorkPoolCreate(name=POOL, type="process", base_job_template=_JOBS, concurrency_limit=stack.runs_at_once))
    else:
        client.update_work_pool(POOL, WorkPoolUpdate(base_job_template=_JOBS, concurrency_limit=stack.runs_at_once))


def _keep_toggles(client: SyncPrefectClient, deployment: RunnerDeployment) -> None:
    """Keep deployments paused, and schedules switched off, as users have set them on the dashboard; the latter as long as the schedule is the same."""
    try:
        there = client.read_deployment_by_name(deployment.full_name)
    except ObjectNotFound:
        return
    deployment.paused = there.paused
    off = [schedule.schedule for schedule in there.schedules if not schedule.active]
    for schedule in deployment.schedules or ():
        schedule.active = schedule.schedule not in off


def _drop_others(client: SyncPrefectClient, wanted: list[UUID]) -> None:
    """Delete the deployments of pipelines that are no longer in the stack file."""
    others = DeploymentFilter(id=DeploymentFilterId(not_any_=wanted), tags=DeploymentFilterTags(all_=[TAG]))
    while found := client.read_deployments(deployment_filter=others):  # 200 at a time
        for deployment in found:
            client.delete_deployment(deployment.id)


def _apply_automations(client: SyncPrefectClient, wanted: dict[str, AutomationCore]) -> None:
    """Create, update or delete automations. Unchanged ones are not written again, because they would forget what they are waiting for."""
    for name in (CRASHED, TAKEN, RESUMED):
        there = client.read_automations_by_name(name)
        for old in there[1 if name in wanted else 0 :]:
            client.delete_automation(old.id)
        if name in wanted and not there:
            client.create_automation(wanted[name])
        elif name in wanted and _told(there[0]) != _told(wanted[name]):
            client.update_automation(there[0].id, wanted[name])


def _told(automation: AutomationCore) -> dict[str, Any]:
    """The definition of an automation, without fields that the server adds, for comparison."""
    told = automation.model_dump(mode="json", include=set(AutomationCore.model_fields))
    told["trigger"].pop("id", None)
    told["trigger"] = {name: sorted(value) if isinstance(value, list) else value for name, value in told["trigger"].items()}
    return told
