"""What people say about clusters, and keep from night to night: names, merges, splits, moves.

`Log` is the acts, `replay` what they make of a run's clusters, `curated` both for one run, and `add` the way to say something.
"""

from gsec_core.curation.edit import Untold, add
from gsec_core.curation.log import Act, Image, Log
from gsec_core.curation.replay import Cluster, Curated, Model, Named, Open, replay
from gsec_core.curation.run import curated, log_of

__all__ = ["Act", "Cluster", "Curated", "Image", "Log", "Model", "Named", "Open", "Untold", "add", "curated", "log_of", "replay"]
