"""The pipeline with its images and its store on S3, and with a CLIP checkpoint from a folder."""

import json
from pathlib import Path

import fsspec
import open_clip
import torch
from safetensors.torch import save_file

from gsec_core import pipeline
from gsec_core.results import finishing
from gsec_core.stages import encode
from gsec_core.tables import EMBEDDINGS_TABLE

from ..pictures import cluster, labels, settings, write_pictures


def test_a_run_with_images_and_store_on_s3_gives_the_labels_of_a_local_run(tmp_path: Path, bucket: str) -> None:
    folder = write_pictures(tmp_path / "in", range(20))
    here, _, _ = cluster(settings(folder, tmp_path / "store", clusters=3))
    fsspec.filesystem("s3").put(f"{folder}/", f"{bucket}/in/", recursive=True)
    config = settings(f"{bucket}/in", f"{bucket}/store", clusters=3)
    there, _, made = cluster(config)
    assert made["encode"]["encoded"] == 20
    name = here.generation.shard_names[0]
    assert there.generation.shard_names[0] != name, "the versions of S3 objects differ from those of files, so shards have other names"
    summary = finishing.summary(there)
    with fsspec.filesystem("s3").open(f"{summary['assignments']}/part-00000.parquet") as file:
        import pyarrow.parquet as pq

        table = pq.read_table(file)
    assert dict(zip(table["uri"].to_pylist(), table["cluster"].to_pylist(), strict=True)) == labels(here)
    finished = pipeline.nothing_to_do(config)
    assert finished is not None
    assert finished.id == there.run.id


def test_a_local_clip_checkpoint_encodes_and_changed_weights_encode_again(tmp_path: Path) -> None:
    model = {
        "embed_dim": 32,
        "vision_cfg": {"image_size": 32, "patch_size": 8, "layers": 2, "width": 64, "head_width": 32},
        "text_cfg": {"context_length": 16, "vocab_size": 49408, "layers": 2, "width": 64, "heads": 2},
    }
    checkpoint = tmp_path / "clip"
    checkpoint.mkdir()
    preprocessing = {"mean": [0.5] * 3, "std": [0.25] * 3, "interpolation": "bilinear", "resize_mode": "shortest"}
    (checkpoint / "open_clip_config.json").write_text(json.dumps({"model_cfg": model, "preprocess_cfg": preprocessing}))
    torch.manual_seed(0)
    weights = open_clip.CLIP(**model).state_dict()
    save_file(weights, checkpoint / "open_clip_model.safetensors")
    source = write_pictures(tmp_path / "in", range(20))
    config = settings(source, tmp_path / "store", encode={"encoder": f"open_clip:local-dir:{checkpoint}"})
    context, _, _ = cluster(config)
    schema = context.shards(encode.STAGE, EMBEDDINGS_TABLE).read(context.generation.shard_names[0]).schema
    assert schema.field("embedding").type.list_size == 32
    assert "joint" not in schema.names, "CLIP's embeddings are already in the space shared with text, so no second column is needed"
    save_file({**weights, "logit_scale": weights["logit_scale"] + 1}, checkpoint / "open_clip_model.safetensors")
    assert cluster(config)[2]["encode"]["encoded"] == 20, "other weights in the same folder must count as another encoder"
