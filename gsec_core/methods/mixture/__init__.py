"""Members of several methods in one outer layer: consensus clustering of a heterogeneous ensemble (Strehl and Ghosh 2002)."""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import create_model

from gsec_core.errors import Refused
from gsec_core.methods.method import Method, default_members
from gsec_core.section import Section
from gsec_core.text import NOUNS, NounSelection

if TYPE_CHECKING:
    from gsec_core.methods.clusterer import Clusterer

SEPARATOR = ","
"""Separator between the names of methods."""

ESTIMATOR = "gsec_core.methods.mixture.estimator:Mixture"


@dataclass(frozen=True, kw_only=True)
class MethodMixture(Method):
    """A method composed of several others. Its section of the settings is composed of theirs."""

    parts: tuple[Method, ...]

    def load(self) -> Callable[..., "Clusterer"]:
        """A factory for the estimator; it takes the parameters of each part as a mapping under the part's name."""
        Mixture = super().load()

        def made(n_clusters: int = 10, **parameters: Any) -> "Clusterer":
            estimators = [(part.name, part.load()(**parameters.pop(part.name, {}))) for part in self.parts]
            return Mixture(n_clusters, estimators=estimators, **parameters)

        return made

    def member_count(self, settings: Section, n_clusters: int, asked: int | None = None) -> int:
        """Number of outer members of all parts; ``asked`` is the number for each of them."""
        return len(self.parts) * (asked or default_members(self.n_members(settings), n_clusters, len(self.parts)))

    def section(self, config: object) -> Section:
        sections = {part.name: part.section(config) for part in self.parts}
        for part in self.parts:
            if part.enhances(sections[part.name]):
                setting = f"{part.name}.{part.enhanced_by} = true"
                raise Refused(f"{setting}: an encoder can learn from the clusters of one method only. Leave it out, or give method = {part.name}.")
        return self.Settings(**sections)

    def parameters(self, settings: Section) -> dict[str, Any]:
        return {part.name: part.parameters(getattr(settings, part.name)) for part in self.parts}

    def preparation(self, settings: Section) -> Mapping[str, Any]:
        return {part.name: part.preparation(getattr(settings, part.name)) for part in self.parts}


def mixed(parts: Sequence[Method]) -> Method:
    """Mix two or more methods, in the given order. Raises Refused if they cannot be mixed."""
    name = SEPARATOR.join(part.name for part in parts)

    def refused(why: str) -> Refused:
        return Refused(f"method = {json.dumps(name)}: {why}")

    [(most, count)] = Counter(part.name for part in parts).most_common(1)
    if count > 1:
        raise refused(f"`{most}` is given {count} times. Give each method once.")
    for part in parts:
        if part.takes_names:
            raise refused(f"`{part.name}` takes a name for each cluster and finds no clusters of its own. Leave it out.")
    texts = tuple(text for text in parts[0].texts if all(text in part.texts for part in parts))
    if not texts:
        there = "; ".join(f"`{part.name}` takes {' or '.join(part.texts)}" for part in parts)
        raise refused(f"no text source can be used by all of them: {there}. Leave one out.")

    def nouns(n_clusters: int) -> NounSelection:
        first, *others = parts
        selection = first.nouns(n_clusters)
        for other in others:
            if other.nouns(n_clusters) != selection:
                sources = " or ".join(text for text in texts if text != NOUNS)
                instead = f"give text.source = {sources}, or " if sources else ""
                raise refused(f"`{first.name}` and `{other.name}` use different nouns for the images; {instead}leave one out.")
        return selection

    *titles, last = (part.title for part in parts)
    sections: dict[str, Any] = {part.name: (part.Settings, part.Settings()) for part in parts}
    return MethodMixture(
        name=name,
        title=f"{', '.join(titles)} and {last}",
        paper=", ".join(part.paper for part in parts),
        does="A consensus of several methods, with equally many members of each.",
        texts=texts,
        Settings=create_model("MixtureSettings", __base__=Section, **sections),
        estimator=ESTIMATOR,
        n_members=lambda settings: min(part.n_members(getattr(settings, part.name)) for part in parts),
        revision=lambda settings, n_clusters: max(part.revision(getattr(settings, part.name), n_clusters) for part in parts),
        as_published=lambda settings: any(part.as_published(getattr(settings, part.name)) for part in parts),
        nouns=nouns,
        parts=tuple(parts),
    )
