"""ASD on pixels, with tiny networks and images."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.base import clone
from sklearn.cluster import KMeans
from torch.nn import functional as F

from gsec_core.clustering.metrics import accuracy
from gsec_core.methods.asd import pixels
from gsec_core.methods.asd.pixels import ASDPixels, Learner, network, strong_views, weak_views

Images = NDArray[np.uint8]
CLASSES, SIDE = 4, 16
TINY: dict[str, Any] = {"depth": 10, "width": 1, "device": "cpu"}


def shapes(n: int) -> Images:
    """Squares, discs and rhombs of four colours, somewhere on a grey gradient of random direction. The class of an image is its colour."""
    random, (rows, columns) = np.random.default_rng(0), np.mgrid[:SIDE, :SIDE]
    found = []
    for number in range(n):
        down, right = (abs(axis - centre) for axis, centre in zip((rows, columns), random.uniform(4, 12, 2), strict=True))
        inside = (np.maximum(down, right), np.hypot(down, right), (down + right) / 1.3)[random.integers(3)] < random.uniform(3, 4.5)
        turn = random.uniform(0, 2 * np.pi)
        slope = 128 + random.uniform(30, 70) * ((rows / 7.5 - 1) * np.cos(turn) + (columns / 7.5 - 1) * np.sin(turn))
        image = np.repeat(slope[..., None], 3, 2)
        image[inside] = random.uniform(0.8, 1.1) * np.array([[220, 60, 60], [60, 200, 60], [70, 70, 230], [220, 210, 60]])[number % CLASSES]
        found.append(np.clip(image + random.normal(0, 12, image.shape), 0, 255).astype(np.uint8))
    return np.stack(found)


@pytest.fixture(scope="module")
def images() -> Images:
    return shapes(60)


def test_the_network_has_the_size_and_the_feature_maps_of_the_published_one() -> None:
    module = network(10, 28, 2)
    assert sum(p.numel() for p in module.parameters()) == pytest.approx(1.47e6, rel=0.01), "the number of parameters of FixMatch's WRN-28-2 for ten classes"
    assert module(torch.zeros(2, 3, 32, 24)).shape == (2, 10)
    maps: list[torch.Size] = []
    module.get_submodule("norm").register_forward_hook(lambda layer, given, found: maps.append(found.shape))
    module(torch.zeros(2, 3, 32, 24))
    assert maps == [torch.Size([2, 128, 8, 6])]


def test_a_weak_view_is_a_flip_and_a_shift_with_reflection() -> None:
    image = np.random.default_rng(0).integers(256, size=(1, 24, 16, 3), dtype=np.uint8)
    padded = np.pad(image[0], ((3, 3), (2, 2), (0, 0)), "reflect")
    possible = {cut.tobytes() for y in range(7) for x in range(5) for cut in (padded[y : y + 24, x : x + 16], padded[y : y + 24, x : x + 16][:, ::-1])}
    views = weak_views(image, np.zeros(2000, np.int64), np.random.default_rng(1))
    assert {view.tobytes() for view in views} == possible, "all 70 possible views must occur, and no others"


def test_strong_views_depend_on_the_seed_only_and_leave_torchs_generator_unchanged(images: Images) -> None:
    rows = torch.from_numpy(images).permute(0, 3, 1, 2)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one, again, other = strong_views(rows, 3), strong_views(rows, 3), strong_views(rows, 4)
    assert torch.equal(torch.get_rng_state(), before)
    assert one.dtype == torch.uint8
    assert one.shape == rows.shape
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert torch.equal(rows, torch.from_numpy(images).permute(0, 3, 1, 2)), "the given images must not be changed"


def test_a_strong_view_has_the_pixels_of_its_own_image_and_a_square_hole(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = torch.arange(200, dtype=torch.uint8)[:, None, None, None].expand(200, 3, 16, 16)
    monkeypatch.setattr(pixels, "_STRONG_STEPS", pixels._STRONG_STEPS[2:])
    views = strong_views(rows, 0)
    holes = (views != rows).any(1)
    assert torch.equal(views[:, :, ~holes.any(0)], rows[:, :, ~holes.any(0)])
    assert all(set(view.unique().tolist()) <= {number, 127} for number, view in enumerate(views))
    height, width = holes.any(2).sum(1), holes.any(1).sum(1)
    assert torch.equal(height, width), "a hole must be a square"
    assert torch.equal(holes.sum((1, 2)), height * width)
    assert int(height.max()) in (7, 8)
    assert len(height.unique()) >= 6


def test_a_training_step_uses_nesterov_momentum_and_decays_weights_but_not_biases() -> None:
    trained = pixels.Trained(3, 10, 1, 0, "cpu")
    weight, bias = (dict(trained.module.named_parameters())[f"head.fc.{name}"] for name in ("weight", "bias"))
    with torch.no_grad():
        bias.fill_(1)
    before, gradients = (weight.detach().clone(), bias.detach().clone()), (torch.full_like(weight, 2), torch.full_like(bias, 3))
    trained.descend((weight * gradients[0]).sum() + (bias * gradients[1]).sum(), 0.1)
    torch.testing.assert_close(weight, before[0] - 0.1 * 1.9 * (2 + 5e-4 * before[0]))
    torch.testing.assert_close(bias, before[1] - 0.1 * 1.9 * 3)


def test_the_running_average_follows_fast_at_first_and_slowly_later() -> None:
    average, now = torch.tensor(0.0), torch.tensor(1.0)
    assert float(pixels._average(average, now, 1)) == pytest.approx(1 - 2 / 11)
    assert float(pixels._average(average, now, torch.tensor(100_000))) == pytest.approx(0.001)


def test_the_first_phase_learns_instances_and_the_second_the_clusters(images: Images) -> None:
    learner = Learner(images, 3, max_steps=16, **TINY)
    assert (learner.size, learner.instance_steps) == (15, 6)
    first = learner.sample.copy()
    expected = pixels._scaled(learner._weak(first[learner._batch(15, 15, 0, pixels._INSTANCE)], pixels._INSTANCE))
    with torch.no_grad():
        found = F.cross_entropy(learner._trained.module.train()(expected), torch.from_numpy(learner._batch(15, 15, 0, pixels._INSTANCE)))
    assert learner.learn() == pytest.approx(float(found), rel=1e-5), "the loss must be the cross-entropy of the sample with each image as a class"
    assert (learner.transitions.last >= 0).all(), "all images must have a class"
    for _ in range(3):
        learner.learn()
    assert np.array_equal(np.bincount(learner.class_of), np.full(15, 4)), "four samples without repetition give each image a class and each class four images"
    for _ in range(2):
        learner.learn()
    assert np.array_equal(learner.class_of[learner.sample], np.arange(15))
    with pytest.raises(ValueError, match="step = 6: there are no clusters before step 7"):
        _ = learner.averaged
    learner.learn()
    assert np.array_equal(learner.drawn, np.arange(60))
    assert set(learner.labels.tolist()) <= {0, 1, 2}
    assert len({(c, k) for c, k in zip(learner.class_of.tolist(), learner.labels.tolist(), strict=True)}) == 15, "images of a class must have one label"


@pytest.mark.parametrize("cut", [0, 1, 5, 6, 7, 11, 15, 16])
def test_a_training_restored_at_any_step_goes_on_as_if_undisturbed(images: Images, cut: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pixels, "BATCH_ROWS", 16)
    whole, before, again = (Learner(images, 3, max_steps=16, **TINY) for _ in range(3))
    losses = list(whole.train())
    assert len(losses) == 16
    first = [before.learn() for _ in range(cut)]
    again.restore({name: array.copy() for name, array in before.state().items()})
    assert first + list(again.train()) == losses
    assert again.state().keys() == whole.state().keys()
    for name, array in again.state().items():
        assert np.array_equal(array, whole.state()[name]), name


def test_another_seed_gives_another_training(images: Images) -> None:
    one, other = (next(Learner(images, 3, max_steps=4, random_state=seed, **TINY).train()) for seed in (0, 1))
    assert one != other


def test_an_interrupted_fit_goes_on_from_its_checkpoint(images: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pixels, "CHECKPOINT_STEPS", 3)
    small = ASDPixels(3, max_steps=10, **TINY)
    undisturbed = clone(small).fit(images)
    told: list[int] = []

    def stop(steps: int) -> None:
        told.append(steps)
        if sum(told) == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        clone(small).fit(images, checkpoint=tmp_path, progress=stop)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000003.parquet", "step-00000006.parquet"]
    told.clear()
    again = clone(small).fit(images, checkpoint=tmp_path, progress=told.append)
    assert told == [6, 1, 1, 1, 1]
    assert np.array_equal(again.predict_proba(images), undisturbed.predict_proba(images))
    assert np.array_equal(again.labels_, undisturbed.labels_)
    told.clear()
    done = clone(small).fit(images, checkpoint=tmp_path, progress=told.append)
    assert told == [10], "the finished fit must have nothing left to do"
    assert np.array_equal(done.labels_, undisturbed.labels_)


def test_numbers_of_numpy_can_be_parameters_of_a_training_with_checkpoints(images: Images, tmp_path: Path) -> None:
    parameters = {**TINY, "random_state": np.int64(1)}
    fitted = ASDPixels(np.int64(3), max_steps=2, **parameters).fit(images, checkpoint=tmp_path)  # type: ignore[arg-type]
    plain = ASDPixels(3, max_steps=2, **{**TINY, "random_state": 1}).fit(images, checkpoint=tmp_path)
    assert np.array_equal(fitted.labels_, plain.labels_)


def test_a_checkpoint_of_other_images_or_parameters_is_refused(images: Images, tmp_path: Path) -> None:
    small = ASDPixels(3, max_steps=2, **TINY).fit(images, checkpoint=tmp_path)
    with pytest.raises(ValueError, match="belongs to a training with max_steps = 2, and this one has 3"):
        clone(small).set_params(max_steps=3).fit(images, checkpoint=tmp_path)
    with pytest.raises(ValueError, match="belongs to a training with images = "):
        clone(small).fit(images[::-1], checkpoint=tmp_path)


def test_asd_finds_classes_of_images_that_k_means_on_pixels_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pixels, "BATCH_ROWS", 64)
    monkeypatch.setattr(pixels, "INSTANCE_SHARE", 0.5)
    images, truth = shapes(360), np.arange(360) % CLASSES
    known, new = images[:300], images[300:]
    assert accuracy(truth[:300], KMeans(CLASSES, n_init=5, random_state=0).fit_predict(known.reshape(300, -1).astype(float))) <= 0.45
    fitted = ASDPixels(CLASSES, max_steps=320, random_state=1, **TINY).fit(known)
    assert accuracy(truth[:300], fitted.labels_) >= 0.7
    assert accuracy(truth[300:], fitted.predict(new)) >= 0.65
    assert np.array_equal(fitted.predict(known), fitted.labels_)
    assert (np.diff(np.bincount(fitted.labels_, minlength=CLASSES)) <= 0).all(), "cluster 0 is the largest"
    np.testing.assert_array_equal(fitted.predict_proba(known).max(1), fitted.confidence_)


@pytest.mark.parametrize(("n", "n_clusters", "shape"), [(2, 2, (8, 8)), (3, 3, (16, 8)), (40, 30, (9, 11)), (12, 1, (96, 96))])
@pytest.mark.parametrize("max_steps", [1, 4])
def test_small_and_odd_inputs_give_finite_results(n: int, n_clusters: int, shape: tuple[int, int], max_steps: int) -> None:
    images = np.full((n, *shape, 3), 90, np.uint8)
    found = ASDPixels(n_clusters, max_steps=max_steps, **TINY).fit(images)
    assert found.labels_.shape == (n,)
    assert np.isfinite(found.predict_proba(images)).all()
    assert found.predict_proba(images).shape == (n, n_clusters)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_clusters": 0}, "n_clusters = 0: it must be at least 1"),
        ({"max_steps": 0}, "max_steps = 0: it must be at least 1"),
        ({"depth": 18}, "depth = 18: it must be 10, 16, 22, 28"),
        ({"n_clusters": 61}, "n_clusters = 61: n_samples = 60"),
        ({"device": "tpu"}, 'device = "tpu"'),
    ],
)
def test_wrong_parameters_are_errors_that_name_them(images: Images, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ASDPixels(**({"n_clusters": 3, "max_steps": 2, **TINY} | change)).fit(images)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (np.zeros((9, 16, 16, 3), np.float32), r"images: float32 \(9, 16, 16, 3\): give uint8 \(n_samples, height, width, 3\)"),
        (np.zeros((9, 16, 16), np.uint8), r"images: uint8 \(9, 16, 16\)"),
        (np.zeros((9, 16, 16, 4), np.uint8), r"images: uint8 \(9, 16, 16, 4\)"),
        (np.zeros((0, 16, 16, 3), np.uint8), "images: there are none"),
        (np.zeros((9, 97, 16, 3), np.uint8), "images: 97 x 16 pixels: each side must have 8 to 96. Resize them"),
        (np.zeros((9, 16, 7, 3), np.uint8), "images: 16 x 7 pixels"),
    ],
)
def test_wrong_images_are_errors_that_say_what_to_give(given: NDArray[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ASDPixels(3, max_steps=2, **TINY).fit(given)


def test_new_images_of_another_size_than_those_of_the_fit_are_refused(images: Images) -> None:
    fitted = ASDPixels(3, max_steps=2, **TINY).fit(images)
    with pytest.raises(ValueError, match="images: 8 x 16 pixels, and it was fitted on 16 x 16"):
        fitted.predict(images[:, :8])
