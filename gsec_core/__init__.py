"""gsec as a library: sources, store, encoders, captioners, methods and stages. It does not import Prefect.

Exports the estimators of all methods (``from gsec_core import GSEC, TAC``), and `open_run`, which opens a finished run in a notebook.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gsec_core.results.notebook import open_run as open_run

# By default, OpenMP threads spin for about 10 ms before they sleep. If another process wants the cores, each of the many small operations
# of a fit then waits a time slice. So let them spin for about 1 ms only; sleeping at once would make a fit on an idle machine half as long again.
# OpenMP reads this when it is loaded, so that gsec_core must be imported before torch, faiss and scikit-learn. A user's setting takes precedence.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "60000")  # GNU's OpenMP, in turns of the loop
    os.environ.setdefault("KMP_BLOCKTIME", "1")  # LLVM's and Intel's OpenMP, in ms


def __getattr__(name: str) -> Any:
    """Load estimators (with torch) and ``open_run`` (with polars) on first access, so that importing gsec_core loads neither."""
    if name == "open_run":
        return import_module("gsec_core.results.notebook").open_run
    if name[:1].isupper():  # lower-case names may be submodules, which are also looked up here before their import
        from gsec_core.methods import BUILT_IN
        from gsec_core.methods.mixture import ESTIMATOR

        for found in (*(method.estimator for method in BUILT_IN), ESTIMATOR):
            module, _, estimator = found.partition(":")
            if estimator == name:
                return getattr(import_module(module), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
