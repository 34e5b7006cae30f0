"""Limit the places that a deployed flow may use: users of the dashboard choose its parameters, and must not read or write elsewhere.

The variable ``GSEC_ROOTS`` of the worker lists the allowed folders, buckets and servers, separated by commas. It does not limit commands in a
user's own shell.
"""

import os
from collections.abc import Iterator
from urllib.parse import urlsplit

from prefect.context import FlowRunContext
from prefect.runtime import deployment

from gsec_core.captioners.servers import checked_urls
from gsec_core.captioners.table import file_and_column
from gsec_core.config import PipelineConfig
from gsec_core.encoders.open_clip import FOLDER
from gsec_core.errors import Refused
from gsec_core.text.vocabulary import FILE

VARIABLE = "GSEC_ROOTS"


def deployed() -> bool:
    """Whether this flow run belongs to a deployment, directly or as a subflow."""
    return deployment.id is not None


def deployed_itself() -> bool:
    """Whether a deployment started this very flow run. Its parent is not trusted, because any user who can start a flow run can give it one."""
    context = FlowRunContext.get()
    return context is not None and context.flow_run is not None and context.flow_run.deployment_id is not None


def check(config: PipelineConfig) -> None:
    """Raises Refused if this is a deployed flow and a setting names a place that is under no root of this worker."""
    if not deployed():
        return
    if config.ingest.follow_links:
        raise Refused("ingest.follow_links = true: a deployed flow follows no links to folders, as they may lead out of its roots. Make the folder a source.")
    roots = [root.strip() for root in os.environ.get(VARIABLE, "").split(",") if root.strip()]
    for setting, place in places(config):
        if not any(_is_under(place, root) for root in roots):
            where = ", ".join(roots) or "nothing"
            raise Refused(
                f"{setting} = {place}: a deployed flow may use what is under {where}. Choose such a place, or have this one added to {VARIABLE} of the worker."
            )


def check_store(url: str) -> None:
    """Like `check`, for the URL of a store alone."""
    check(PipelineConfig(store=url))


def places(config: PipelineConfig) -> Iterator[tuple[str, str]]:
    """Iterate over the settings that name a place: (setting, place)."""
    if config.source is not None:
        yield "source", config.source
    yield "store", config.store
    if config.scratch is not None:
        yield "scratch", config.scratch
    for setting, name in (("encode.encoder", config.encode.encoder), ("text.encoder", config.text.encoder or "")):
        encoder, _, reference = name.partition(":")
        model, _, weights = reference.partition(":")
        if encoder == "open_clip" and (model == FOLDER or os.path.exists(weights)):
            yield setting, weights
    captioner, _, reference = config.describe.captioner.partition(":")
    if config.text.vocabulary.startswith(FILE):
        yield "text.vocabulary", config.text.vocabulary.removeprefix(FILE)
    if captioner == "table":
        yield "describe.captioner", file_and_column(reference)[0]
    if config.describe.template is not None:
        yield "describe.template", config.describe.template
    if captioner == "openai" or (config.publish.namer or "").startswith("openai:"):
        for url in checked_urls(config.describe.url):
            yield "describe.url", url
    address = config.ray.address
    if config.engine == "ray" and address not in (None, "auto"):  # a server there gets a driver's token, and the driver executes its replies
        yield "ray.address", address if "://" in address else f"ray://{address}"


def _is_under(place: str, root: str) -> bool:
    """Whether a folder, file or URL is ``root`` or below it. Symbolic links on this machine are resolved; a URL with ``..`` is never below."""
    if "://" not in place.removeprefix("file://") and "://" not in root.removeprefix("file://"):
        real, top = (os.path.realpath(path.removeprefix("file://")) for path in (place, root))
        return os.path.commonpath([real, top]) == top
    one, other = urlsplit(place), urlsplit(root)
    if (one.scheme, one.netloc) != (other.scheme, other.netloc) or ".." in one.path.split("/"):
        return False
    path, top = one.path.strip("/"), other.path.strip("/")
    return not top or path == top or path.startswith(f"{top}/")
