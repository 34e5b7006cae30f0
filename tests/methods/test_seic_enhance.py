"""Stage two of SEIC (the Enhancer, which adapts the encoder), with a tiny CLIP model of random weights."""

from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn
from torch.nn import functional as F

from gsec_core import SEIC
from gsec_core.clustering.metrics import accuracy
from gsec_core.methods.seic import enhance
from gsec_core.methods.seic.enhance import Enhancer, Sureness, schedule

SIDE, CLASSES = 32, 3
VISION = {"image_size": SIDE, "patch_size": 8, "layers": 2, "width": 64, "head_width": 32}
TEXT = {"context_length": 8, "vocab_size": 64, "layers": 1, "width": 32, "heads": 1}
TRANSFORM = open_clip.image_transform(SIDE, is_train=False, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))


def clip(seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return open_clip.CLIP(embed_dim=24, vision_cfg=VISION, text_cfg=TEXT).eval()


def preprocess(image: Image.Image) -> NDArray[np.float32]:
    pixels: NDArray[np.float32] = TRANSFORM(image).numpy()
    return pixels


def pictures(n: int) -> list[Image.Image]:
    """Grey stripes in three directions, the classes, with random width and contrast, and noise."""
    random = np.random.default_rng(0)
    rows, columns = np.mgrid[:40, :48]
    found = []
    for number in range(n):
        along = (rows, columns, rows + columns)[number % CLASSES]
        light = 128 + random.uniform(30, 90) * np.sin(along * random.uniform(0.6, 1.0) + random.uniform(0, 6))
        found.append(Image.fromarray(np.clip(light[..., None] + random.normal(0, 20, (40, 48, 3)), 0, 255).astype(np.uint8)))
    return found


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    return pictures(60)


@pytest.fixture(scope="module")
def pixels(images: list[Image.Image]) -> torch.Tensor:
    return torch.from_numpy(np.stack([preprocess(image) for image in images]))


@pytest.fixture(scope="module")
def member(pixels: torch.Tensor) -> dict[str, NDArray[np.float32]]:
    """A member of stage one, fitted to the embeddings of the plain model."""
    with torch.no_grad():
        X = clip().encode_image(pixels, normalize=True).numpy()
    fitted = SEIC(CLASSES, n_members=1, max_steps=60, device="cpu").fit(X, text=X)
    return dict(fitted.members_[0].parameters)


def said(model: nn.Module, member: dict[str, NDArray[np.float32]], pixels: torch.Tensor) -> torch.Tensor:
    """The logits of a plain model and a member."""
    projection, offset, weights, bias = (torch.from_numpy(member[name]) for name in ("projection", "projection_bias", "weights", "bias"))
    with torch.no_grad():
        x = model.encode_image(pixels, normalize=True)  # type: ignore[operator]
        return F.linear(F.normalize(F.linear(x, projection, offset), dim=1), weights, bias)


def test_before_training_the_enhancer_gives_the_logits_of_the_plain_model(member: dict[str, NDArray[np.float32]], pixels: torch.Tensor) -> None:
    with torch.no_grad():
        found = Enhancer(clip(), member).logits(pixels)
    torch.testing.assert_close(found, said(clip(), member, pixels), rtol=0, atol=1e-6)


def test_only_queries_values_and_the_member_are_trained(member: dict[str, NDArray[np.float32]], pixels: torch.Tensor) -> None:
    enhancer, plain = Enhancer(clip(), member), clip().state_dict()
    enhancer.learn(pixels, pixels.flip(3))
    enhancer.learn(pixels, pixels.flip(3))  # before the first step the factors `up` are 0, so no gradient reaches the factors `down`
    with_gradient = {name for name, parameter in enhancer.model.named_parameters() if parameter.grad is not None}
    block = "visual.transformer.resblocks.{}.attn.parametrizations.in_proj_weight.0.{}"
    assert with_gradient == {block.format(layer, part) for layer in range(2) for part in ("down", "up")}
    assert all(parameter.grad.any() for parameter in enhancer.model.parameters() if parameter.grad is not None)
    moved = {name for name, value in enhancer.merged().items() if not torch.equal(value, plain[name])}
    assert moved == {f"visual.transformer.resblocks.{layer}.attn.in_proj_weight" for layer in range(2)}
    for name in moved:
        changed = (enhancer.merged()[name] != plain[name]).view(3, -1).any(1)
        assert changed.tolist() == [True, False, True], "queries and values must change, keys must not"
    assert all(not np.array_equal(array, member[name]) for name, array in enhancer.member().items())


def test_the_merged_weights_load_into_an_ordinary_model_and_give_the_same_logits(member: dict[str, NDArray[np.float32]], pixels: torch.Tensor) -> None:
    enhancer = Enhancer(clip(), member)
    for _ in range(3):
        enhancer.learn(pixels, pixels.flip(3))
    other = clip(seed=1)
    other.load_state_dict(enhancer.merged(), strict=True)
    with torch.no_grad():
        torch.testing.assert_close(said(other, enhancer.member(), pixels), enhancer.logits(pixels), rtol=0, atol=1e-6)
    assert not torch.allclose(said(clip(), enhancer.member(), pixels), enhancer.logits(pixels), atol=1e-4)


@pytest.mark.parametrize("n_threads", [1, 3])
def test_a_restored_training_goes_on_as_if_undisturbed(
    member: dict[str, NDArray[np.float32]], images: list[Image.Image], n_threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(enhance, "BATCH_ROWS", 16)
    whole, cut = Enhancer(clip(), member), Enhancer(clip(), member)
    losses = list(whole.train(images, preprocess, SIDE, steps=7))
    before = list(cut.train(images, preprocess, SIDE, steps=4, n_threads=n_threads))
    again = Enhancer(clip(), member)
    again.restore(cut.state())
    assert before + list(again.train(images, preprocess, SIDE, steps=7)) == losses
    assert again.state().keys() == whole.state().keys()
    for name, array in again.state().items():
        assert np.array_equal(array, whole.state()[name]), name


def test_the_state_before_the_first_step_can_be_restored(member: dict[str, NDArray[np.float32]], images: list[Image.Image]) -> None:
    one, two = Enhancer(clip(), member), Enhancer(clip(), member, random_state=1)
    two.restore(one.state())
    for name, array in two.state().items():
        assert np.array_equal(array, one.state()[name])


def test_strong_views_depend_only_on_step_image_and_seed(images: list[Image.Image]) -> None:
    views, others = (enhance._Views(images, preprocess, SIDE, seed) for seed in (0, 1))
    weak, strong = views.of(3, 5)  # type: ignore[misc]
    assert np.array_equal(weak, preprocess(images[5])), "the weak view is the encoder's own preprocessing"
    assert strong.shape == weak.shape
    views.of(0, 0)
    assert np.array_equal(views.of(3, 5)[1], strong)  # type: ignore[index]
    for other in (views.of(4, 5)[1], others.of(3, 5)[1]):  # type: ignore[index]
        assert not np.array_equal(other, strong)


def test_labels_less_confident_than_the_mean_get_a_lower_weight() -> None:
    random = np.random.default_rng(0)
    confidence = torch.tensor(np.concatenate([random.normal(0.9, 0.02, 500), random.normal(0.4, 0.05, 300)]).clip(0, 1))
    sureness = Sureness.after(None, confidence)
    weights = sureness.weights(confidence)
    above = confidence >= sureness.mean
    assert (weights[above] == 1).all()
    low = confidence[~above]
    expected = np.exp(-((low.numpy() - float(sureness.mean)) ** 2) / (2 * confidence.numpy().var()))
    np.testing.assert_allclose(weights[~above].numpy(), expected)
    assert bool((weights[~above][low.argsort()].diff() > 0).all())
    moved = Sureness.after(sureness, torch.ones(800, dtype=torch.float64))
    assert float(moved.mean) == pytest.approx(0.999 * float(sureness.mean) + 0.001)
    assert float(Sureness.after(None, torch.ones(5)).variance) == pytest.approx(1e-6)


def test_training_improves_labels_that_were_roughly_right(
    member: dict[str, NDArray[np.float32]], images: list[Image.Image], pixels: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(enhance, "LEARNING_RATE", 1e-3)
    enhancer = Enhancer(clip(), member)
    losses = list(enhancer.train(images, preprocess, SIDE, steps=20))
    assert np.mean(losses[-5:]) < 0.9 * np.mean(losses[:5])
    before, after = said(clip(), member, pixels), said(enhancer.model, enhancer.member(), pixels)
    truth = np.arange(len(images)) % CLASSES
    scores = [accuracy(truth, logits.argmax(1).numpy()) for logits in (before, after)]
    assert scores[1] >= scores[0] + 0.08


@pytest.mark.parametrize(("n", "steps"), [(50_000, 15_600), (300, 80), (20, 40)])
def test_the_schedule_is_the_published_one(n: int, steps: int) -> None:
    assert schedule(n) == steps


def test_a_model_of_half_precision_keeps_its_precision(member: dict[str, NDArray[np.float32]], pixels: torch.Tensor) -> None:
    enhancer = Enhancer(clip().bfloat16(), member)
    for _ in range(2):
        enhancer.learn(pixels, pixels.flip(3))
    assert {value.dtype for value in enhancer.merged().values()} == {torch.bfloat16}
    assert {value.dtype for value in enhancer.member().values()} == {np.dtype(np.float32)}


def test_a_vision_tower_without_attention_is_refused(member: dict[str, NDArray[np.float32]]) -> None:
    model = nn.Module()
    model.visual = nn.Linear(3, 3)
    with pytest.raises(ValueError, match="its vision tower has no attention blocks"):
        Enhancer(model, member)


def test_a_vision_tower_of_timm_can_be_enhanced(member: dict[str, NDArray[np.float32]], pixels: torch.Tensor) -> None:
    torch.manual_seed(0)
    trunk = {"timm_model_name": "vit_tiny_patch16_224", "timm_model_pretrained": False, "timm_pool": "token", "timm_proj": "linear", "image_size": 224}
    pixels = F.interpolate(pixels[:4], size=224)
    model = open_clip.CLIP(embed_dim=24, vision_cfg=trunk, text_cfg=TEXT).eval()
    plain = {name: value.clone() for name, value in model.state_dict().items()}
    enhancer = Enhancer(model, member)
    for _ in range(2):
        enhancer.learn(pixels, pixels.flip(3))
    moved = {name for name, value in enhancer.merged().items() if not torch.equal(value, plain[name])}
    assert moved == {f"visual.trunk.blocks.{layer}.attn.qkv.weight" for layer in range(12)}
    for name in moved:
        assert (enhancer.merged()[name] != plain[name]).view(3, -1).any(1).tolist() == [True, False, True], "queries and values must change, keys must not"
    model = open_clip.CLIP(embed_dim=24, vision_cfg=trunk, text_cfg=TEXT).eval()
    model.load_state_dict(enhancer.merged(), strict=True)
    with torch.no_grad():
        torch.testing.assert_close(said(model, enhancer.member(), pixels), enhancer.logits(pixels), rtol=0, atol=1e-5)
