"""The engine that runs slices on the nodes of a Ray cluster, each as a Prefect task, by `prefect_ray`.

Rows never pass through Ray. A slice gets the names of its shards, reads its input from the store and commits there, as a thread does.
Ray may therefore lose a node, or run a slice twice: the first valid shard counts.
"""

import logging
import os
import platform
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache, partial
from importlib.metadata import version
from typing import Any, cast
from urllib.parse import urlsplit
from uuid import uuid4

import grpc
import httpx
import prefect_ray
import ray
from prefect.events.worker import EventsWorker
from prefect.futures import PrefectFuture
from prefect.logging.configuration import setup_logging
from prefect.logging.handlers import APILogHandler
from prefect.settings import PREFECT_API_URL
from prefect.task_runners import TaskRunner
from prefect_ray.context import remote_options
from ray._private.grpc_utils import init_grpc_channel
from ray._private.ray_constants import GLOBAL_GRPC_OPTIONS
from ray.core.generated.gcs_service_pb2 import CheckAliveRequest
from ray.core.generated.gcs_service_pb2_grpc import NodeInfoGcsServiceStub
from ray.core.generated.ray_client_pb2 import ClusterInfoRequest, ClusterInfoType
from ray.core.generated.ray_client_pb2_grpc import RayletDriverStub
from ray.exceptions import AuthenticationError, GetTimeoutError, OutOfMemoryError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt

from gsec_core.config import AUTO, PipelineConfig
from gsec_core.devices import usable_cores
from gsec_core.errors import GsecError, Refused, Unreachable, shortened
from gsec_core.stages.base import Stage, Step
from gsec_core.store import Store
from tasks import progress, slices, watchdog
from tasks.engine import Sums

ANSWER = 25.0
"""Seconds that a cluster may take to answer."""

SLOW = 30.0
"""Seconds without an answer of a node after which a warning says so."""

LOOK = 240.0
"""Seconds that the nodes may take to start a process and to check the store. Ray reports a node that is gone within 30; a very busy one needs over 60."""

ALONE = 5.0
"""Seconds without progress after which the driver looks whether any node is left."""

RETRIES = 5
"""How many nodes or workers a slice may lose before it fails."""

OBJECT_STORE = 100 * 2**20
"""Bytes of the object store of a cluster on this machine. Objects are only names of shards and counts."""

FLUSH = 5.0
"""Seconds that a slice waits at its end for its messages to reach Prefect."""

ATTEMPTS = 3
"""How often to connect to a `ray://` address. Ray forks a process for each driver there, and now and then it dies at its start."""

_GIB = 2**30

_log = logging.getLogger("gsec_core.engine")  # below the library's logger: commands print its warnings, and deployed runs forward them to Prefect

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_task_oom_retries", str(RETRIES))  # Ray's default is to start a slice that was killed for lack of memory again forever


@contextmanager
def connected(config: PipelineConfig) -> "Iterator[Cluster]":
    """Context manager with the cluster of the settings, all of whose nodes can use the store.

    Raises Refused if there is no such cluster, or if no node has the resources that a slice needs.
    """
    _connect(config.ray.address)
    try:
        yield Cluster(config)
    finally:
        ray.shutdown()


def _connect(address: str | None) -> None:
    quiet: dict[str, Any] = {"namespace": "gsec", "log_to_driver": False, "logging_level": logging.WARNING}
    try:
        if address is None:
            ray.init("local", num_cpus=usable_cores(), object_store_memory=OBJECT_STORE, include_dashboard=False, **quiet)
            return
        if address != AUTO:
            _check_answer(address)
        for attempt in Retrying(retry=retry_if_exception_type(ConnectionAbortedError), stop=stop_after_attempt(ATTEMPTS), reraise=True):
            with attempt:
                ray.init(address, **quiet)
    except Exception as error:  # noqa: BLE001 - Ray raises errors of many kinds, for example Exception itself if a node does not start in time
        if address is None:
            raise Refused(f"engine = ray: no Ray cluster can be started on this machine ({_line(error)}). Try again, or use engine = threads.") from None
        raise Refused(
            f"ray.address = {address}: no Ray cluster can be used there ({_line(error)}). Start one of Ray {ray.__version__} on Python "
            f"{platform.python_version()}, or leave the setting out to use a cluster on this machine."
        ) from None


def _check_answer(address: str) -> None:
    """Raises ConnectionError if no Ray cluster answers at the address. Ray itself would try for minutes, also if another program answers."""
    place = urlsplit(address if "://" in address else f"//{address}")
    with init_grpc_channel(place.netloc, GLOBAL_GRPC_OPTIONS) as channel:
        try:
            if place.scheme:
                RayletDriverStub(channel).ClusterInfo(ClusterInfoRequest(type=ClusterInfoType.PING), timeout=ANSWER)
            else:
                NodeInfoGcsServiceStub(channel).CheckAlive(CheckAliveRequest(), timeout=ANSWER)
        except grpc.RpcError as error:
            raise ConnectionError(cast(grpc.Call, error).details()) from None
        except AuthenticationError:
            return  # `ray.init` raises it with a shorter message


class Cluster:
    """The engine (see `tasks.engine.Engine`) on a Ray cluster."""

    def __init__(self, config: PipelineConfig) -> None:
        nodes = _workers()
        wanted = config.ray
        self.cpus = wanted.cpus or min((int(node["Resources"]["CPU"]) for node in nodes), default=1)
        self._options: dict[str, Any] = {"num_cpus": self.cpus, "max_retries": RETRIES, "max_calls": 0, "scheduling_strategy": "SPREAD"}
        if wanted.memory:
            self._options["memory"] = int(wanted.memory * _GIB)
        self._gpus = wanted.gpus
        _check_room(nodes, {"CPU": self.cpus, "GPU": wanted.gpus, "memory": wanted.memory * _GIB})
        _check_nodes(nodes, Store.open(config.store))
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
        self._told: Any = ray.remote(num_cpus=0, max_restarts=-1)(_Told).options(scheduling_strategy=here).remote()

    def runner(self, config: PipelineConfig) -> TaskRunner[Any]:
        return _Runner()  # uses the open connection

    def count(self, config: PipelineConfig, step: Step) -> int:
        return 1 if step.whole else config.max_slices

    def submit(self, config: PipelineConfig, run_id: str, stage: Stage, step: int, parts: Sequence[Sequence[str]]) -> list[PrefectFuture[Sums]]:
        away = partial(Away, self._told, slices.reads())
        gpus = self._gpus if stage.on_device else 0
        # Without this, a slice that got no GPU would still use those of its node.
        device = {} if gpus else {"device": "cpu"}
        of_a_slice = {
            "store": Store.open(config.store).url,
            "threads": config.threads or self.cpus,
            "encode": config.encode.model_copy(update={"workers": config.encode.workers or self.cpus, **device}),
            "train": config.train.model_copy(update=device),
        }
        config = config.model_copy(update=of_a_slice)
        with remote_options(**self._options, num_gpus=gpus):
            return [slices.run_slice.submit(config, run_id, stage.name, step, number, list(part), away(uuid4().hex)) for number, part in enumerate(parts, 1)]

    def wait(self, futures: Sequence[PrefectFuture[Sums]], stage: str, seconds: float) -> list[Sums]:
        waiting = [cast(Any, future).wrapped_future for future in futures]
        warned = False
        with _faults(RayError, ConnectionError), watchdog.clock(stage) as clock:
            while waiting:
                done, waiting = ray.wait(waiting, num_returns=len(waiting), timeout=watchdog.POLL)
                self._hear()
                if done:
                    clock.move()
                if not warned and clock.idle() > ALONE and not _workers():
                    _log.warning("no node of the Ray cluster is left. Stage %s waits for one to join.", stage)
                    warned = True
                if clock.idle() > seconds:
                    for ref in waiting:
                        ray.cancel(ref, force=True)
                    raise GsecError(watchdog.hung(stage, seconds))
        with _faults(RayError):  # not ConnectionError, which a slice may raise itself, for example for the store
            return [future.result() for future in futures]

    def _hear(self) -> None:
        """Tell the watchers of this process the progress that slices have reported."""
        try:
            sums = ray.get(self._told.take.remote(), timeout=watchdog.POLL)
        except (GetTimeoutError, ray.exceptions.ActorDiedError, ray.exceptions.ActorUnavailableError):
            return  # Ray restarts the actor; a progress bar that lags must not fail the work
        for stage, by in sums.items():
            progress.advance(stage, by)


class _Runner(prefect_ray.RayTaskRunner):  # type: ignore[misc]
    """Ray's task runner, which waits for messages to Prefect at the end of a task: its process may end then, and they would be lost."""

    @staticmethod
    def _run_prefect_task(*args: Any, **kwargs: Any) -> Any:
        try:
            return prefect_ray.RayTaskRunner._run_prefect_task(*args, **kwargs)
        finally:
            EventsWorker.drain_all(timeout=FLUSH, at_exit=False)
            APILogHandler().flush()


@contextmanager
def _faults(*kinds: type[Exception]) -> Iterator[None]:
    try:
        yield
    except OutOfMemoryError as error:
        raise GsecError(
            f"Ray ended a slice for lack of memory each time it was started ({_line(error)}). Set a larger ray.cpus, so that fewer slices share a node, "
            "or use nodes with more memory. What was committed stays; a rerun continues, on any engine."
        ) from error
    except kinds as error:
        raise GsecError(f"the Ray cluster failed ({_line(error)}). What was committed stays; a rerun continues, on any engine.") from error


class _Told:
    """Actor that adds up the progress that slices report until the driver takes it."""

    def __init__(self) -> None:
        self._sums: Counter[str] = Counter()
        self._of: dict[str, Counter[str]] = {}

    def begin(self, slice: str) -> None:
        """A slice begins. What it has reported before is taken back, since its process died and it reports that again."""
        self._sums.subtract(self._of.pop(slice, Counter[str]()))

    def add(self, slice: str, sums: Mapping[str, int]) -> None:
        self._sums.update(sums)
        self._of.setdefault(slice, Counter[str]()).update(sums)

    def take(self) -> dict[str, int]:
        sums, self._sums = dict(self._sums), Counter()
        return sums


@dataclass(frozen=True)
class Away:
    """The sender of a slice (see `slices.Sender`), for a slice in another process."""

    told: Any
    """The actor that collects progress."""
    reads: int
    """See `slices.reads`."""
    slice: str
    """A unique name of the slice."""

    @contextmanager
    def joined(self) -> Iterator[None]:
        """Context manager in which progress is reported to the actor, and logs go where the Prefect settings of the sender say."""
        _set_up_logging()  # again: at its import Prefect used the settings of this machine
        slices.follow(self.reads)
        self.told.begin.remote(self.slice)
        teller = _Teller(self.told, self.slice)
        try:
            with progress.watched(teller):
                yield
        finally:
            teller.tell()


class _Teller:
    """A `progress.Watcher` that reports to an actor, at most a few times a second."""

    def __init__(self, told: Any, slice: str) -> None:
        self._told, self._slice, self._sums, self._clock = told, slice, Counter[str](), watchdog.Clock()

    def begin(self, stage: str, units: int, unit: str, there: int) -> None:
        """Nothing to do: the sender's process reports when a stage begins and ends."""

    def end(self, stage: str, sums: Mapping[str, float]) -> None:
        """See `begin`."""

    def advance(self, stage: str, by: int) -> None:
        self._sums[stage] += by
        if self._clock.idle() > watchdog.POLL / 2:
            self.tell()

    def tell(self) -> None:
        self._clock.move()
        sums, self._sums = dict(self._sums), Counter()
        self._told.add.remote(self._slice, sums)


_set_up_logging = cache(setup_logging)


def _workers() -> list[dict[str, Any]]:
    """The nodes that are alive and take slices."""
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return [node for node in nodes if node["Alive"] and node["Resources"].get("CPU")]


def _check_room(nodes: Sequence[Mapping[str, Any]], wanted: Mapping[str, float]) -> None:
    """Raises Refused if no node has the resources of a slice: Ray would wait for such a node forever."""
    if any(all(node["Resources"].get(kind, 0) >= amount for kind, amount in wanted.items()) for node in nodes):
        return
    most = {kind: max((node["Resources"].get(kind, 0) for node in nodes), default=0) for kind in wanted}
    said = [
        f"{setting} = {wanted[kind] / unit:g}, of {most[kind] / unit:g}"
        for kind, setting, unit in (("CPU", "ray.cpus", 1), ("GPU", "ray.gpus", 1), ("memory", "ray.memory", _GIB))
        if wanted[kind]
    ]
    raise Refused(f"none of {len(nodes)} nodes of the Ray cluster has what a slice needs: {'; '.join(said)} on the largest. Request less, or add a node.")


def _check_nodes(nodes: Sequence[Mapping[str, Any]], store: Store) -> None:
    """Check that every node sees files that this process writes to the store, and vice versa. Raises Refused with the name of a node that does not."""
    mark = f"runs/.probe-{uuid4().hex}"
    marks = {f"{mark}-{number}": node for number, node in enumerate(nodes)}
    api = PREFECT_API_URL.value()
    store.check_writable()
    store.files.create(mark, b"gsec")
    try:
        asked = {
            ray.remote(num_cpus=0, max_retries=0)(_looked)
            .options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False))
            .remote(store.url, mark, own, api): own
            for own, node in marks.items()
        }
        answered, silent = ray.wait(list(asked), num_returns=len(asked), timeout=SLOW)
        if silent:
            names = ", ".join(_name(marks[asked[ref]]) for ref in silent)
            _log.warning("waiting for up to %.0f s for a process to start on %s", LOOK, names)
            answered, silent = ray.wait(list(asked), num_returns=len(asked), timeout=LOOK - SLOW)
        for ref in silent:
            raise Refused(f"node {_name(marks[asked[ref]])} of the Ray cluster did not answer in {LOOK:.0f} s. Repair it, or remove it from the cluster.")
        for ref in answered:
            _check_node(_name(marks[asked[ref]]), ref, store, asked[ref])
    finally:
        for own in (mark, *marks):
            with suppress(FileNotFoundError):  # the node wrote no file
                store.files.remove(own)


def _check_node(name: str, ref: Any, store: Store, own: str) -> None:
    ours = version("gsec")
    try:
        why, theirs = ray.get(ref)
    except OutOfMemoryError as error:
        raise Refused(f"node {name} of the Ray cluster is short of memory ({_line(error)}). Free some, or remove it from the cluster.") from None
    except RayError as error:
        raise Refused(f"node {name} of the Ray cluster cannot run gsec {ours} ({_line(error)}). Install the same on all nodes.") from None
    if theirs != ours:
        raise Refused(f"node {name} of the Ray cluster has gsec {theirs}, and this machine {ours}. Install the same on all nodes.")
    if why is None:
        try:
            store.files.read(own)
        except FileNotFoundError:
            why = f"files that it writes to {store.url} are not seen from here. Use a folder that all nodes share, or a bucket"
    if why is not None:
        raise Refused(f"node {name} of the Ray cluster: {why}.")


def _looked(url: str, mark: str, own: str, api: str | None) -> tuple[str | None, str]:
    """Runs on a node. Returns why the node cannot work (None if it can), and its version of gsec."""
    why = None
    try:
        files = Store.open(url).files
        files.read(mark)
        files.create(own, b"gsec")
    except FileNotFoundError:
        why = f"it does not see files written to {url}. Use a folder that all nodes share, or a bucket"
    except (OSError, Unreachable, Refused) as error:
        why = f"it cannot use the store {url} ({_line(error)}). Give it the permissions and credentials that this machine has"
    try:
        if api and why is None:
            httpx.get(f"{api}/health", timeout=10).raise_for_status()
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        why = f"Prefect's server does not answer it at {api} ({_line(error)}). Set PREFECT_API_URL to an address that all nodes reach"
    return why, version("gsec")


def _name(node: Mapping[str, Any]) -> str:
    return f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']}, {node['NodeID'][:8]})"


def _line(error: object) -> str:
    """The last line of an error, which may be the traceback of another process; the first, if Ray ended a process for lack of memory."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    text = lines[0 if isinstance(error, OutOfMemoryError) else -1]
    return shortened(text, 300).rstrip(".")
