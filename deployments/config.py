"""The stack file: which pipelines there are, when they run, and where the services listen.

It contains no passwords and keys; these come from the environment.
"""

import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from itertools import combinations
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from zoneinfo import available_timezones

from prefect.client.schemas.schedules import CronSchedule
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from flows import roots
from flows.serve.access import is_loopback
from gsec_core.config import PipelineConfig
from gsec_core.errors import Refused
from gsec_core.settings import load_config
from gsec_core.store.publications import check_pipeline

AUTH = "PREFECT_SERVER_API_AUTH_STRING"
"""Environment variable with the server's user and password."""

POOL = "gsec"
"""Name of the work pool."""

RAY_TOKEN = "RAY_AUTH_TOKEN"
"""Environment variable with the token of a Ray cluster."""


def _checked_cron(text: str) -> str:
    try:
        return CronSchedule(cron=text).cron if text else text
    except ValidationError as error:
        raise ValueError(error.errors()[0]["msg"].removeprefix(_OF_VALUE)) from None


_OF_VALUE = "Value error, "
"""Pydantic's prefix of a validator's own message."""


Cron = Annotated[str, AfterValidator(_checked_cron)]
"""A cron schedule; empty: never."""


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class PipelineEntry(_Model):
    """One pipeline: a clustering that is brought up to date on a schedule."""

    settings: dict[str, Any] = Field(description="Settings of gsec, as in a file for `gsec run --config`. A source and a store are required.")
    cron: Cron | None = Field(None, description="Cron schedule of its runs, such as `0 3 * * *`. Default: it runs only when a user starts it.")
    timezone: str = Field("UTC", description="Time zone of `cron`, such as `Europe/Berlin`.")

    @field_validator("timezone")
    @classmethod
    def _is_timezone(cls, timezone: str) -> str:
        if timezone not in available_timezones():
            raise ValueError("there is no such time zone")
        return timezone


class RayEntry(_Model):
    """The head of a Ray cluster on this machine, which other machines may join as nodes."""

    host: str = Field("127.0.0.1", description="Address at which nodes reach this machine. Ray listens on all addresses of the machine in any case.")
    port: int = Field(6379, ge=1, le=65535, description="Port at which nodes join.")
    cpus: int | None = Field(None, ge=0, le=1024, description="Cores of this machine for slices. 0: only other nodes run slices. Default: all.")

    def address(self) -> str:
        return f"{self.host}:{self.port}"


class StackConfig(_Model):
    """The stack file: settings of the services and pipelines that `gsec up` and `gsec deploy` set up."""

    home: Path = Field(Path("gsec-stack"), description="Folder for logs and state, and for Prefect's database unless `database` names another.")
    host: str = Field("127.0.0.1", description="Address that the dashboard and the report server listen on.")
    port: int = Field(4200, ge=1, le=65535, description="Port of Prefect's server and its dashboard.")
    reports_port: int = Field(4280, ge=1, le=65535, description="Port of the report server.")
    curate: bool = Field(False, description="Whether users with the report server's token may curate clusters on it.")
    database: str | None = Field(
        None, description="Prefect's database, as `postgresql+asyncpg://USER@HOST:PORT/NAME` (password: PGPASSWORD). Default: SQLite in home."
    )
    redis: str | None = Field(
        None, description="Redis for messages between Prefect servers, as `HOST:PORT`. Default: one server, which keeps messages in memory."
    )
    roots: tuple[str, ...] = Field((), description="Folders, buckets and servers that flows may use, in addition to those in the pipelines' settings.")
    runs_at_once: int = Field(1, ge=1, le=100, description="Largest number of flow runs at the same time, over all pipelines.")
    describe_at_once: int = Field(
        1, ge=1, le=100, description="How many of these may be in stage describe at the same time, because they share the captioning servers."
    )
    crashed_after: float = Field(90, ge=60, le=3600, description="Seconds without a heartbeat after which a flow run counts as crashed.")
    resume_crashed: bool = Field(True, description="Whether a crashed flow run is restarted automatically, and continues its work.")
    logs: Literal["lines", "json"] = Field("lines", description="Format of the worker's log.")
    maintenance_cron: Cron | None = Field("0 12 * * 0", description="Cron schedule on which the stores are pruned (UTC). Empty: never.")
    keep_runs: int = Field(5, ge=1, le=10_000, description="Number of newest runs of each corpus that pruning keeps.")
    ray: RayEntry | None = Field(None, description='The head of a Ray cluster, for pipelines with `engine = "ray"` and `ray.address = "auto"`. Default: none.')
    pipelines: dict[str, PipelineEntry] = Field({}, description="The pipelines, each under the name by which its clustering is published.")

    @field_validator("redis")
    @classmethod
    def _has_a_port(cls, redis: str | None) -> str | None:
        if redis is not None and not re.fullmatch(r".+:\d+", redis):
            raise ValueError("give it as HOST:PORT")
        return redis

    @model_validator(mode="after")
    def _ports_differ(self) -> Self:
        ports = {"port": self.port, "reports_port": self.reports_port, **({} if self.ray is None else {"ray.port": self.ray.port})}
        for (setting, port), (other, same) in combinations(ports.items(), 2):
            if port == same:
                raise ValueError(f"{setting} and {other} are both {port}: choose another port for one of them")
        return self

    def url(self) -> str:
        """URL of Prefect's API, as this machine reaches it."""
        return f"http://{_reached(self.host)}:{self.port}/api"

    def reports_url(self) -> str:
        """URL of the report server, as a browser on this machine reaches it."""
        return f"http://{_reached(self.host)}:{self.reports_port}"

    def pipeline(self, name: str) -> PipelineConfig:
        """The complete settings of a pipeline. Paths of a local source and store are absolute, because the worker runs in another folder.

        Raises Refused as `load_config` does, if the source or the store is missing, and if another setting has a relative path.
        """
        check_pipeline(name)
        given = self.pipelines[name].settings
        if not ("source" in given and "store" in given):
            raise Refused(f"pipelines.{name}.settings: it needs a source and a store.")
        try:
            config = load_config(overrides={"pipeline": name, **given})
        except Refused as error:
            raise Refused(f"pipelines.{name}.settings: {error}") from None
        config = config.model_copy(update={"store": _absolute(config.store)})
        for setting, place in roots.places(config):
            if "://" not in place and not os.path.isabs(place):
                raise Refused(f"pipelines.{name}.settings: {setting} = {place}: give an absolute path, because the worker runs in another folder.")
        return config

    def stores(self) -> list[str]:
        """URLs of the stores of all pipelines, each once."""
        return list(dict.fromkeys(self.pipeline(name).store for name in self.pipelines))

    def all_roots(self) -> list[str]:
        """The places that deployed flows may use: the roots of the stack, and those in the pipelines' settings."""
        return list(dict.fromkeys([*map(_absolute, self.roots), *(root for name in self.pipelines for root in _roots_of(self.pipeline(name)))]))


def load(file: Path | None, complete: bool = True) -> StackConfig:
    """Load the stack of a file, or without a file that of the demonstration, which needs no settings.

    Raises Refused with the name of an invalid setting and what to give. The pipelines' settings are checked only if ``complete``.
    """
    if file is None:
        return demonstration() if complete else StackConfig()
    try:
        given = tomllib.loads(file.read_text("utf-8-sig"))
    except OSError as error:
        raise Refused(f"--config {file}: it cannot be read ({error.strerror}). Give a TOML file of the stack.") from None
    except ValueError as error:
        raise Refused(f"--config {file}: it is not TOML ({error}).") from None
    try:
        stack = StackConfig.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        setting = ".".join(map(str, first["loc"]))
        there = f"; there are {', '.join(StackConfig.model_fields)}" if first["type"] == "extra_forbidden" else ""
        raise Refused(f"--config {file}: {f'{setting}: ' if setting else ''}{first['msg'].removeprefix(_OF_VALUE)}{there}.") from None
    stack = stack.model_copy(update={"home": file.parent / stack.home})
    for name in stack.pipelines if complete else ():
        stack.pipeline(name)
    return stack


def demonstration() -> StackConfig:
    """A stack with one pipeline, for the demonstration's images. Writes them below the stack's home."""
    from flows import demo

    stack = StackConfig()
    home = stack.home.absolute()
    entry = PipelineEntry(settings={**demo.prepare(home).settings, "store": str(home / "store")}, cron="0 3 * * *")
    return stack.model_copy(update={"pipelines": {"demo": entry}, "roots": (str(home),)})


def server_environment(stack: StackConfig, environment: Mapping[str, str]) -> dict[str, str]:
    """Environment variables for Prefect's server. Values that the operator has set in ``environment`` count, except for those in `_OURS`.

    Raises Refused if other machines could reach the server without a password, or if a package is missing.
    """
    if AUTH in environment and not environment[AUTH].partition(":")[2]:
        raise Refused(f"{AUTH}: there is no password in it. Set it to user:password, or unset it.")
    if AUTH not in environment and not is_loopback(stack.host):
        raise Refused(f"host = {stack.host}: if other machines can reach it, Prefect's server is started only with a password. Set {AUTH}=user:password.")
    url = stack.url()
    told = {
        "PREFECT_HOME": str(stack.home.absolute() / "prefect"),
        "PREFECT_API_URL": url,
        "PREFECT_SERVER_UI_API_URL": url,
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "PREFECT_SERVER_LOGGING_LEVEL": "WARNING",  # otherwise one line for each request
        "PREFECT_SERVER_UI_V2_ENABLED": "false",  # the new pages contact a host on the internet
        "PREFECT_SERVER_METRICS_ENABLED": "true",
        "PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED": "true",
    }
    if stack.database is not None:
        told["PREFECT_API_DATABASE_CONNECTION_URL"] = stack.database
    if stack.redis is not None:
        if find_spec("prefect_redis") is None:
            raise Refused(f"redis = {stack.redis}: Prefect needs prefect-redis for it: pip install 'gsec[stack]'.")
        host, _, port = stack.redis.rpartition(":")
        told |= {
            "PREFECT_MESSAGING_BROKER": "prefect_redis.messaging",
            "PREFECT_MESSAGING_CACHE": "prefect_redis.messaging",
            "PREFECT_SERVER_EVENTS_CAUSAL_ORDERING": "prefect_redis.ordering",
            "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect_redis.lease_storage",
            "PREFECT_REDIS_MESSAGING_HOST": host,
            "PREFECT_REDIS_MESSAGING_PORT": port,
        }
    return _heard(told, environment)


def worker_environment(stack: StackConfig, environment: Mapping[str, str]) -> dict[str, str]:
    """Environment variables for the worker and for the process that deploys; see `server_environment`."""
    wrong = next((root for root in stack.all_roots() if "," in root), None)
    if wrong is not None:
        raise Refused(f"roots: {wrong} has a comma, which separates roots in {roots.VARIABLE} of the worker. Rename it, or give a link to it.")
    told = {
        "PREFECT_HOME": str(stack.home.absolute() / "prefect"),
        "PREFECT_API_URL": stack.url(),
        "DO_NOT_TRACK": "1",
        "PREFECT_LOGGING_LEVEL": _LEVEL,
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",  # Prefect's minimum
        "PREFECT_WORKER_QUERY_SECONDS": "5",
        "PREFECT_CLIENT_MAX_RETRIES": "8",  # with growing pauses, about eight minutes, so that a restart of the server does not fail a run
        "PREFECT_LOGGING_EXTRA_LOGGERS": "gsec_core",
        "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
        "GSEC_REPORTS_URL": stack.reports_url(),
        roots.VARIABLE: ",".join(stack.all_roots()),
    }
    if stack.logs == "json":
        told["PREFECT_LOGGING_HANDLERS_CONSOLE_FORMATTER"] = "json"
    if AUTH in environment:
        told["PREFECT_API_AUTH_STRING"] = environment[AUTH]
    if stack.ray is not None:
        told |= {"RAY_ADDRESS": stack.ray.address(), "RAY_AUTH_MODE": "token"}
    return _heard(told, environment)


def check_ray(environment: Mapping[str, str]) -> None:
    """Raises Refused if Ray is not installed, or if there is no token, without which anybody could use the cluster."""
    if find_spec("ray") is None:
        raise Refused("ray: it is not installed here. Install it with gsec: pip install 'gsec[ray]'.")
    if not environment.get(RAY_TOKEN):
        raise Refused(
            f"ray: Ray runs any code that it is sent, and listens on all addresses of this machine, so it is started only with a token. Set "
            f"{RAY_TOKEN}, for example with: export {RAY_TOKEN}=$(ray get-auth-token --generate)."
        )


_LEVEL = "INFO"

_OURS = {"PREFECT_API_URL", "PREFECT_LOGGING_LEVEL", "PREFECT_SERVER_LOGGING_LEVEL", "RAY_ADDRESS", "RAY_AUTH_MODE", roots.VARIABLE}
"""Variables whose values in the operator's environment are ignored: commands set them to keep Prefect quiet, or to use another server."""


def _heard(told: Mapping[str, str], environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value if name in _OURS else environment.get(name, value) for name, value in told.items()}


def _roots_of(config: PipelineConfig) -> Iterator[str]:
    for setting, place in roots.places(config):
        # For a source that is a glob, the root is the folder before it; the address of a server is a root itself.
        yield place if setting == "describe.url" else place.partition("*")[0].rpartition("/")[0] if "*" in place else place


def _absolute(place: str) -> str:
    return place if "://" in place else os.path.abspath(os.path.expanduser(place))


def _reached(host: str) -> str:
    address = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"[{address}]" if ":" in address else address
