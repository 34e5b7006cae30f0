"""The engine that runs slices on the nodes of a Ray cluster.

The Prefect task of a slice is in a thread of this process. It sends the work to a node and waits, so that nodes need no Prefect server.
Rows never pass through Ray. A slice gets the names of its shards, reads its input from the store and commits there, as a thread does.
Ray may therefore lose a node, or run a slice twice: the first valid shard counts.
"""

import logging
import os
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from logging.handlers import QueueHandler
from queue import SimpleQueue
from threading import Event, Lock
from typing import Any, cast
from urllib.parse import urlsplit
from uuid import uuid4

import grpc
import ray
from prefect.runtime import flow_run, task_run
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner
from ray._private.grpc_utils import init_grpc_channel
from ray._private.ray_constants import GLOBAL_GRPC_OPTIONS
from ray.core.generated.gcs_service_pb2 import CheckAliveRequest
from ray.core.generated.gcs_service_pb2_grpc import NodeInfoGcsServiceStub
from ray.core.generated.ray_client_pb2 import ClusterInfoRequest, ClusterInfoType
from ray.core.generated.ray_client_pb2_grpc import RayletDriverStub
from ray.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    AuthenticationError,
    LocalRayletDiedError,
    NodeDiedError,
    OutOfMemoryError,
    RayError,
    RayTaskError,
    WorkerCrashedError,
)
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from tenacity import Retrying, retry_if_exception_type, sleep_using_event, stop_after_attempt, wait_exponential

from gsec_core import pipeline
from gsec_core.config import AUTO, PipelineConfig
from gsec_core.devices import usable_cores
from gsec_core.errors import GsecError, Refused, Unreachable, shortened
from gsec_core.stages.base import Progress, Stage, Step
from gsec_core.store import Store
from tasks import progress, slices, watchdog
from tasks.slices import Sums

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

PAUSE = 20.0
"""The longest pause, in seconds, before a slice is started again. A node that is short of memory may have more a little later."""

FLUSH = 5.0
"""Seconds that a slice waits at its end for its messages to arrive."""

ATTEMPTS = 3
"""How often to connect to a `ray://` address. Ray forks a process for each driver there, and now and then it dies at its start."""

_GIB = 2**30

_LIBRARY = "gsec_core"

_log = logging.getLogger("gsec_core.engine")  # below the library's logger: commands print its warnings, and deployed runs forward them to Prefect

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")


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


Message = int | Future[tuple[Sums, str, int]] | None
"""What the thread of a slice receives: how many units are done so far, at last the future that holds the result; None ends the slice."""


class Cluster:
    """The engine (see `tasks.engine.Engine`) on a Ray cluster."""

    def __init__(self, config: PipelineConfig) -> None:
        nodes = _workers()
        wanted = config.ray
        self.cpus = wanted.cpus or min((int(node["Resources"]["CPU"]) for node in nodes), default=1)
        # Slices are started again here and not by Ray (`max_retries`), which would start one that was ended for lack of memory again forever.
        options: dict[str, Any] = {"name": "slice", "num_cpus": self.cpus, "max_retries": 0, "max_calls": 0, "scheduling_strategy": "SPREAD"}
        if wanted.memory:
            options["memory"] = int(wanted.memory * _GIB)
        self._gpus = wanted.gpus
        _check_room(nodes, {"CPU": self.cpus, "GPU": wanted.gpus, "memory": wanted.memory * _GIB})
        _check_nodes(nodes, Store.open(config.store))
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
        self._told: Any = ray.remote(num_cpus=0, max_restarts=-1)(_Told).options(scheduling_strategy=here).remote()
        self._take: Any = None
        self._worked: Any = ray.remote(**options)(_worked)
        self._inboxes: dict[str, SimpleQueue[Message]] = {}
        self._ended = Event()

    def runner(self, config: PipelineConfig) -> TaskRunner[Any]:
        return ThreadPoolTaskRunner(max_workers=config.max_slices)  # threads only wait for nodes

    def count(self, config: PipelineConfig, step: Step) -> int:
        return 1 if step.whole else config.max_slices

    def run(self, config: PipelineConfig, run_id: str, stage: Stage, step: int, parts: Sequence[Sequence[str]], seconds: float) -> list[Sums]:
        heard = watchdog.Clock()
        warned = False

        def look(clock: watchdog.Clock) -> None:
            nonlocal warned
            if heard.idle() < watchdog.POLL / 2:
                return
            heard.move()
            self._hear()
            if not warned and clock.idle() > ALONE and not _workers():
                _log.warning("no node of the Ray cluster is left. Stage %s waits for one to join.", stage.name)
                warned = True

        try:
            futures = slices.submit(self._make, config, run_id, stage, step, parts)
            with _faults():
                watchdog.wait(futures, stage.name, seconds, look)
                self._hear()
        except BaseException:
            self._end()  # the flow waits for its tasks
            raise
        return [future.result() for future in futures]

    def _make(self, config: PipelineConfig, run_id: str, stage: str, step: int, names: list[str], advance: Progress) -> tuple[Sums, str]:
        """A `slices.Maker` that makes the shards on a node. A slice whose node or process is lost is started again."""
        gpus = self._gpus if pipeline.stage(stage).on_device else 0
        # Without this, a slice that got no GPU would still use those of its node.
        device = {} if gpus else {"device": "cpu"}
        of_a_slice = {
            "store": Store.open(config.store).url,
            "threads": config.threads or self.cpus,
            "encode": config.encode.model_copy(update={"workers": config.encode.workers or self.cpus, **device}),
            "train": config.train.model_copy(update=device),
        }
        work = partial(self._worked.options(num_gpus=gpus).remote, config.model_copy(update=of_a_slice), run_id, stage, step, names)
        done = 0

        def report(units: int) -> None:
            nonlocal done
            if units != done:
                advance(units - done)
                done = units

        attempts = Retrying(
            retry=retry_if_exception_type((WorkerCrashedError, NodeDiedError, LocalRayletDiedError, OutOfMemoryError)),
            stop=stop_after_attempt(1 + RETRIES),
            wait=wait_exponential(max=PAUSE),
            sleep=sleep_using_event(self._ended),
            reraise=True,
        )
        with _faults():
            return attempts(self._attempt, work, report)

    def _attempt(self, work: Callable[["Sender"], Any], report: Callable[[int], None]) -> tuple[Sums, str]:
        """Start a slice on a node, and report how many units are done until it ends."""
        sender = Sender(self._told, uuid4().hex, slices.reads(), logging.getLogger(_LIBRARY).getEffectiveLevel(), flow_run.id, task_run.id)
        inbox = self._inboxes[sender.slice] = SimpleQueue()
        try:
            if self._ended.is_set():  # only now, because `_end` does not see an inbox that is made later
                raise progress.Interrupted
            report(0)  # takes back what an attempt that was lost had reported
            work(sender).future().add_done_callback(inbox.put)
            while isinstance(message := inbox.get(), int):
                report(message)
            if message is None:
                raise progress.Interrupted
        finally:
            del self._inboxes[sender.slice]
        sums, node, units = message.result()
        report(units)
        return sums, node

    def _hear(self) -> None:
        """Handle what slices on the nodes have told since the last call."""
        if self._take is None:
            self._take = self._told.take.remote()
        if not ray.wait([self._take], timeout=watchdog.POLL)[0]:
            return  # a busy machine; the answer is not lost, but handled by the next call
        told, self._take = self._take, None
        try:
            messages = ray.get(told)
        except (ActorDiedError, ActorUnavailableError):
            return  # Ray restarts the actor; a progress bar that lags must not fail the work
        for slice, message in messages:
            inbox = self._inboxes.get(slice)
            if isinstance(message, logging.LogRecord):
                logging.getLogger(message.name).handle(message)
            elif inbox is not None:
                inbox.put(message)

    def _end(self) -> None:
        """Wait for no slice any more, and let no other begin. Ray ends those on the nodes when the connection is closed, which comes next."""
        self._ended.set()
        for inbox in list(self._inboxes.values()):
            inbox.put(None)


@contextmanager
def _faults() -> Iterator[None]:
    """Context manager that raises the error of a slice as the slice raised it, and turns those of Ray into a GsecError."""
    try:
        yield
    except RayTaskError as error:
        raise error.cause from error
    except OutOfMemoryError as error:
        raise GsecError(
            f"Ray ended a slice for lack of memory each time it was started ({_line(error)}). Set a larger ray.cpus, so that fewer slices share a node, "
            "or use nodes with more memory. What was committed stays; a rerun continues, on any engine."
        ) from error
    except (RayError, ConnectionError) as error:
        raise GsecError(f"the Ray cluster failed ({_line(error)}). What was committed stays; a rerun continues, on any engine.") from error


class _Told:
    """Actor that keeps what slices tell until the driver takes it: the units done so far, and log records."""

    def __init__(self) -> None:
        self._messages: list[tuple[str, int | logging.LogRecord]] = []

    def add(self, slice: str, message: int | logging.LogRecord) -> None:
        self._messages.append((slice, message))

    def take(self) -> list[tuple[str, int | logging.LogRecord]]:
        messages, self._messages = self._messages, []
        return messages


@dataclass(frozen=True)
class Sender:
    """The task that sends a slice to a node."""

    told: Any
    """The actor that takes messages to it."""
    slice: str
    """A unique name of this attempt to make the slice."""
    reads: int
    """See `slices.reads`."""
    level: int
    """The level of log records that it wants."""
    flow_run_id: str | None
    task_run_id: str | None


def _worked(config: PipelineConfig, run_id: str, stage: str, step: int, names: list[str], sender: Sender) -> tuple[Sums, str, int]:
    """Runs on a node. Makes a slice and returns what `slices.make` does, and how many units were done."""
    slices.follow(sender.reads)
    library, teller = logging.getLogger(_LIBRARY), _Teller(sender)
    library.setLevel(sender.level)
    library.addHandler(teller)
    try:
        return *slices.make(config, run_id, stage, step, names, teller.advance), teller.done
    finally:
        library.removeHandler(teller)
        teller.wait()


class _Teller(QueueHandler):
    """Tells the sender of a slice its log records at once, and its progress at most a few times a second."""

    def __init__(self, sender: Sender) -> None:
        super().__init__(SimpleQueue())
        self.setFormatter(logging.Formatter(f"{platform.node()}: %(message)s"))
        self._sender, self._clock, self._counts = sender, watchdog.Clock(), Lock()
        self._sent: Any = None
        self.done = 0

    def advance(self, by: int) -> None:
        with self._counts:
            self.done += by
            if self._clock.idle() > watchdog.POLL / 2:
                self._clock.move()
                self._tell(self.done)

    def enqueue(self, record: logging.LogRecord) -> None:
        # With these, Prefect shows the record as one of the task.
        record.flow_run_id, record.task_run_id = self._sender.flow_run_id, self._sender.task_run_id
        self._tell(record)

    def wait(self) -> None:
        """Wait until the messages have arrived, since the process may end before they are sent."""
        if self._sent is not None:
            ray.wait([self._sent], timeout=FLUSH)

    def _tell(self, message: int | logging.LogRecord) -> None:
        self._sent = self._sender.told.add.remote(self._sender.slice, message)


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
    store.check_writable()
    store.files.create(mark, b"gsec")
    try:
        asked = {
            ray.remote(num_cpus=0, max_retries=0)(_looked)
            .options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False))
            .remote(store.url, mark, own): own
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
            _check_node(marks[asked[ref]], ref, store, asked[ref])
    finally:
        for own in (mark, *marks):
            with suppress(FileNotFoundError):  # the node wrote no file
                store.files.remove(own)


def _check_node(node: Mapping[str, Any], ref: Any, store: Store, own: str) -> None:
    name, ours = _name(node), version("gsec")
    try:
        why, theirs = ray.get(ref)
    except OutOfMemoryError as error:
        raise Refused(f"node {name} of the Ray cluster is short of memory ({_line(error)}). Free some, or remove it from the cluster.") from None
    except RayError as error:
        if node["NodeID"] not in {other["NodeID"] for other in _workers()}:
            _log.warning("node %s has left the Ray cluster", name)
            return
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


def _looked(url: str, mark: str, own: str) -> tuple[str | None, str]:
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
    return why, version("gsec")


def _name(node: Mapping[str, Any]) -> str:
    return f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']}, {node['NodeID'][:8]})"


def _line(error: object) -> str:
    """The last line of an error, which may be the traceback of another process; the first, if Ray ended a process for lack of memory."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    text = lines[0 if isinstance(error, OutOfMemoryError) else -1]
    return shortened(text, 300).rstrip(".")
