"""Captioners by name: ``tagger``, ``openai:MODEL``, or ``table:FILE:COLUMN``."""

import json

from gsec_core.captioners.base import Answer, Captioner, Cost, Subject
from gsec_core.captioners.openai import OpenAICaptioner, openai_identity
from gsec_core.captioners.table import TableCaptioner, table_identity, table_model
from gsec_core.captioners.tagger import TAGGER, Tagger, tagger_identity
from gsec_core.captioners.template import LONGEST_CRITERION, tidy
from gsec_core.config import DescribeConfig
from gsec_core.errors import Refused

__all__ = ["Answer", "Captioner", "Cost", "Subject", "captioner_identity", "captioner_model", "load_captioner"]


def load_captioner(config: DescribeConfig, *, device: str, threads: int) -> Captioner:
    """Build a captioner. ``device`` and ``threads`` (0 = one a core), as of `load_encoder`, are for one that computes in this process.

    Raises Refused naming the setting that is wrong, Unreachable if a table's store does not answer. Whether a server is there
    and has the model tells its ``check``.
    """
    match _parts(config.captioner):
        case "openai", model:
            return OpenAICaptioner(model, config)
        case "table", reference:
            return TableCaptioner(reference)
        case _:
            return Tagger(device=device, threads=threads)


def captioner_model(config: DescribeConfig) -> str:
    """Who answers, as `Captioner.model`. Imports no framework."""
    match _parts(config.captioner):
        case "openai", model:
            return model
        case "table", reference:
            return table_model(reference)
        case _:
            return TAGGER


def captioner_identity(config: DescribeConfig) -> dict[str, object]:
    """What makes this captioner's answers its own, for fingerprints: JSON-able, without addresses and keys. Imports no framework.

    Raises Refused and Unreachable as `load_captioner`.
    """
    family, reference = _parts(config.captioner)
    _check_asked(config, family)
    match family, reference:
        case "openai", model:
            return openai_identity(model, config)
        case "table", reference:
            return table_identity(reference)
        case _:
            return tagger_identity()


def _check_asked(config: DescribeConfig, family: str) -> None:
    criterion = config.criterion
    if criterion is not None and (not criterion or criterion != tidy(criterion) or len(criterion) > LONGEST_CRITERION):
        raise Refused(f"describe.criterion: name one aspect on one line of at most {LONGEST_CRITERION} characters, as `the kind of place`.")
    for setting, value in (("criterion", criterion), ("template", config.template)):
        if value is not None and family != "openai":
            raise Refused(f"describe.{setting}: only a model can be asked, and describe.captioner = {family} is none. Name an openai:MODEL.")


def _parts(name: str) -> tuple[str, str]:
    """What is before the first colon, and the reference after it, which is the captioner's own to read."""
    family, _, reference = name.partition(":")
    if name == "tagger" or (family in ("openai", "table") and reference):
        return family, reference
    shown = json.dumps(family if family == "table" else name)
    raise Refused(f"describe.captioner = {shown}: there is no such captioner; there are `tagger`, `openai:MODEL` and `table:FILE:COLUMN`.")
