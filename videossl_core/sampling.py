"""Which clips, crops and flips make the batch of step i: a pure function of (seed, i).

There is no sampler state, so a resumed run, any number of loader processes and a replay see the same clips.
"""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.v2 import functional as F

from videossl_core.data.frames import FrameStore
from videossl_core.methods import Method
from videossl_core.teacher import Targets

if TYPE_CHECKING:
    from videossl_core.params import Params


@lru_cache(maxsize=4)
def _order(seed: int, stream: int, epoch: int, n: int) -> np.ndarray:
    return np.random.default_rng([seed, 3, stream, epoch]).permutation(n)


def videos_of_step(seed: int, step: int, stream: int, n: int, k: int) -> np.ndarray:
    """(k,) positions, out of n videos, drawn without replacement until all were seen, then anew."""
    at = np.arange(step * k, (step + 1) * k)
    return np.array([_order(seed, stream, int(i // n), n)[i % n] for i in at])


@dataclass(frozen=True)
class Draws:
    """Uniform numbers in [0, 1) for the clips of one step, each (batch_size,)."""

    start: np.ndarray
    y: np.ndarray
    x: np.ndarray
    flip: np.ndarray
    frame: np.ndarray
    other_y: np.ndarray
    other_x: np.ndarray
    other_flip: np.ndarray
    turn: np.ndarray
    first: np.ndarray
    first_by: np.ndarray
    second: np.ndarray
    second_by: np.ndarray
    hole_y: np.ndarray
    hole_x: np.ndarray


def draws_of_step(seed: int, step: int, batch_size: int) -> Draws:
    rng = np.random.default_rng([seed, 4, step])
    return Draws(*rng.random((len(fields(Draws)), batch_size)))


def clip_frames(count: int, start: int, length: int) -> np.ndarray:
    """Numbers of the ``length`` consecutive frames from ``start``; a video that ends early is looped."""
    return start + np.arange(length) % min(length, count - start)


def test_starts(count: int, length: int, last_clip: str) -> list[int]:
    """First frames of all consecutive non-overlapping clips (4.1); a shorter rest is dropped, or looped."""
    whole = max(1, count // length) if last_clip == "drop" else -(-count // length)
    return [i * length for i in range(whole)]


def centre_start(count: int, length: int) -> int:
    """First frame of the clip in the middle of the video."""
    return max(0, (count - length) // 2)


def read_clip(store: FrameStore, video: str, numbers: np.ndarray) -> Tensor:
    """(3, T, S, S) uint8: the frames with these numbers at the store's size S."""
    return torch.from_numpy(store.images(video, numbers)).permute(3, 0, 1, 2)


def together(clips: list[Tensor]) -> Tensor:
    """(N, 3, T, H, W) of clips, colours innermost in memory: as they come, and as the network wants them."""
    return torch.stack([clip.permute(1, 2, 3, 0) for clip in clips]).permute(0, 4, 1, 2, 3)


def crop(clip: Tensor, size: int, y: float, x: float, flip: bool = False) -> Tensor:
    """Cut a square out of all frames alike; y and x in [0, 1) range from the top and left to the end."""
    room_y, room_x = clip.shape[-2] - size + 1, clip.shape[-1] - size + 1
    top, left = int(y * room_y), int(x * room_x)
    part = clip[..., top : top + size, left : left + size]
    return part.flip(-1) if flip else part


# What a strong view may undergo: (T, 3, H, W) uint8 and a number in [0, 1) to the same shape.
DISTORTIONS: tuple[Callable[[Tensor, float], Tensor], ...] = (
    lambda x, by: F.adjust_brightness(x, 0.5 + by),
    lambda x, by: F.adjust_contrast(x, 0.5 + by),
    lambda x, by: F.adjust_saturation(x, 2 * by),
    lambda x, by: F.adjust_hue(x, by - 0.5),
    lambda x, by: F.adjust_sharpness(x, 2 * by),
    lambda x, by: F.posterize(x, 4 + int(4 * by)),
    lambda x, by: F.solarize(x, 128 + 127 * by),
    lambda x, by: F.rotate(x, 60 * by - 30),
    lambda x, by: F.equalize(x),
    lambda x, by: F.horizontal_flip(x),
)


def strong_view(clip: Tensor, draws: Draws, i: int) -> Tensor:
    """FixMatch's strong view of a clip (3, T, S, S) uint8: two distortions and a grey square, in all frames
    alike (RandAugment with two operations, then Cutout of half the side)."""
    frames = clip.transpose(0, 1)
    for which, by in ((draws.first[i], draws.first_by[i]), (draws.second[i], draws.second_by[i])):
        frames = DISTORTIONS[int(which * len(DISTORTIONS))](frames, float(by))
    half = clip.shape[-1] // 2
    y, x = (int(at * clip.shape[-1]) - half // 2 for at in (draws.hole_y[i], draws.hole_x[i]))
    frames = frames.clone()  # a distortion may give back what it was given
    frames[..., max(0, y) : y + half, max(0, x) : x + half] = 127
    return frames.transpose(0, 1)


class Batches(Dataset):
    """Item i is the batch of step i, labelled clips first; of ``ranks`` processes each takes its share.

    clips (B, 3, T, H, W) uint8; labels (K,); hidden (U,), the true labels of the unlabelled clips (-1 where
    nobody knows), which only the log may see; teacher (B, M) where the method distils; other, a second crop
    of the same clips, where it averages weights; strong (U, 3, T, H, W), distorted views of the unlabelled
    clips, where it has a loss for them; turn (B,) quarter turns where it rotates.
    """

    def __init__(
        self,
        p: "Params",
        method: Method,
        split: pd.DataFrame,
        store: FrameStore,
        targets: Targets | None,
        rank: int = 0,
        ranks: int = 1,
    ):
        self.p, self.method, self.store, self.targets = p, method, store, targets
        rows = [split[split.role == role] for role in ("labelled", "unlabelled")]
        self.n_labelled, self.n_unlabelled = map(len, rows)
        self.k = method.labelled_clips(p.batch_size)
        self.u = p.batch_size - self.k
        if not self.n_labelled:
            raise ValueError("no labelled video: raise label_pct")
        if self.u and not self.n_unlabelled:
            raise ValueError(
                f"{p.method} needs unlabelled videos, and label_pct = {p.label_pct:g} leaves none"
            )
        both = pd.concat(rows)
        self.videos, self.labels = both.video.to_numpy(), both.label.to_numpy()
        self.counts = store.table.frames.reindex(both.video).astype(int).to_numpy()
        # every ranks-th labelled clip and every ranks-th unlabelled one, out of the draws for the whole batch
        halves = range(rank, self.k, ranks), range(self.k + rank, p.batch_size, ranks)
        self.mine, self.mine_labelled = np.concatenate(halves).astype(int), len(halves[0])

    def __len__(self) -> int:
        return self.p.steps

    def __getitem__(self, step: int) -> dict:
        p = self.p
        at = videos_of_step(p.seed, step, 0, self.n_labelled, self.k)
        if self.u:
            unlabelled = videos_of_step(p.seed, step, 1, self.n_unlabelled, self.u)
            at = np.concatenate([at, self.n_labelled + unlabelled])
        at = at[self.mine]
        draws = draws_of_step(p.seed, step, p.batch_size)
        clips, others, teacher, strong = [], [], [], []
        for i, video, count in zip(self.mine, self.videos[at], self.counts[at], strict=True):
            start = int(draws.start[i] * max(1, count - p.clip_frames + 1))
            numbers = clip_frames(int(count), start, p.clip_frames)
            whole = read_clip(self.store, video, numbers)
            flip = p.hflip and draws.flip[i] < 0.5
            clips.append(crop(whole, p.crop_size, draws.y[i], draws.x[i], flip))
            if "ema" in self.method.needs and p.mt_view == "other":
                flip = p.hflip and draws.other_flip[i] < 0.5
                others.append(crop(whole, p.crop_size, draws.other_y[i], draws.other_x[i], flip))
            if "strong" in self.method.needs and i >= self.k:
                again = crop(whole, p.crop_size, draws.other_y[i], draws.other_x[i])
                strong.append(strong_view(again, draws, i))
            if "teacher" in self.method.needs:
                frame = int(numbers[int(draws.frame[i] * p.clip_frames)])
                teacher.append(torch.from_numpy(self.targets.of(video, frame)))
        labels = torch.from_numpy(self.labels[at])
        batch = {
            "step": step,
            "clips": together(clips),
            "labels": labels[: self.mine_labelled],
            "hidden": labels[self.mine_labelled :],
        }
        if others:
            batch["other"] = together(others)
        if strong:
            batch["strong"] = together(strong)
        if teacher:
            batch["teacher"] = torch.stack(teacher)
        if "rotations" in self.method.needs:
            batch["turn"] = torch.from_numpy((draws.turn[self.mine] * 4).astype(np.int64))
        return batch


class TestClips(Dataset):
    """Every clip that the paper's protocol looks at: per video the centre clip, then all consecutive ones.

    Item i is (clip (3, T, H, W) uint8 cropped in the centre, position of its video, is it the centre clip).
    """

    __test__ = False  # not a test case, whatever its name suggests

    def __init__(self, p: "Params", videos: list[str], store: FrameStore):
        self.p, self.videos, self.store = p, videos, store
        self.counts = store.table.frames.reindex(videos).astype(int).to_numpy()
        rows = []
        for i, count in enumerate(self.counts):
            rows.append((i, centre_start(count, p.clip_frames), True))
            rows += [(i, start, False) for start in test_starts(count, p.clip_frames, p.last_clip)]
        self.rows = np.array(rows, dtype=np.int64).reshape(-1, 3)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> tuple[Tensor, int, bool]:
        video, start, centre = self.rows[i]
        numbers = clip_frames(int(self.counts[video]), int(start), self.p.clip_frames)
        clip = read_clip(self.store, self.videos[video], numbers)
        margin = (clip.shape[-1] - self.p.crop_size) // 2
        part = clip[..., margin : margin + self.p.crop_size, margin : margin + self.p.crop_size]
        return part, int(video), bool(centre)


def _collate(items: list[tuple[Tensor, int, bool]]) -> tuple[Tensor, Tensor, Tensor]:
    clips, videos, centres = zip(*items, strict=True)
    return together(list(clips)), torch.tensor(videos), torch.tensor(centres)


def ahead(feed: Iterable) -> Iterator:
    """The same items, each read in a thread while the one before is at work."""
    with ThreadPoolExecutor(1) as thread:
        items, end = iter(feed), object()
        coming = thread.submit(next, items, end)
        while (item := coming.result()) is not end:
            coming = thread.submit(next, items, end)
            yield item


def loader(dataset: Dataset, p: "Params", device: str, **options) -> DataLoader:
    """A data loader for either data set above; the processes change the speed, never the content."""
    workers = p.num_workers if p.num_workers is not None else (0 if device == "cpu" else 4)
    context = "forkserver" if workers else None
    if isinstance(dataset, Batches):
        options["batch_size"] = None  # an item is a batch already
    else:
        options["collate_fn"] = _collate
    return DataLoader(
        dataset,
        num_workers=workers,
        multiprocessing_context=context,
        pin_memory=device.startswith("cuda"),
        **options,
    )
