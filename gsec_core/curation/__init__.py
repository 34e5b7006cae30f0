"""Curation of clusters by people, which holds in all later runs: names, merges, splits, moves.

`Log` holds the acts, `replay` applies them to a run's clusters, `curated` does so for one run, and `add` adds an act.
"""

from gsec_core.curation.edit import Untold, add
from gsec_core.curation.log import Act, Image, Log
from gsec_core.curation.replay import Cluster, Curated, Model, Named, Open, replay
from gsec_core.curation.run import curated, log_of

__all__ = ["Act", "Cluster", "Curated", "Image", "Log", "Model", "Named", "Open", "Untold", "add", "curated", "log_of", "replay"]
