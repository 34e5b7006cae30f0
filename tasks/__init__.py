"""Prefect tasks around the library: a slice of shards, with retries, progress and artifacts."""

import logging

from prefect.settings import PREFECT_LOGGING_LEVEL

# Prefect hands the library's records on (PREFECT_LOGGING_EXTRA_LOGGERS) but leaves it the root's level, which tells of no shard.
logging.getLogger("gsec_core").setLevel(min(logging.WARNING, logging.getLevelNamesMapping()[PREFECT_LOGGING_LEVEL.value()]))
