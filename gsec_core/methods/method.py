"""Description of a method. Imports no framework, so that settings and the command line can use it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from gsec_core.section import Section, output_settings
from gsec_core.text import DISTINCT, NounSelection

if TYPE_CHECKING:
    from gsec_core.methods.clusterer import Clusterer
    from gsec_core.methods.enhancer import Enhancer

MEMBERS_TIMES_CLUSTERS = 10_000
"""With many clusters there are fewer members by default: members times clusters do not exceed this number."""


@dataclass(frozen=True)
class Method:
    """A way to train the members that the outer layer aligns."""

    name: str
    """The value of the setting `method`, and the name of its section."""
    title: str
    """Usual name of the method."""
    paper: str
    """URL of its paper."""
    does: str
    """What it does, in a sentence."""
    texts: tuple[str, ...]
    """The text sources that it can use; the first is the default."""
    Settings: type[Section]
    """Section of the settings with the parameters of the estimator, under the same names."""
    estimator: str
    """``module:class`` of a `Clusterer`, imported when it is used."""
    n_members: Callable[[Any], int]
    """Default number of outer members, for its settings; with many clusters there are fewer, see `member_count`."""
    revision: Callable[[Any, int], int] = lambda settings, n_clusters: 1
    """Part of the fingerprint: larger than 1 if an earlier version trained other members with the same settings and number of clusters."""
    as_published: Callable[[Any], bool] = lambda settings: False
    """Whether the settings request counterparts as the paper makes them from descriptions."""
    nouns: Callable[[int], NounSelection] = lambda n_clusters: DISTINCT
    """Selection of nouns for a number of clusters, where text comes from nouns."""
    prepared_by: tuple[str, ...] = ()
    """The settings that change features or neighbours; the others change the members alone."""
    enhancer: str | None = None
    """``module:class`` of an `Enhancer`, which trains the encoder on the clusters; imported when it is used. None if the method has none."""
    enhanced_by: str | None = None
    """Name of the boolean setting that requests the enhancer. It is not a parameter of the estimator."""

    @property
    def takes_names(self) -> bool:
        """Whether its nouns are the names of the clusters, one for each."""
        return self.nouns(2).per_centre is None

    def load(self) -> "Callable[..., Clusterer]":
        """The estimator's class."""
        found: Callable[..., Clusterer] = _imported(self.estimator)
        return found

    def member_count(self, settings: Section, n_clusters: int, asked: int | None = None) -> int:
        """Number of outer members, as in the estimator's plan: ``asked``, or else the default."""
        return asked or default_members(self.n_members(settings), n_clusters)

    def section(self, config: object) -> Section:
        """The section of this method in the settings of a pipeline."""
        found: Section = getattr(config, self.name)
        return found

    def load_enhancer(self) -> "type[Enhancer]":
        """The enhancer's class."""
        assert self.enhancer is not None, "a method that enhances has one"
        found: type[Enhancer] = _imported(self.enhancer)
        return found

    def enhances(self, settings: Section) -> bool:
        """Whether its settings request that the encoder is trained on the clusters."""
        return self.enhanced_by is not None and bool(getattr(settings, self.enhanced_by))

    def parameters(self, settings: Section) -> dict[str, Any]:
        """The settings that are parameters of the estimator and change the output."""
        return {name: value for name, value in output_settings(settings).items() if name != self.enhanced_by}

    def preparation(self, settings: Section) -> Mapping[str, Any]:
        """The settings that change features or neighbours, for fingerprints."""
        return {name: value for name, value in output_settings(settings).items() if name in self.prepared_by}


def default_members(n_members: int, n_clusters: int, methods: int = 1) -> int:
    """Default number of outer members for each of ``methods`` methods: ``n_members``, but fewer with many clusters."""
    return min(n_members, max(1, MEMBERS_TIMES_CLUSTERS // (methods * n_clusters)))


def _imported(path: str) -> Any:
    module, _, name = path.partition(":")
    return getattr(import_module(module), name)
