"""Prefect tasks around the library: a slice of shards, with retries, progress and artifacts."""

import logging

from prefect.settings import PREFECT_LOGGING_LEVEL

# Prefect forwards the library's log records (PREFECT_LOGGING_EXTRA_LOGGERS), but leaves its logger at the root's level, which hides messages about shards.
logging.getLogger("gsec_core").setLevel(min(logging.WARNING, logging.getLevelNamesMapping()[PREFECT_LOGGING_LEVEL.value()]))
