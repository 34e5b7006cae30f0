import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data

from gsec_core.encoders import encoder_identity, load_encoder
from gsec_core.encoders.base import Encoder
from gsec_core.encoders.lite import MEAN, SCALE, LiteEncoder, fold_batch_norms, image_network, lite0
from gsec_core.errors import Refused


@pytest.fixture(scope="session", params=["fp32", "bf16"])
def encoder(request: pytest.FixtureRequest) -> Encoder:
    return load_encoder("lite", precision=request.param, device="cpu", threads=2)


@pytest.fixture(scope="session")
def photos() -> dict[str, Image.Image]:
    return {"a cat": Image.fromarray(data.chelsea()), "a cup of coffee": Image.fromarray(data.coffee()), "a rocket": Image.fromarray(data.rocket())}


def test_images_and_texts_are_unit_vectors(encoder: Encoder, photos: dict[str, Image.Image]) -> None:
    embedded = encoder.encode_images(np.stack([encoder.preprocess(photo) for photo in photos.values()]))
    texts = encoder.encode_texts(list(photos))
    assert embedded.joint is not None
    assert (embedded.image.shape, embedded.joint.shape, texts.shape) == ((3, encoder.dim), (3, encoder.joint_dim), (3, encoder.joint_dim))
    for vectors in (embedded.image, embedded.joint, texts):
        assert vectors.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)


def test_a_photo_is_nearest_to_the_text_that_says_what_it_shows(encoder: Encoder, photos: dict[str, Image.Image]) -> None:
    embedded = encoder.encode_images(np.stack([encoder.preprocess(photo) for photo in photos.values()]))
    texts = encoder.encode_texts([*photos, "a mountain", "a piano", "a bicycle in the street"])
    assert embedded.joint is not None
    assert (embedded.joint @ texts.T).argmax(axis=1).tolist() == [0, 1, 2]


def test_an_embedding_does_not_depend_on_its_place_in_the_batch_or_on_other_images(encoder: Encoder) -> None:
    random = np.random.default_rng(0)
    batch = random.integers(0, 256, (64, 3, 224, 224), np.uint8)
    order = random.permutation(64)
    before, after = encoder.encode_images(batch), encoder.encode_images(batch[order])
    assert before.joint is not None
    assert after.joint is not None
    np.testing.assert_array_equal(before.image[order], after.image)
    np.testing.assert_array_equal(before.joint[order], after.joint)
    others = np.zeros_like(batch)
    others[63] = batch[0]
    np.testing.assert_array_equal(encoder.encode_images(others).image[63], before.image[0])


def test_onnx_runtime_gives_the_embeddings_of_torch_which_replaces_it_if_it_is_missing(
    photos: dict[str, Image.Image], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    encoder = load_encoder("lite", precision="fp32", device="cpu", threads=2)
    pixels = np.stack([encoder.preprocess(photo) for photo in photos.values()])
    found = encoder.encode_images(pixels)
    assert not [record for record in caplog.records if record.name.startswith("gsec_core")], "ONNX Runtime must have been used without a warning"
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    image_network.cache_clear()
    torchs = load_encoder("lite", precision="fp32", device="cpu", threads=2).encode_images(pixels)
    assert "ONNX Runtime cannot be used" in caplog.text
    for one, other in zip(found, torchs, strict=True):
        assert one is not None
        assert other is not None
        np.testing.assert_allclose((one * other).sum(axis=1), 1, atol=2e-6)
    image_network.cache_clear()


def test_a_network_with_folded_batch_norms_gives_the_same_output() -> None:
    images = (torch.randint(0, 256, (2, 3, 224, 224), generator=torch.Generator().manual_seed(0)) - MEAN) / SCALE
    with torch.inference_mode():
        expected = lite0()(images)
        folded = fold_batch_norms(lite0())
        torch.testing.assert_close(folded(images), expected, rtol=1e-3, atol=1e-3)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in folded.modules())


@pytest.mark.parametrize("size", [(600, 400), (1, 5000), (5000, 1), (1, 1)])
def test_images_of_any_size_are_preprocessed_to_uint8(encoder: Encoder, size: tuple[int, int]) -> None:
    pixels = encoder.preprocess(Image.new("RGB", size, (10, 20, 30)))
    assert (pixels.shape, pixels.dtype) == ((3, 224, 224), np.uint8)
    assert pixels[:, 112, 112].tolist() == [10, 20, 30]


def test_preprocessing_is_resize_to_256_and_centre_crop_to_224(encoder: Encoder, photos: dict[str, Image.Image]) -> None:
    photo = photos["a cup of coffee"].crop((0, 0, 384, 384))
    expected = photo.resize((256, 256), Image.Resampling.BICUBIC).crop((16, 16, 240, 240))
    np.testing.assert_array_equal(encoder.preprocess(photo), np.asarray(expected).transpose(2, 0, 1))


def test_no_texts_give_no_rows(encoder: Encoder) -> None:
    assert encoder.encode_texts([]).shape == (0, 384)


def test_preprocessing_and_identity_are_plain_json() -> None:
    assert json.loads(json.dumps(LiteEncoder.preprocessing))["size"] == 224
    assert encoder_identity("lite") == {"name": "lite"}


def test_loading_is_silent_and_offline_and_sets_the_threads() -> None:
    script = """
import numpy, socket, torch
def refuse(*_): raise AssertionError("the network was asked")
socket.socket.connect = socket.getaddrinfo = refuse
from gsec_core.encoders import load_encoder
encoder = load_encoder("lite", precision="fp32", device="auto", threads=1)
encoder.encode_images(numpy.zeros((2, 3, 224, 224), numpy.uint8))
assert torch.get_num_threads() == 1
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_identity_is_computed_without_importing_a_framework() -> None:
    script = """
import sys
from gsec_core.encoders import encoder_identity
encoder_identity("lite")
assert not {"torch", "open_clip", "transformers"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.parametrize("name", ["resnet", "", "lite:1"])
def test_an_unknown_encoder_is_refused(name: str) -> None:
    with pytest.raises(Refused, match=r"encode\.encoder .*`lite`"):
        encoder_identity(name)


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "cuda"])
def test_a_missing_device_is_refused(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(Refused, match=r"encode\.device"):
        load_encoder("lite", precision="fp32", device=device, threads=2)
