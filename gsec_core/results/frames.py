"""The tables of a finished run as polars frames: assignments and clusters with their names, as people have curated them.

`gsec export` and notebooks use these frames. Imports no torch.
"""

import functools
from collections.abc import Sequence
from functools import cached_property

import polars as pl

from gsec_core.clustering import hierarchy
from gsec_core.curation import Curated, curated, log_of
from gsec_core.errors import Refused
from gsec_core.stages import encode
from gsec_core.stages.base import Context
from gsec_core.stages.canonical import usable_rows
from gsec_core.store import Run, Store
from gsec_core.tables import (
    ALIGNMENT_TABLE,
    ASSIGNED_TABLE,
    ASSIGNMENTS_TABLE,
    CLUSTER_NAMES_TABLE,
    CLUSTERS_TABLE,
    DUPLICATES_TABLE,
    EMBEDDINGS_TABLE,
    HIERARCHY_TABLE,
    INSTANCE_GROUPS_TABLE,
    LINEAGE_TABLE,
    MAP_TABLE,
    OK,
    REPRESENTATIVE_CAPTIONS_TABLE,
)


def find_run(store: Store, run: str | None) -> Run:
    """Find a run as `Store.run` does; for None, the newest finished run that has clusters of its own. Raises Refused if there is none."""
    if run is not None:
        return store.run(run)
    for found in reversed(store.runs()):
        if found.is_finished() and "publish" in found.stage_names():
            return found
    raise Refused(f"--store {store.url}: it holds no finished run. `gsec status` shows what there is.")


class Frames:
    """The frames of a finished run. Each is read at the first access, and kept.

    Attributes raise Refused if a table is not complete, BadShard if one is damaged, and BadRecord if the curation log is damaged.
    """

    def __init__(self, context: Context) -> None:
        self.context = context

    @cached_property
    def curation(self) -> Curated | None:
        """The curated clusters, in the order of `assignments`; None if the curation log is empty."""
        return curated(self.context) if log_of(self.context).numbers() else None

    @cached_property
    def model_assignments(self) -> pl.DataFrame:
        """One row for each usable image, in canonical order: the columns of table `assignments`, and the model's cluster keys and names."""
        rows = read(self.context.run, ASSIGNED_TABLE if self.context.of_run else ASSIGNMENTS_TABLE)
        named = rows.join(self.model_clusters.select("cluster", "cluster_key", "name"), on="cluster", how="left", maintain_order="left")
        first = ["uri", "cluster", "cluster_key", "name"]
        return named.select(*first, pl.exclude(*first))

    @cached_property
    def model_clusters(self) -> pl.DataFrame:
        """`clusters_of` the run whose clusters the images are in."""
        return clusters_of(self._model)

    @cached_property
    def assignments(self) -> pl.DataFrame:
        """`model_assignments`. If people have curated, keys and names are theirs, the model's are in model_cluster_key and model_name, and hidden is added."""
        found = self.curation
        if found is None:
            return self.model_assignments
        names = {cluster.key: cluster.name for cluster in found.clusters}
        own = self.model_assignments.rename({"cluster_key": "model_cluster_key", "name": "model_name"})
        keyed = own.with_columns(cluster_key=pl.Series(found.keys, dtype=pl.Int32), hidden=pl.Series(found.hidden, dtype=pl.Boolean))
        first = ["uri", "cluster", "cluster_key", "name", "hidden", "model_cluster_key", "model_name"]
        return keyed.with_columns(name=pl.col("cluster_key").replace_strict(names, return_dtype=pl.String)).select(*first, pl.exclude(*first))

    @cached_property
    def clusters(self) -> pl.DataFrame:
        """`model_clusters`. If people have curated, one row for each of their clusters.

        That row also has the model's name, description, size and measures for the cluster with the same key; null if a split made the cluster.
        """
        found = self.curation
        if found is None:
            return self.model_clusters
        kinds = {"cluster_key": pl.Int32, "name": pl.String, "description": pl.String, "size": pl.Int64, "hidden": pl.Boolean, "starred": pl.Boolean}
        rows = pl.DataFrame(
            [(*cluster[:7], list(cluster.merged), cluster.key if cluster.model_name is not None else None) for cluster in found.clusters],
            schema={**kinds, "curated": pl.Boolean, "merged": pl.List(pl.Int32), "model_cluster_key": pl.Int32},
            orient="row",
        )
        own = self.model_clusters.rename({name: f"model_{name}" for name in ("name", "description", "size")})
        return rows.join(own, on="cluster_key", how="left", maintain_order="left")

    @property
    def shown(self) -> pl.DataFrame:
        """`assignments` without the images that people have hidden."""
        return self.assignments if self.curation is None else self.assignments.filter(~pl.col("hidden"))

    @property
    def shown_clusters(self) -> pl.DataFrame:
        """`clusters` without those that people have hidden."""
        return self.clusters if self.curation is None else self.clusters.filter(~pl.col("hidden"))

    @cached_property
    def unusable(self) -> pl.DataFrame:
        """One row for each image that has no cluster: uri, status (rejected or missing) and reason."""
        return pl.DataFrame(encode.encoded_rows(self.context)).filter(pl.col("status") != OK).select("uri", "status", "reason").sort("uri")

    @cached_property
    def duplicates(self) -> pl.DataFrame | None:
        """The table `duplicates`; None if the run only assigns images, or an older gsec made it."""
        return read(self.context.run, DUPLICATES_TABLE) if DUPLICATES_TABLE in self._made else None

    @cached_property
    def sizes(self) -> pl.DataFrame:
        """One row for each usable image: image_id, width and height in pixels, as shown."""
        found = [here.drop("position") for here in usable_rows(self.context, EMBEDDINGS_TABLE, ["image_id", "width", "height"])]
        return pl.concat([pl.DataFrame(schema={"image_id": pl.Binary, "width": pl.Int32, "height": pl.Int32}), *found])

    @cached_property
    def points(self) -> pl.DataFrame | None:
        """One row for each image: image_id, and x and y on the map; None if the run only assigns images, or an older gsec made it."""
        return read(self.context.run, MAP_TABLE) if MAP_TABLE in self._made else None

    @cached_property
    def descriptions(self) -> pl.DataFrame:
        """One row for each described content: content_hash and text. Empty if the method's text is not from descriptions."""
        try:
            said = read(self._model, REPRESENTATIVE_CAPTIONS_TABLE, ["content_hash", "text"])
        except Refused:
            return pl.DataFrame(schema={"content_hash": pl.Binary, "text": pl.String})
        return said.drop_nulls().unique("content_hash", keep="first", maintain_order=True)

    @cached_property
    def pseudo_labels(self) -> pl.DataFrame | None:
        """The images that the members labelled themselves for their training, with these labels as clusters of the consensus: a semi-supervised start.

        None if the run's method makes no such labels.
        """
        run = self.context.run
        if INSTANCE_GROUPS_TABLE not in self._made:
            return None
        labels = read(run, ALIGNMENT_TABLE).select("member", cluster="permutation").explode("cluster")
        labels = labels.with_columns(group=pl.int_range(pl.len(), dtype=pl.Int32).over("member"))
        found = read(run, INSTANCE_GROUPS_TABLE).join(self.model_assignments.select("image_id", "uri"), on="image_id").join(labels, on=["member", "group"])
        named = found.join(self.model_clusters.select("cluster", "cluster_key", "name"), on="cluster")
        return named.select("uri", "member", "class", "cluster", "cluster_key", "name").sort("member", "class", "uri")

    def groups(self, groups: int) -> pl.DataFrame:
        """One row for each cluster of the model, with its group; group 0 is the largest. Raises Refused if there is no tree, or fewer clusters than groups."""
        clusters, run = self.model_clusters, self._model
        count = len(clusters)
        if not 1 <= groups <= count:
            raise Refused(f"--groups {groups}: the run has {count} clusters. Give 1 to {count}.")
        try:
            tree = read(run, HIERARCHY_TABLE)
        except Refused:
            raise Refused(
                f"--groups {groups}: run {run.id} has no tree of its clusters, because an older gsec made it. gsec run with --redo hierarchy makes one."
            ) from None
        if len(tree) != count - 1:
            raise Refused(f"--groups {groups}: there is no tree of {count} clusters.")
        merges = list(tree.select("left", "right").iter_rows())
        names = [*clusters["name"], *tree["name"]]
        found = sorted(hierarchy.cut(merges, count, groups).items(), key=lambda group: (-sum(clusters["size"][group[1]]), group[1]))
        rows = [(cluster, number, names[node]) for number, (node, inside) in enumerate(found) for cluster in inside]
        grouped = pl.DataFrame(rows, schema={"cluster": pl.Int32, "group": pl.Int32, "group_name": pl.String}, orient="row")
        return clusters.select("cluster", "cluster_key", "name", "size").join(grouped, on="cluster").sort("group", "cluster")

    @cached_property
    def tables(self) -> set[str]:
        """Names of all tables of the run: its own, and those of the run whose model it keeps."""
        kept = self.context.run.model()
        return self._made if kept == self.context.run else self._made | Frames(Context.of(kept, self.context.config)).tables

    @property
    def _model(self) -> Run:
        """The run whose clusters the images are in: another one if this run only assigns."""
        return (self.context.of_run or self.context).run

    @cached_property
    def _made(self) -> set[str]:
        """Names of the tables that the run made itself."""
        return {table for record in self.context.run.stages().values() for table in record["tables"]}


def clusters_of(run: Run) -> pl.DataFrame:
    """One row for each cluster of a run's own clusters, in the order of their numbers. Raises Refused if the run has no names or keys yet."""
    keys, *more = (read(run, table) for table in (LINEAGE_TABLE, CLUSTER_NAMES_TABLE, CLUSTERS_TABLE))
    return functools.reduce(lambda left, right: left.join(right, on="cluster", maintain_order="left"), more, keys.select("cluster", "cluster_key"))


def read(run: Run, table: str, columns: Sequence[str] | None = None) -> pl.DataFrame:
    """A table of a run, or some columns of it. Raises Refused if it is not complete, BadShard if it is damaged."""
    return pl.DataFrame(run.read_table(table, columns))
