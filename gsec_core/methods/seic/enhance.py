"""Stage two of SEIC (Li et al. 2025, https://arxiv.org/abs/2508.01254): the vision encoder is trained on the confident labels of stage one.

The queries and values of every attention block get a low-rank change (LoRA, Hu et al. 2021, https://arxiv.org/abs/2106.09685), which is
trained together with a member's two linear maps. The plain view of an image gives a label and its confidence; the cropped and recoloured view
is trained on that label, with less weight if the confidence is below average. Texts are not used in this stage.

There is no official code: rank, views, weights and schedule are those of an implementation from the paper. Recolouring changes contrast,
brightness and saturation. Nothing keeps the clusters apart in this stage: good labels improve, but clusters of poor labels can merge.
"""

import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from gsec_core.methods.enhancer import Images
from gsec_core.methods.plan import seed_of

RANK, ALPHA = 128, 128
"""Parameters of the low-rank changes, which are multiplied by alpha / rank."""

EPOCHS, BATCH_ROWS, LEARNING_RATE = 40, 128, 5e-5

MOMENTUM, LEAST_VARIANCE = 0.999, 1e-6
"""Parameters of the running mean and variance of the labels' confidence."""

_AHEAD = 2
"""Number of batches that are read in advance."""


def _blocks(model: nn.Module) -> dict[str, tuple[nn.Module, str]]:
    """The module and the name of its parameter with the stacked queries, keys and values, (3 d, d), for each attention block of the vision tower, by name."""
    found: dict[str, tuple[nn.Module, str]] = {}
    for name, module in model.get_submodule("visual").named_modules():
        if getattr(module, "in_proj_weight", None) is not None:  # torch's and open_clip's own
            found[f"visual.{name}"] = module, "in_proj_weight"
        elif name.endswith("qkv") and isinstance(module, nn.Linear) and module.out_features == 3 * module.in_features:  # timm's
            found[f"visual.{name}"] = module, "weight"
    return found


class Sureness(NamedTuple):
    """Running mean and variance, over batches, of the largest posteriors."""

    mean: Tensor
    variance: Tensor

    @classmethod
    def after(cls, before: "Sureness | None", confidence: Tensor) -> "Sureness":
        """Update with the confidences (rows,) of a batch; the first batch gives the initial values."""
        now = cls(confidence.mean(), confidence.var(correction=0).clamp(min=LEAST_VARIANCE))
        return now if before is None else cls(*(MOMENTUM * old + (1 - MOMENTUM) * new for old, new in zip(before, now, strict=True)))

    def weights(self, confidence: Tensor) -> Tensor:
        """Weight of each label (rows,): 1 if its confidence is at least the mean, below that a Gaussian around the mean."""
        return (-(confidence - self.mean).clamp(max=0).square() / (2 * self.variance)).exp()


class LowRank(nn.Module):
    """Low-rank change of an attention block's queries and values: adds ALPHA / RANK times up @ down to its weights (3 d, d); zero at first."""

    def __init__(self, d: int, generator: torch.Generator) -> None:
        super().__init__()
        self.down, self.up = nn.Parameter(torch.empty(2, RANK, d)), nn.Parameter(torch.zeros(2, d, RANK))
        for down in self.down.data:
            nn.init.kaiming_uniform_(down, a=math.sqrt(5), generator=generator)

    def forward(self, weight: Tensor) -> Tensor:
        queries, values = (ALPHA / RANK * (self.up @ self.down)).to(weight.dtype)
        return weight + torch.cat([queries, torch.zeros_like(queries), values])


class Enhancer:
    """Training of a CLIP's vision tower together with a member of stage one.

    Parameters
    ----------
    model : a CLIP of open_clip, with ``encode_image`` and a vision transformer ``visual``, which is parametrised in place; its original weights do not change
    member : the arrays of a member of `gsec_core.SEIC`, fitted on this model's embeddings
    random_state : seed
    device : cpu, cuda or cuda:N

    Raises ValueError if ``visual`` has no attention blocks.
    """

    def __init__(self, model: nn.Module, member: Mapping[str, NDArray[np.float32]], *, random_state: int = 0, device: str = "cpu") -> None:
        self.model = model.to(device).eval().requires_grad_(False)
        self.random_state = random_state
        self.device = device
        self.step = 0
        self.sureness: Sureness | None = None
        self._blocks = _blocks(model)
        if not self._blocks:
            raise ValueError("model: its vision tower has no attention blocks that can be adapted. Give a CLIP of open_clip with a vision transformer.")
        generator = torch.Generator().manual_seed(int(np.random.SeedSequence([random_state]).generate_state(1)[0]))
        self._dtype = next(self.model.parameters()).dtype
        self._trained: dict[str, nn.Parameter] = {}
        for name, (module, weight) in self._blocks.items():
            change = LowRank(getattr(module, weight).shape[1], generator).to(device)
            parametrize.register_parametrization(module, weight, change)
            self._trained |= {f"{name}.{part}": parameter for part, parameter in change.named_parameters()}
        self._side = {name: nn.Parameter(torch.from_numpy(array.copy()).to(device)) for name, array in member.items()}
        self._trained |= self._side
        self._optimizer = torch.optim.AdamW(self._trained.values(), lr=LEARNING_RATE, weight_decay=0.0, fused=True)

    @staticmethod
    def fits(model: nn.Module) -> bool:
        """Whether a model's vision tower has attention blocks that can be adapted. The model may be without weights."""
        return bool(_blocks(model))

    @staticmethod
    def steps(n: int) -> int:
        """Number of steps of the published schedule for ``n`` images."""
        return schedule(n)

    def posteriors(self, pixels: NDArray[Any]) -> NDArray[np.float32]:
        """The member's current posteriors (rows, clusters) of preprocessed images (rows, 3, height, width)."""
        with torch.no_grad():
            found: NDArray[np.float32] = self.logits(torch.from_numpy(pixels)).softmax(1).cpu().numpy()
        return found

    def logits(self, pixels: Tensor) -> Tensor:
        """Logits (rows, clusters) of preprocessed images (rows, 3, height, width)."""
        embedded: Tensor = self.model.encode_image(pixels.to(self.device, self._dtype))  # type: ignore[operator]
        x = F.normalize(embedded.float(), dim=1)
        vectors = F.normalize(F.linear(x, self._side["projection"], self._side["projection_bias"]), dim=1)
        return F.linear(vectors, self._side["weights"], self._side["bias"])

    def learn(self, weak: Tensor, strong: Tensor) -> float:
        """Take a step on two views (rows, 3, height, width) of the same images; the weak views give the labels. Returns the loss."""
        with torch.no_grad():
            confidence, labels = self.logits(weak).softmax(1).max(1)
            self.sureness = Sureness.after(self.sureness, confidence)
            weights = self.sureness.weights(confidence)
        loss = (weights * F.cross_entropy(self.logits(strong), labels, reduction="none")).mean()
        self._optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        self.step += 1
        return float(loss.detach())

    def train(
        self, images: Images, preprocess: Callable[[Image.Image], NDArray[Any]], side: int, steps: int | None = None, n_threads: int = 1
    ) -> Iterator[float]:
        """Train until `step` equals ``steps``; None = the published 40 epochs of batches of 128. Yields the loss after each step.

        ``preprocess`` and ``side`` are those of the encoder. ``n_threads`` threads read and crop images; their number does not affect the result. Images
        that are None are left out of their batch; a batch without images changes nothing, and its loss is NaN.
        """
        views = _Views(images, preprocess, side, self.random_state)
        under_way: deque[list[Future[_Pair | None]]] = deque()
        with ThreadPoolExecutor(n_threads, thread_name_prefix="enhance") as pool:
            try:
                for batch in self._batches(len(images), schedule(len(images)) if steps is None else steps):
                    under_way.append([pool.submit(views.of, step, row) for step, row in batch])
                    if len(under_way) > _AHEAD:
                        yield self._learn_from(under_way.popleft())
                while under_way:
                    yield self._learn_from(under_way.popleft())
            finally:
                pool.shutdown(cancel_futures=True)

    def _learn_from(self, batch: "list[Future[_Pair | None]]") -> float:
        pairs = [pair for pair in (future.result() for future in batch) if pair is not None]
        if not pairs:
            self.step += 1
            return math.nan
        weak, strong = (torch.from_numpy(np.stack(views)) for views in zip(*pairs, strict=True))
        return self.learn(weak, strong)

    def _batches(self, n: int, steps: int) -> Iterator[list[tuple[int, int]]]:
        """Batches of the remaining steps, as pairs of step and number of the image."""
        batch, order = min(BATCH_ROWS, n), np.empty(0, np.int64)
        for step in range(self.step, steps):
            epoch, place = divmod(step, n // batch)
            if not place or not len(order):
                order = np.random.default_rng([self.random_state, epoch]).permutation(n)
            yield [(step, int(row)) for row in order[place * batch : (place + 1) * batch]]

    def member(self) -> dict[str, NDArray[np.float32]]:
        """The current arrays of the member."""
        return {name: _array(parameter) for name, parameter in self._side.items()}

    def merged(self) -> dict[str, Tensor]:
        """State dict of the adapted model under the names of the original model: an ordinary checkpoint of open_clip."""
        plain = {name: value for name, value in self.model.state_dict().items() if ".parametrizations." not in name}
        return plain | {f"{name}.{weight}": getattr(module, weight).detach().clone() for name, (module, weight) in self._blocks.items()}

    def state(self) -> dict[str, NDArray[Any]]:
        """State with which training can resume with identical results."""
        found: dict[str, NDArray[Any]] = {"step": np.array(self.step)}
        if self.sureness is not None:
            found["sureness"] = np.array([float(value) for value in self.sureness], np.float32)
        for name, parameter in self._trained.items():
            moments = self._optimizer.state.get(parameter, {})
            found |= {name: _array(parameter)} | {f"{name}.{key}": _array(moments[key]) for key in _MOMENTS if key in moments}
        return found

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Resume from a result of `state`, with the same model and seed."""
        self.step = int(state["step"])
        self.sureness = Sureness(*torch.from_numpy(state["sureness"].copy()).to(self.device)) if self.step else None
        with torch.no_grad():
            for name, parameter in self._trained.items():
                parameter.copy_(torch.from_numpy(state[name].copy()))
        if self.step:
            moments = [
                {key: torch.from_numpy(state[f"{name}.{key}"].copy()) for key in _MOMENTS} | {"step": torch.tensor(float(self.step))} for name in self._trained
            ]
            self._optimizer.load_state_dict({**self._optimizer.state_dict(), "state": dict(enumerate(moments))})


_MOMENTS = ("exp_avg", "exp_avg_sq")
"""Torch's names of Adam's running means."""


def schedule(n: int) -> int:
    """Number of steps for ``n`` images."""
    return EPOCHS * (n // min(BATCH_ROWS, n))


_Pair = tuple[NDArray[Any], NDArray[Any]]

_DRAWING = Lock()
"""Guards torch's global generator, the only one that torchvision uses."""


class _Views:
    """Two views of an image at a step: plain as for the encoder, and cropped and recoloured. They depend on step, image and seed alone."""

    def __init__(self, images: Images, preprocess: Callable[[Image.Image], NDArray[Any]], side: int, random_state: int) -> None:
        self._images, self._preprocess, self._random_state = images, preprocess, random_state
        self._crop = v2.RandomResizedCrop(side, scale=(0.5, 1.0), interpolation=v2.InterpolationMode.BICUBIC)
        self._colours = v2.ColorJitter(0.4, 0.4, 0.4)

    def of(self, step: int, number: int) -> _Pair | None:
        """Both views; None if the image is no longer available. Safe to call from several threads."""
        image = self._images[number]
        return None if image is None else (self._preprocess(image), self._preprocess(self._strong(image, step, number)))

    def _strong(self, image: Image.Image, step: int, number: int) -> Image.Image:
        with _DRAWING, torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_of(self._random_state, step, number))
            crop, colours = self._crop.make_params([image]), self._colours.make_params([image])
            flipped, recoloured, grey = (torch.rand(3) < torch.tensor([0.5, 0.8, 0.2])).tolist()
        image = self._crop.transform(image, crop)
        if flipped:
            image = functional.horizontal_flip(image)
        if recoloured:
            image = self._colours.transform(image, colours)
        return functional.rgb_to_grayscale(image, 3) if grey else image


def _array(values: Tensor) -> NDArray[Any]:
    return values.detach().cpu().numpy().copy()
