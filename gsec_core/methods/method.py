"""What a method says of itself. Imports no framework, so that settings and the command line can ask it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from gsec_core.section import Section, output_settings
from gsec_core.text import DISTINCT, NounSelection

if TYPE_CHECKING:
    from gsec_core.methods.clusterer import Clusterer


@dataclass(frozen=True)
class Method:
    """A way to train the members that the outer layer aligns."""

    name: str
    """The value of the setting `method`, and the name of its section."""
    title: str
    """What it is called in the field."""
    paper: str
    """Address of its paper."""
    does: str
    """What it does, in a sentence."""
    texts: tuple[str, ...]
    """The text sources that it can use; the first is taken if none is named."""
    Settings: type[Section]
    """Its section: parameters of the estimator, by their names."""
    estimator: str
    """``module:class`` of a `Clusterer`, imported when it is used."""
    as_published: Callable[[Any], bool] = lambda settings: False
    """Whether its settings ask for counterparts as its paper makes them from descriptions."""
    nouns: Callable[[int], NounSelection] = lambda n_clusters: DISTINCT
    """Which nouns stand for the images of so many clusters, where text comes from nouns."""
    prepared_by: tuple[str, ...] = ()
    """The settings that change features or neighbours; the others change the members alone."""

    def load(self) -> "type[Clusterer]":
        """The estimator's class."""
        module, _, name = self.estimator.partition(":")
        found: type[Clusterer] = getattr(import_module(module), name)
        return found

    def preparation(self, settings: Section) -> Mapping[str, Any]:
        """What of its settings changes features or neighbours, for fingerprints."""
        return {name: value for name, value in output_settings(settings).items() if name in self.prepared_by}
