"""gsec as a library: sources, store, encoders, captioners, methods and stages. It imports no Prefect.

Estimators of all methods are here: ``from gsec_core import GSEC, TAC``; and `open_run`, for a finished run in a notebook.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gsec_core.results.notebook import open_run as open_run

# Threads of OpenMP wait for each other in a loop for about 10 ms before they sleep. Where another process wants the cores, each of the many
# small operations of a fit then waits a time slice. So they wait for about 1 ms. Sleeping at once would make a fit alone half as long again.
# OpenMP reads this when it is loaded: it helps where gsec_core is imported before torch, faiss and scikit-learn. A user's own choice stands.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "60000")  # GNU's, in turns of the loop
    os.environ.setdefault("KMP_BLOCKTIME", "1")  # LLVM's and Intel's, in ms


def __getattr__(name: str) -> Any:
    """``from gsec_core import GSEC`` loads torch and ``open_run`` polars; importing gsec_core alone loads neither."""
    if name == "open_run":
        return import_module("gsec_core.results.notebook").open_run
    if name[:1].isupper():  # a module is looked for here too, before it is imported
        from gsec_core.methods import BUILT_IN
        from gsec_core.methods.mixture import ESTIMATOR

        for found in (*(method.estimator for method in BUILT_IN), ESTIMATOR):
            module, _, estimator = found.partition(":")
            if estimator == name:
                return getattr(import_module(module), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
