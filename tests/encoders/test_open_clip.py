"""The encoder open_clip:MODEL:PRETRAINED, with a checkpoint of a tiny CLIP model of random weights."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

from gsec_core.encoders import encoder_identity, load_encoder
from gsec_core.encoders.base import Encoder
from gsec_core.errors import Refused

from ..checkpoint import PREPROCESSING, write_checkpoint


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint folder as Hugging Face lays it out; the model is also known to open_clip as ``tiny/model``."""
    return write_checkpoint(tmp_path_factory.mktemp("open_clip") / "checkpoint")


@pytest.fixture(scope="session")
def weights(folder: Path) -> Path:
    return folder / "open_clip_model.safetensors"


@pytest.fixture
def tags(folder: Path, weights: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The tags under which ``tiny/model`` is published."""
    published: dict[str, Any] = {
        "here": {**PREPROCESSING, "file": str(weights), "quick_gelu": True},
        "elsewhere": {**PREPROCESSING, "hf_hub": "nobody/nothing/"},
    }
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "tiny-model", published)
    return published


def load(name: str, precision: str = "fp32") -> Encoder:
    return load_encoder(name, precision=precision, device="cpu", threads=2)


def pixels(encoder: Encoder, count: int) -> np.ndarray:
    random = np.random.default_rng(0)
    return np.stack([encoder.preprocess(Image.fromarray(random.integers(0, 256, (40, 60, 3), np.uint8))) for _ in range(count)])


@pytest.fixture(scope="session", params=["fp32", "bf16"])
def encoder(folder: Path, request: pytest.FixtureRequest) -> Encoder:
    return load(f"open_clip:local-dir:{folder}", request.param)


def test_images_and_texts_are_unit_vectors_of_one_space(encoder: Encoder) -> None:
    embedded = encoder.encode_images(pixels(encoder, 4))
    texts = encoder.encode_texts(["a cat", "a dog " * 100, ""])
    assert (encoder.dim, encoder.joint_dim, embedded.joint) == (32, None, None)
    assert (embedded.image.shape, embedded.image.dtype) == ((4, 32), np.float32)
    assert (texts.shape, texts.dtype) == ((3, 32), np.float32)
    for vectors in (embedded.image, texts):
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)


def test_no_texts_give_no_rows_and_many_give_one_each(encoder: Encoder) -> None:
    assert encoder.encode_texts([]).shape == (0, 32)
    assert encoder.encode_texts(["a cat"] * 300).shape == (300, 32)


def test_an_embedding_does_not_depend_on_its_place_in_the_batch(encoder: Encoder) -> None:
    batch = pixels(encoder, 64)
    order = np.random.default_rng(1).permutation(64)
    np.testing.assert_array_equal(encoder.encode_images(batch).image[order], encoder.encode_images(batch[order]).image)


def test_embeddings_are_those_of_open_clip_itself(folder: Path) -> None:
    encoder = load(f"open_clip:local-dir:{folder}")
    model, transform = open_clip.create_model_from_pretrained(f"local-dir:{folder}")
    image = Image.effect_noise((50, 40), 60).convert("RGB")
    with torch.inference_mode():
        expected = model.eval().encode_image(transform(image)[None], normalize=True).numpy()
        text = model.encode_text(open_clip.get_tokenizer("tiny-model")(["a cat"]), normalize=True).numpy()
    np.testing.assert_array_equal(encoder.preprocess(image), transform(image).numpy())
    np.testing.assert_allclose(encoder.encode_images(encoder.preprocess(image)[None]).image, expected, atol=1e-5)
    np.testing.assert_allclose(encoder.encode_texts(["a cat"]), text, atol=1e-5)


def test_bf16_is_near_fp32(folder: Path) -> None:
    full, half = (load(f"open_clip:local-dir:{folder}", precision) for precision in ("fp32", "bf16"))
    batch = pixels(full, 8)
    assert (full.encode_images(batch).image * half.encode_images(batch).image).sum(axis=1).min() > 0.99


def test_the_preprocessing_is_recorded_as_json(encoder: Encoder) -> None:
    recorded = json.loads(json.dumps(encoder.preprocessing))
    assert {key: recorded[key] for key in PREPROCESSING} == PREPROCESSING


def test_an_image_of_an_extreme_ratio_is_preprocessed_to_the_normal_size(encoder: Encoder) -> None:
    assert encoder.preprocess(Image.new("RGB", (1, 30_000))).shape == (3, 32, 32)


def test_a_single_weights_file_gets_the_preprocessing_of_the_models_published_weights(weights: Path, folder: Path, tags: dict[str, Any]) -> None:
    by_file, by_folder = load(f"open_clip:tiny/model:{weights}"), load(f"open_clip:local-dir:{folder}")
    assert {key: list(value) if isinstance(value, tuple) else value for key, value in by_file.preprocessing.items() if key in PREPROCESSING} == PREPROCESSING
    batch = pixels(by_file, 2)
    np.testing.assert_array_equal(by_file.encode_images(batch).image, by_folder.encode_images(batch).image)


def test_a_single_weights_file_is_refused_if_published_preprocessings_differ(weights: Path, tags: dict[str, Any]) -> None:
    tags["elsewhere"] = {**tags["elsewhere"], "mean": [0.4, 0.4, 0.4]}
    with pytest.raises(Refused, match=r"tiny-model differ in their preprocessing.*local-dir"):
        load(f"open_clip:tiny-model:{weights}")


def test_a_tag_gets_the_activation_it_was_trained_with(weights: Path, tags: dict[str, Any]) -> None:
    batch = np.random.default_rng(0).normal(size=(2, 3, 32, 32)).astype(np.float32)
    by_tag, by_file = (load(f"open_clip:tiny-model:{pretrained}").encode_images(batch).image for pretrained in ("here", weights))
    assert not np.array_equal(by_tag, by_file)


def test_unknown_names_are_refused_with_a_remedy(weights: Path, tags: dict[str, Any], tmp_path: Path) -> None:
    no_safetensors = tmp_path / "broken.safetensors"
    no_safetensors.write_bytes(b"not a checkpoint")
    refusals = {
        "open_clip": r"write `open_clip:MODEL:PRETRAINED`",
        "open_clip:ViT-B-32": r"write `open_clip:MODEL:PRETRAINED`",
        "open_clip:ViT-B-33:openai": r"no model ViT-B-33; similar names are .*ViT-B-32",
        "open_clip:tiny/model:nowhere": r"nowhere is neither a file nor a tag of tiny-model, whose tags are here, elsewhere",
        "open_clip:tiny-model:elsewhere": r"could not be loaded .* without a network, give a local file",
        "open_clip:local-dir:/no/such/folder": r"open_clip_config.json does not exist",
        f"open_clip:tiny-model:{no_safetensors}": r"could not be loaded .* or is damaged",
    }
    for name, words in refusals.items():
        with pytest.raises(Refused, match=words) as refused:
            load(name)
        assert str(refused.value).startswith(f'encode.encoder = "{name}')


def test_a_checkpoint_cannot_run_code(tags: dict[str, Any], tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "sprung",)

    torch.save({"state_dict": Trap()}, tmp_path / "trap.pt")
    with pytest.raises(Refused):
        load(f"open_clip:tiny-model:{tmp_path / 'trap.pt'}")
    assert not (tmp_path / "sprung").exists()


def test_the_identity_of_a_local_checkpoint_depends_on_its_content_only(folder: Path, weights: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved.safetensors"
    moved.write_bytes(weights.read_bytes())
    here, there = (encoder_identity(f"open_clip:tiny-model:{path}")["checkpoint"] for path in (weights, moved))
    assert here == there
    moved.write_bytes(weights.read_bytes()[:-1])
    assert encoder_identity(f"open_clip:tiny-model:{moved}")["checkpoint"] != here


def test_the_identity_of_a_checkpoint_folder_depends_on_its_configuration_too(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in folder.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    assert encoder_identity(f"open_clip:local-dir:{copy}")["checkpoint"] == encoder_identity(f"open_clip:local-dir:{folder}")["checkpoint"]
    (copy / "open_clip_config.json").write_text("{}")
    assert encoder_identity(f"open_clip:local-dir:{copy}")["checkpoint"] != encoder_identity(f"open_clip:local-dir:{folder}")["checkpoint"]


def test_the_identity_of_a_published_tag_is_its_name() -> None:
    assert encoder_identity("open_clip:ViT-B-32:laion2b_s34b_b79k") == {"name": "open_clip:ViT-B-32:laion2b_s34b_b79k"}
