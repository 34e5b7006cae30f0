"""A finished run in a notebook. It opens the store that `make demo` creates; replace the address by that of your own store.

Every ``# %%`` begins a cell: open the file as a notebook in VS Code, PyCharm or Jupyter with Jupytext, or run it as a script.
"""

# %% [markdown]
# This opens the newest finished run of a store. `open_run(store, "published/PIPELINE")` opens the run that a pipeline publishes, and
# `open_run(store, "1a2b")` a run by its id, or by the beginning of its id.

# %%
import numpy as np
import polars as pl

from gsec_core import open_run

run = open_run("gsec-demo/store")
run

# %% [markdown]
# The clusters, and the images in them, are polars data frames.

# %%
largest = run.clusters.sort("size", descending=True).row(0, named=True)
print(run.clusters.select("cluster_key", "name", "size", "cohesion", "stability"))
print(run.assignments.group_by("name").agg(pl.len(), pl.col("confidence").mean()).sort("len", descending=True))

# %% [markdown]
# One cluster, its most confident images first. Then the least confident images of all clusters, and the images far from their clusters.

# %%
images = run.images(largest["cluster_key"])
run.gallery(images, most=12)

# %%
run.gallery(run.assignments.sort("confidence").head(12))

# %%
run.gallery(run.outliers)

# %% [markdown]
# `open` reads an image from the source, `thumbnails` from the store.

# %%
picture = run.open(images["uri"][0])
thumbnail = run.thumbnails(images.head(1))[0]
print(picture.size, thumbnail and thumbnail.size)

# %% [markdown]
# The embeddings are a memory map with a row for each row of `run.assignments`. Here they find the images most similar to one image.

# %%
row = run.assignments.with_row_index().filter(pl.col("uri") == images["uri"][0])["index"][0]
cosines = run.embeddings @ run.embeddings[row]
nearest = run.assignments[np.argsort(-cosines)[:12]]
run.gallery(nearest)

# %% [markdown]
# You can also read every other table of the run, such as the map.

# %%
places = run.assignments.join(run.table("map"), on="image_id")
print(places.group_by("name").agg(pl.col("x", "y").median()))
