"""gsec as a library: sources, store, encoders, captioners, estimators and stages. It imports no Prefect."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gsec_core.clustering.gsec import GSEC

__all__ = ["GSEC"]


def __getattr__(name: str) -> Any:
    """``from gsec_core import GSEC`` loads torch; importing gsec_core alone does not."""
    if name == "GSEC":
        from gsec_core.clustering.gsec import GSEC

        return GSEC
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
