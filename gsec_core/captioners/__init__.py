"""Captioners by name: ``tagger``, ``openai:MODEL``, ``table:FILE:COLUMN``, or one that another package brings."""

import json
from collections.abc import Mapping

from gsec_core import plugins
from gsec_core.captioners.base import Answer, Captioner, CaptionerFamily, Cost, Subject
from gsec_core.captioners.openai import OpenAICaptioner, openai_identity
from gsec_core.captioners.table import TableCaptioner, table_identity, table_model
from gsec_core.captioners.tagger import TAGGER, Tagger, tagger_identity
from gsec_core.captioners.template import LONGEST_CRITERION, tidy
from gsec_core.config import DescribeConfig
from gsec_core.errors import Refused

__all__ = ["Answer", "Captioner", "CaptionerFamily", "Cost", "Subject", "captioner_identity", "captioner_model", "load_captioner"]

GROUP = "gsec.captioners"
"""Entry point group for captioners from other packages; each entry point is a `CaptionerFamily`."""


class _Tagger:
    usage = "tagger"
    can_be_asked = False

    def load(self, reference: str, config: DescribeConfig, *, device: str, threads: int) -> Captioner:
        return Tagger(device=device, threads=threads)

    def model(self, reference: str) -> str:
        return TAGGER

    def identity(self, reference: str, config: DescribeConfig) -> Mapping[str, object]:
        return tagger_identity()


class _OpenAI:
    usage = "openai:MODEL"
    can_be_asked = True

    def load(self, reference: str, config: DescribeConfig, *, device: str, threads: int) -> Captioner:
        return OpenAICaptioner(reference, config)

    def model(self, reference: str) -> str:
        return reference

    def identity(self, reference: str, config: DescribeConfig) -> Mapping[str, object]:
        return openai_identity(reference, config)


class _Table:
    usage = "table:FILE:COLUMN"
    can_be_asked = False

    def load(self, reference: str, config: DescribeConfig, *, device: str, threads: int) -> Captioner:
        return TableCaptioner(reference)

    def model(self, reference: str) -> str:
        return table_model(reference)

    def identity(self, reference: str, config: DescribeConfig) -> Mapping[str, object]:
        return table_identity(reference)


_CAPTIONERS: dict[str, CaptionerFamily] = {"tagger": _Tagger(), "openai": _OpenAI(), "table": _Table()}


def load_captioner(config: DescribeConfig, *, device: str, threads: int) -> Captioner:
    """Build a captioner. ``device`` and ``threads`` (0 = one a core) are as in `load_encoder`, for captioners that compute in this process.

    Raises Refused naming the setting that is wrong, Unreachable if a table's store does not answer. Does not ask whether a server answers and
    has the model; the captioner's ``check`` does.
    """
    family, reference = _find(config.captioner)
    return family.load(reference, config, device=device, threads=threads)


def captioner_model(config: DescribeConfig) -> str:
    """Name of the model that answers, see `Captioner.model`. Imports no framework."""
    family, reference = _find(config.captioner)
    return family.model(reference)


def captioner_identity(config: DescribeConfig) -> dict[str, object]:
    """Everything on which this captioner's answers depend, for fingerprints: JSON-serialisable, without addresses and keys. Imports no framework.

    Raises Refused and Unreachable as `load_captioner` does.
    """
    family, reference = _find(config.captioner)
    _check_asked(config, family)
    return dict(family.identity(reference, config))


def _check_asked(config: DescribeConfig, family: CaptionerFamily) -> None:
    criterion = config.criterion
    if criterion is not None and (not criterion or criterion != tidy(criterion) or len(criterion) > LONGEST_CRITERION):
        raise Refused(f"describe.criterion: name one aspect on one line of at most {LONGEST_CRITERION} characters, as `the kind of place`.")
    for setting, value in (("criterion", criterion), ("template", config.template)):
        if value is not None and not family.can_be_asked:
            named = config.captioner.partition(":")[0]
            raise Refused(f"describe.{setting}: only a model can be asked, but describe.captioner = {named} is not a model. Name an openai:MODEL.")


def _find(name: str) -> tuple[CaptionerFamily, str]:
    """The family named before the first colon, and the reference after it, which the family interprets."""
    family, _, reference = name.partition(":")
    if family in _CAPTIONERS and (bool(reference) if ":" in _CAPTIONERS[family].usage else name == family):
        return _CAPTIONERS[family], reference
    brought = plugins.brought(GROUP)
    if family in brought and family not in _CAPTIONERS:
        return plugins.load(GROUP, family), reference
    shown = json.dumps(family if family == "table" else name)
    there = [*(f"`{known.usage}`" for known in _CAPTIONERS.values()), *(f"`{other}`" for other in brought)]
    raise Refused(f"describe.captioner = {shown}: there is no such captioner; there are {', '.join(there[:-1])} and {there[-1]}.")
