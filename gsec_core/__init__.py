"""gsec as a library: sources, store, encoders, captioners, estimators and stages. It imports no Prefect."""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gsec_core.methods.gsec.estimator import GSEC
    from gsec_core.methods.tac.estimator import TAC
    from gsec_core.methods.tac.kmeans import TACKMeans

__all__ = ["GSEC", "TAC", "TACKMeans"]

# Threads of OpenMP wait for each other in a loop for about 10 ms before they sleep. Where another process wants the cores, each of the many
# small operations of a fit then waits a time slice. So they wait for about 1 ms. Sleeping at once would make a fit alone half as long again.
# OpenMP reads this when it is loaded: it helps where gsec_core is imported before torch, faiss and scikit-learn. A user's own choice stands.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "60000")  # GNU's, in turns of the loop
    os.environ.setdefault("KMP_BLOCKTIME", "1")  # LLVM's and Intel's, in ms


_ESTIMATORS = {
    "GSEC": "gsec_core.methods.gsec.estimator",
    "TAC": "gsec_core.methods.tac.estimator",
    "TACKMeans": "gsec_core.methods.tac.kmeans",
}


def __getattr__(name: str) -> Any:
    """``from gsec_core import GSEC`` loads torch; importing gsec_core alone does not."""
    if name in _ESTIMATORS:
        return getattr(import_module(_ESTIMATORS[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
