"""`gsec doctor`: checks whether everything that a run needs is there, one line for each check. All checks run, even if one fails.

Packages that may be missing or broken are imported inside the checks, which report them.
"""

import importlib
import json
import os
import platform
import shutil
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, requires, version
from tempfile import gettempdir
from typing import TYPE_CHECKING
from uuid import uuid4

import psutil
from packaging.requirements import Requirement
from packaging.version import Version

from flows import terminal
from flows.orchestrator import orchestrator
from gsec_core.config import PipelineConfig
from gsec_core.devices import product_dtype, resolve, usable_cores
from gsec_core.errors import BadRecord, GsecError, without_secrets
from gsec_core.sources.address import is_local

if TYPE_CHECKING:
    from gsec_core.stages.encode import Encoding
    from gsec_core.store.files import Files

LEAST_FREE = 2**30
"""Free bytes of memory, and of the disks of the store and the scratch folder, below which even a small run fails."""

_SHOWN = ("gsec", "torch", "torchvision", "open_clip_torch", "faiss-cpu", "pyarrow", "prefect", "fastapi", "sqlalchemy")
_COMPILED = ("torch", "torchvision", "faiss", "pyarrow", "polars")


def doctor(config: PipelineConfig, verify: bool) -> int:
    """Print one line for each check. Returns 1 if one of them fails, else 0."""
    checks: dict[str, Callable[[], str]] = {
        "packages": packages,
        "machine": lambda: machine(config),
        "store": lambda: store(config),
        "scratch": lambda: scratch(config),
        "encoder": lambda: encoder(config),
        "captioner": lambda: captioner(config),
        "namer": lambda: namer(config),
        "Prefect": prefect,
    }
    if verify:
        checks["shards"] = lambda: shards(config)
    failed = 0
    for name, check in checks.items():
        try:
            line = f"ok    {name}: {check()}"
        except GsecError as error:
            line = f"FAIL  {name}: {error}"
        except Exception as error:  # noqa: BLE001 - any error is reported as the result of its check
            line = f"FAIL  {name}: {type(error).__name__}: {error}. This is unexpected: please report it."
        failed += line.startswith("FAIL")
        terminal.out.print(without_secrets(" ".join(line.splitlines())))
    return 1 if failed else 0


def packages() -> str:
    """Check that the installed packages have versions that gsec supports, and that compiled ones can be imported.

    Versions that pip picks by itself, or that another project requires, may not work together.
    """
    wrong = {}
    for requirement in map(Requirement, requires("gsec") or ()):
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            found = version(requirement.name)
        except PackageNotFoundError:
            wrong[str(requirement)] = f"{requirement.name} is not installed"
        else:
            if not requirement.specifier.contains(found, prereleases=True):
                wrong[str(requirement)] = f"{requirement.name} is {found}"
    if wrong:
        raise GsecError(f"{', '.join(wrong.values())}. Install what gsec works with: pip install {' '.join(map(json.dumps, wrong))}")
    for module in _COMPILED:
        try:
            importlib.import_module(module)
        except (ImportError, OSError) as error:
            raise GsecError(f"{module} cannot be imported ({error}). Install gsec into a new environment of its own.") from None
    return f"Python {platform.python_version()}, {', '.join(f'{name} {version(name)}' for name in _SHOWN)}"


def machine(config: PipelineConfig) -> str:
    """Cores, memory, GPU and whether bfloat16 is fast; check that the devices of the settings exist."""
    devices = {setting: resolve(value, setting) for setting, value in (("encode.device", config.encode.device), ("train.device", config.train.device))}
    said = [f"{usable_cores()} usable cores of {os.cpu_count()}, threads = {config.threads or f'0, which is {usable_cores()}'}", _memory()]
    said += [f"{setting} = {device} ({', '.join(_about(device))})" for setting, device in devices.items()]
    return ", ".join(said)


def _memory() -> str:
    free = psutil.virtual_memory().available
    if free < LEAST_FREE:
        raise GsecError(f"only {_gib(free)} of memory are free. End other programs, or use a larger machine.")
    return f"{_gib(free)} memory free"


def _about(device: str) -> list[str]:
    import torch

    bfloat16 = f"{'multiplies' if product_dtype(device) == torch.bfloat16 else 'does not multiply'} bfloat16"
    if device == "cpu":
        return [bfloat16]
    free, total = torch.cuda.mem_get_info(device)
    return [torch.cuda.get_device_name(device), bfloat16, f"{_gib(free)} of {_gib(total)} free"]


def store(config: PipelineConfig) -> str:
    """Check that the store can be written, that its curation logs can be read, that no file is overwritten, and that there is disk space."""
    from gsec_core.store import Store

    opened = Store.open(config.store)
    opened.check_writable()
    said = [f"{opened.url} can be written", f"{len(opened.corpora())} corpora, {len(opened.runs())} runs"]
    if acts := _acts(opened.files):
        said.append(f"{acts} acts of curation")
    if is_local(opened.url):
        said.append(_room(opened.url, "--store"))
    probe = f".probe-{uuid4().hex}"  # in the root of the store; if that is new, removing the probe removes it too
    made = opened.files.create(probe, b"first"), opened.files.create(probe, b"second")
    kept = opened.files.read(probe)
    opened.files.remove(probe)
    if (made, kept) != ((True, False), b"first"):
        raise GsecError(f"--store {opened.url}: an existing file could be overwritten, so runs could damage each other. Choose another store.")
    return ", ".join(said)


def _acts(files: "Files") -> int:
    """Number of acts of curation. Raises GsecError if some cannot be read or are of a newer gsec."""
    from gsec_core.curation import Log

    acts, wrong = 0, []
    for pipeline in Log.pipelines(files):
        try:
            found = Log(files, pipeline).read()
        except BadRecord as error:
            wrong.append(str(error))
            continue
        acts += len(found)
        newer = [str(act.number) for act in found if act.unknown]
        if newer:
            wrong.append(f"pipeline {pipeline}: acts {', '.join(newer)} come from a newer gsec and are ignored here. Upgrade gsec.")
    if wrong:
        raise GsecError(" ".join(wrong))
    return acts


def scratch(config: PipelineConfig) -> str:
    """Check that temporary files can be made in the scratch folder, and that there is disk space."""
    from gsec_core.stages.scratch import scratch_file

    scratch_file(config).close()
    folder = config.scratch or gettempdir()
    return f"{folder} can be written, {_room(folder, 'scratch =')}"


def _room(folder: str, setting: str) -> str:
    free = shutil.disk_usage(folder).free
    if free < LEAST_FREE:
        raise GsecError(f"{setting} {folder}: only {_gib(free)} are free there. Make room, or name another folder.")
    return f"{_gib(free)} free"


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"


def encoder(config: PipelineConfig) -> str:
    """Check that the encoder loads and gives unit vectors for a picture and a text; a second encoder only for a picture."""
    from gsec_core.stages import encode

    return "; ".join(_encoder(config, stage, with_texts=stage is encode.STAGE) for stage in encode.stages(config))


def _encoder(config: PipelineConfig, stage: "Encoding", with_texts: bool) -> str:
    import numpy as np
    from PIL import Image

    name, loaded = stage.encoder(config), stage.load(config)
    pixels = loaded.preprocess(Image.effect_noise((64, 48), 60).convert("RGB"))
    vectors = {"picture": loaded.encode_images(pixels[None]).image}
    if with_texts:
        vectors["text"] = loaded.encode_texts(["a photo of a cat"])
    for what, vector in vectors.items():
        length = float(np.linalg.norm(vector))
        if not abs(length - 1) < 1e-3:
            raise GsecError(
                f"{stage.setting} = {json.dumps(name)}: a {what} becomes a vector of length {length:.3f} instead of 1. "
                "Try encode.precision = fp32; if it is fp32 already, the weights are damaged."
            )
    joint = f", {loaded.joint_dim} shared with text" if loaded.joint_dim else ""
    return f"{name} has {loaded.dim} dimensions{joint}"


def captioner(config: PipelineConfig) -> str:
    """Check that the captioner can be asked; a server must answer about a plain picture."""
    from gsec_core.captioners import load_captioner

    loaded = load_captioner(config.describe, device=config.encode.device, threads=config.threads)
    loaded.check()
    return f"{config.describe.captioner} can be used, images at once: {loaded.concurrency}, form of sentences: {loaded.form}"


def namer(config: PipelineConfig) -> str:
    """Check that the namer can be asked."""
    from gsec_core.naming.namers import load_namer, namer_of

    load_namer(config).check()
    return f"{namer_of(config)} can be used"


def prefect() -> str:
    """Check that the server answers and is not too old, and that a flow runs: only that proves that the installed versions work together."""
    with orchestrator() as url:
        from prefect import __version__, flow
        from prefect.client.base import ServerType
        from prefect.client.orchestration import get_client

        @flow(name="gsec-doctor", persist_result=False)
        def nothing() -> str:
            return "a flow ran"

        if url is None:
            return f"{nothing()} on a temporary server of this process; set PREFECT_API_URL to use one that stays"
        with get_client(sync_client=True, httpx_settings={"timeout": 10}) as client:
            its = __version__ if client.server_type == ServerType.CLOUD else client.api_version()
        if Version(its).release[:2] < Version(__version__).release[:2]:
            raise GsecError(f"PREFECT_API_URL = {url}: the server is Prefect {its}, too old for {__version__} here. Upgrade the server.")
        return f"{nothing()} on {url}, Prefect {its}"


def shards(config: PipelineConfig) -> str:
    """Verify the checksums of every shard, and set damaged shards aside."""
    from gsec_core.results import status as state
    from gsec_core.store import Store

    damaged = state.verify(Store.open(config.store))
    if damaged:
        raise GsecError(
            f"{len(damaged)} damaged: {'; '.join(damaged)}. The next run of their corpus makes them again, except a captions log: to request its answers "
            "again, set describe.accept_loss = true."
        )
    return "every shard of every table is as it was written"
