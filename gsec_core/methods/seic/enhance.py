"""Stage two of SEIC (Li et al. 2025, https://arxiv.org/abs/2508.01254): the vision encoder learns from the sure labels of stage one.

The queries and values of every attention block get a low-rank change (LoRA, Hu et al. 2021, https://arxiv.org/abs/2106.09685), which is
trained together with a member's two linear maps. An image as the encoder sees it gives a label and how sure it is; the same image, cropped
and recoloured, is taught that label, the less the surer most others are. Texts take no part any more.

There is no official code: rank, views, weights and schedule are those of an implementation from the paper. Contrast, brightness and saturation
are what is recoloured here. Nothing keeps the clusters apart in this stage: good labels become better, and clusters of poor ones can merge.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

RANK, ALPHA = 128, 128
"""Of the changes, which are multiplied by alpha / rank."""

EPOCHS, BATCH_ROWS, LEARNING_RATE = 40, 128, 5e-5

MOMENTUM, LEAST_VARIANCE = 0.999, 1e-6
"""Of the running mean and variance of how sure labels are."""

_ATTENTION = "in_proj_weight"
"""What torch and open_clip call queries, keys and values one upon another, (3 d, d)."""


class Images(Protocol):
    """Decoded RGB images by number."""

    def __len__(self) -> int: ...

    def __getitem__(self, number: int, /) -> Image.Image: ...


class Sureness(NamedTuple):
    """Running mean and variance, over batches, of the largest posteriors."""

    mean: Tensor
    variance: Tensor

    @classmethod
    def after(cls, before: "Sureness | None", confidence: Tensor) -> "Sureness":
        """A batch (rows,), which is the start if there was none before."""
        now = cls(confidence.mean(), confidence.var(correction=0).clamp(min=LEAST_VARIANCE))
        return now if before is None else cls(*(MOMENTUM * old + (1 - MOMENTUM) * new for old, new in zip(before, now, strict=True)))

    def weights(self, confidence: Tensor) -> Tensor:
        """How much each label (rows,) counts: 1 from the mean on, below by a Gaussian around it."""
        return (-(confidence - self.mean).clamp(max=0).square() / (2 * self.variance)).exp()


class LowRank(nn.Module):
    """What changes queries and values of an attention block: its weights (3 d, d) plus alpha / rank times up down, nothing at first."""

    def __init__(self, d: int, generator: torch.Generator, rank: int = RANK, alpha: float = ALPHA) -> None:
        super().__init__()
        self.down, self.up = nn.Parameter(torch.empty(2, rank, d)), nn.Parameter(torch.zeros(2, d, rank))
        self.factor = alpha / rank
        for down in self.down.data:
            nn.init.kaiming_uniform_(down, a=math.sqrt(5), generator=generator)

    def forward(self, weight: Tensor) -> Tensor:
        queries, values = (self.factor * (self.up @ self.down)).to(weight.dtype)
        return weight + torch.cat([queries, torch.zeros_like(queries), values])


class Enhancer:
    """A CLIP's vision tower and a member of stage one, in training.

    Parameters
    ----------
    model : a CLIP of open_clip, with ``encode_image`` and a vision transformer ``visual``, which is changed in place; its own weights are not
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
        blocks = {name: module for name, module in model.get_submodule("visual").named_modules() if getattr(module, _ATTENTION, None) is not None}
        if not blocks:
            raise ValueError("model: its vision tower has no attention blocks that can be enhanced. Give a CLIP with a vision transformer of open_clip.")
        generator = torch.Generator().manual_seed(int(np.random.SeedSequence([random_state]).generate_state(1)[0]))
        self._dtype = next(self.model.parameters()).dtype
        self._trained: dict[str, nn.Parameter] = {}
        for name, module in blocks.items():
            change = LowRank(getattr(module, _ATTENTION).shape[1], generator).to(device)
            parametrize.register_parametrization(module, _ATTENTION, change)
            self._trained |= {f"{name}.{part}": parameter for part, parameter in change.named_parameters()}
        self._side = {name: nn.Parameter(torch.from_numpy(array.copy()).to(device)) for name, array in member.items()}
        self._trained |= self._side
        self._optimizer = torch.optim.AdamW(self._trained.values(), lr=LEARNING_RATE, weight_decay=0.0, fused=True)

    def logits(self, pixels: Tensor) -> Tensor:
        """Of preprocessed images (rows, 3, height, width): (rows, clusters)."""
        embedded: Tensor = self.model.encode_image(pixels.to(self.device, self._dtype))  # type: ignore[operator]
        x = F.normalize(embedded.float(), dim=1)
        vectors = F.normalize(F.linear(x, self._side["projection"], self._side["projection_bias"]), dim=1)
        return F.linear(vectors, self._side["weights"], self._side["bias"])

    def learn(self, weak: Tensor, strong: Tensor) -> float:
        """A step on two views (rows, 3, height, width) of the same images, of which the first gives the labels. Returns the loss."""
        with torch.no_grad():
            confidence, labels = self.logits(weak).softmax(1).max(1)
            self.sureness = Sureness.after(self.sureness, confidence)
            weights = self.sureness.weights(confidence)
        loss = (weights * F.cross_entropy(self.logits(strong), labels, reduction="none")).mean()
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        self.step += 1
        return float(loss.detach())

    def train(
        self, images: Images, preprocess: Callable[[Image.Image], NDArray[Any]], side: int, steps: int | None = None, n_workers: int = 0
    ) -> Iterator[float]:
        """The loss of each step from `step` on, as it is made, up to ``steps``; None = the published 40 epochs of batches of 128.

        ``preprocess`` and ``side`` are the encoder's own. ``n_workers`` processes read and crop, 0 none but this one; they make no difference.
        """
        views = _Views(images, preprocess, side, self.random_state)
        batches = self._batches(len(images), schedule(len(images)) if steps is None else steps)
        for weak, strong in DataLoader(views, batch_sampler=batches, num_workers=n_workers):
            yield self.learn(weak, strong)

    def _batches(self, n: int, steps: int) -> Iterator[list[tuple[int, int]]]:
        """Of each step that is left the numbers of the images, each with the step."""
        batch, order = min(BATCH_ROWS, n), np.empty(0, np.int64)
        for step in range(self.step, steps):
            epoch, place = divmod(step, n // batch)
            if not place or not len(order):
                order = np.random.default_rng([self.random_state, epoch]).permutation(n)
            yield [(step, int(row)) for row in order[place * batch : (place + 1) * batch]]

    def member(self) -> dict[str, NDArray[np.float32]]:
        """The member's arrays, as they are now."""
        return {name: _array(parameter) for name, parameter in self._side.items()}

    def merged(self) -> dict[str, Tensor]:
        """The state of the adapted model under the names of the plain one: a checkpoint of open_clip like any other."""
        plain = {name: value for name, value in self.model.state_dict().items() if ".parametrizations." not in name}
        changed = {name: module for name, module in self.model.named_modules() if parametrize.is_parametrized(module, _ATTENTION)}
        return plain | {f"{name}.{_ATTENTION}": getattr(module, _ATTENTION).detach().clone() for name, module in changed.items()}

    def state(self) -> dict[str, NDArray[Any]]:
        """All that training needs to go on as if it had never stopped."""
        found: dict[str, NDArray[Any]] = {"step": np.array(self.step)}
        if self.sureness is not None:
            found["sureness"] = np.array([float(value) for value in self.sureness], np.float32)
        for name, parameter in self._trained.items():
            moments = self._optimizer.state.get(parameter, {})
            found |= {name: _array(parameter)} | {f"{name}.{key}": _array(moments[key]) for key in _MOMENTS if key in moments}
        return found

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Go on from what `state` gave, of the same model and seed."""
        self.step = int(state["step"])
        self.sureness = Sureness(*torch.from_numpy(state["sureness"].copy()).to(self.device)) if self.step else None
        with torch.no_grad():
            for name, parameter in self._trained.items():
                parameter.copy_(torch.from_numpy(state[name]))
        if self.step:
            moments = [
                {key: torch.from_numpy(state[f"{name}.{key}"].copy()) for key in _MOMENTS} | {"step": torch.tensor(float(self.step))} for name in self._trained
            ]
            self._optimizer.load_state_dict({**self._optimizer.state_dict(), "state": dict(enumerate(moments))})


_MOMENTS = ("exp_avg", "exp_avg_sq")
"""What torch calls Adam's running means."""


def schedule(n: int) -> int:
    """Steps for ``n`` images."""
    return EPOCHS * (n // min(BATCH_ROWS, n))


class _Views(Dataset[tuple[NDArray[Any], NDArray[Any]]]):
    """An image at a step in two views: as the encoder sees it, and cropped and recoloured. Depends on step, image and seed alone."""

    def __init__(self, images: Images, preprocess: Callable[[Image.Image], NDArray[Any]], side: int, random_state: int) -> None:
        self._images, self._preprocess, self._random_state = images, preprocess, random_state
        self._strong = v2.Compose(
            [
                v2.RandomResizedCrop(side, scale=(0.5, 1.0), interpolation=v2.InterpolationMode.BICUBIC),
                v2.RandomHorizontalFlip(0.5),
                v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4)], 0.8),
                v2.RandomGrayscale(0.2),
            ]
        )

    def __getitem__(self, at: tuple[int, int]) -> tuple[NDArray[Any], NDArray[Any]]:
        image = self._images[at[1]]
        with torch.random.fork_rng(devices=[]):  # torchvision knows the global generator alone
            torch.manual_seed(int(np.random.SeedSequence([self._random_state, *at]).generate_state(1, np.uint64)[0] >> 1))
            strong = self._strong(image)
        return self._preprocess(image), self._preprocess(strong)


def _array(values: Tensor) -> NDArray[Any]:
    return values.detach().cpu().numpy().copy()
