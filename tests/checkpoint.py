"""Writes a tiny CLIP model with random weights, in a folder as Hugging Face lays it out."""

import json
from pathlib import Path

MODEL = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "layers": 2, "width": 64, "head_width": 32},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "layers": 2, "width": 64, "heads": 2},
}
PREPROCESSING = {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25], "interpolation": "bilinear", "resize_mode": "shortest"}


def write_checkpoint(folder: Path, seed: int = 0) -> Path:
    """Make the folder, with weights drawn by ``seed``, and register the model's configuration with open_clip."""
    import open_clip
    import torch
    from safetensors.torch import save_file

    configs = folder.with_name(f"{folder.name}-configs")
    for made in (folder, configs):
        made.mkdir(parents=True, exist_ok=True)
    (configs / "tiny-model.json").write_text(json.dumps(MODEL))
    open_clip.add_model_config(configs)
    torch.manual_seed(seed)
    save_file(open_clip.create_model("tiny-model").state_dict(), folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": MODEL, "preprocess_cfg": PREPROCESSING}))
    return folder
