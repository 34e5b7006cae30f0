"""A finished run in a notebook. `make demo` leaves the store that it opens; put the address of your own in its place.

Every ``# %%`` begins a cell: open the file as a notebook in VS Code, PyCharm or Jupyter with Jupytext, or run it as a script.
"""

# %% [markdown]
# The newest finished run of a store. `open_run(store, "published/PIPELINE")` is what a pipeline publishes, and `open_run(store, "1a2b")` a run by its id, or
# the beginning of it.

# %%
import numpy as np
import polars as pl

from gsec_core import open_run

run = open_run("gsec-demo/store")
run

# %% [markdown]
# The clusters, and the images in them, are frames of polars.

# %%
largest = run.clusters.sort("size", descending=True).row(0, named=True)
print(run.clusters.select("cluster_key", "name", "size", "cohesion", "stability"))
print(run.assignments.group_by("name").agg(pl.len(), pl.col("confidence").mean()).sort("len", descending=True))

# %% [markdown]
# One cluster, its surest images first; then the images that the run is least sure of, and those far from their clusters.

# %%
images = run.images(largest["cluster_key"])
run.gallery(images, most=12)

# %%
run.gallery(run.assignments.sort("confidence").head(12))

# %%
run.gallery(run.outliers)

# %% [markdown]
# A picture comes from the source, a thumbnail from the store.

# %%
picture = run.open(images["uri"][0])
thumbnail = run.thumbnails(images.head(1))[0]
print(picture.size, thumbnail and thumbnail.size)

# %% [markdown]
# The embeddings are a memory map with a row for each row of `run.assignments`. Here they find what is most like one image.

# %%
row = run.assignments.with_row_index().filter(pl.col("uri") == images["uri"][0])["index"][0]
cosines = run.embeddings @ run.embeddings[row]
nearest = run.assignments[np.argsort(-cosines)[:12]]
run.gallery(nearest)

# %% [markdown]
# Every other table of the run is there too, such as the map.

# %%
places = run.assignments.join(run.table("map"), on="image_id")
print(places.group_by("name").agg(pl.col("x", "y").median()))
