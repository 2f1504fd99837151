"""Clips on their way to the network: the batch of a step, the clips of an evaluation, loaders for both."""

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.data import DataLoader, Dataset, get_worker_info

from videossl_core import sampling
from videossl_core.data import pool
from videossl_core.data.frames import FrameStore
from videossl_core.distributed import Ranks
from videossl_core.methods import Method
from videossl_core.needs import NEEDS, Clip
from videossl_core.params import Params
from videossl_core.teacher import Targets


def stack_clips(clips: list[Tensor]) -> Tensor:
    """(N, 3, T, H, W) of clips, colours innermost in memory: as they come, and as the network wants them."""
    return torch.stack([clip.permute(1, 2, 3, 0) for clip in clips]).permute(0, 4, 1, 2, 3)


class Batches(Dataset):
    """Item i is the batch of step i (``needs.Batch``); of several processes each takes its share.

    Raises:
        ValueError: there is no labelled video, or no unlabelled one although the method needs some.
    """

    def __init__(
        self,
        p: Params,
        method: Method,
        split: pd.DataFrame,
        store: FrameStore,
        targets: Targets | None,
        ranks: Ranks | None = None,
    ):
        self.p, self.method, self.store, self.targets = p, method, store, targets
        ranks = ranks or Ranks()
        rows = [split[split.role == role] for role in ("labelled", "unlabelled")]
        self.n_labelled, self.n_unlabelled = map(len, rows)
        self.k = method.labelled_clips(p.batch_size)
        self.u = p.batch_size - self.k
        for clips, name in ((self.k, "labelled"), (self.u, "unlabelled")):
            if clips % ranks.count:
                what = f"its {clips} {name} clips cannot be shared by {ranks.count} processes"
                raise ValueError(f"batch_size = {p.batch_size}: {what}; take a multiple")
        # every n-th clip of the labelled half and of the other, for n divides both
        self.mine = range(ranks.rank, p.batch_size, ranks.count)
        if not self.n_labelled:
            raise ValueError("no labelled video: raise label_pct")
        if self.u and not self.n_unlabelled:
            raise ValueError(f"{p.method} needs unlabelled videos; label_pct = {p.label_pct:g} leaves none")
        both = pd.concat(rows)
        self.videos, self.labels = both.video.to_numpy(), both.label.to_numpy()
        counts = np.bincount(self.labels[: self.n_labelled])
        # the mean over the labelled videos is 1
        weights = self.n_labelled / ((counts > 0).sum() * np.maximum(counts, 1))
        self.label_weights = torch.from_numpy(weights.astype(np.float32))
        self.sizes = store.table[["frames", "height", "width"]].reindex(both.video).astype(int).to_numpy()

    def __len__(self) -> int:
        return self.p.steps

    def __getitem__(self, step: int) -> dict[str, Any]:
        p = self.p
        if p.class_balance == "sampler":
            labelled = sampling.balanced_videos_of_step(p.seed, step, self.labels[: self.n_labelled], self.k)
        else:
            labelled = sampling.videos_of_step(p.seed, step, 0, self.n_labelled, self.k)
        unlabelled = sampling.videos_of_step(p.seed, step, 1, self.n_unlabelled, self.u)
        positions = np.concatenate([labelled, self.n_labelled + unlabelled])[self.mine]
        draws = sampling.draws_of_step(p.seed, step, p.batch_size)
        clips: list[Tensor] = []
        needed: dict[str, list[Tensor]] = {}
        for i, position in zip(self.mine, positions, strict=True):
            video, size = self.videos[position], self.sizes[position].tolist()
            start = int(draws.start[i] * sampling.starts(p, size[0]))
            frames = sampling.clip_frames(p, size[0], start)
            whole = sampling.read_clip(self.store, video, frames)
            view = sampling.draw_view(p, draws, i)
            clips.append(sampling.cut_view(whole, view, p.crop_size))
            clip = Clip(p, i, i < self.k, video, size, frames, whole, view, draws, self.store, self.targets)
            for name in self.method.needs:
                if (value := NEEDS[name].draw(clip)) is not None:
                    needed.setdefault(name, []).append(value)
        labels, k = torch.from_numpy(self.labels[positions]), sum(i < self.k for i in self.mine)
        batch = {"step": step, "clips": stack_clips(clips), "labels": labels[:k], "hidden": labels[k:]}
        if p.class_balance == "loss":
            batch["label_weights"] = self.label_weights[labels[:k]]
        for name, values in needed.items():
            batch[name] = stack_clips(values) if values[0].dim() == 4 else torch.stack(values)
        _share(batch.values())
        return batch


class EvalClips(Dataset):
    """Every clip of the paper's protocol (4.1): per video the centre clip, then all consecutive ones.

    An item is a batch: clips (N, 3, T, H, W) uint8 cropped in the centre, the positions of their videos (N,),
    and whether each is the centre clip (N,).
    """

    def __init__(self, p: Params, videos: list[str], store: FrameStore):
        self.p, self.videos, self.store = p, videos, store
        self.counts = store.table.frames.reindex(videos).astype(int).to_numpy()
        rows = []
        for i, count in enumerate(self.counts):
            rows.append((i, sampling.centre_start(p, count), True))
            rows += [(i, start, False) for start in sampling.clip_starts(p, count)]
        self.rows = np.array(rows, dtype=np.int64).reshape(-1, 3)

    def __len__(self) -> int:
        return -(-len(self.rows) // self.p.batch_size)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor, Tensor]:
        p, clips = self.p, []
        rows = self.rows[i * p.batch_size : (i + 1) * p.batch_size]
        for video, start, _ in rows:
            frames = sampling.clip_frames(p, self.counts[video], start)
            clip = sampling.read_clip(self.store, self.videos[video], frames)
            clips.append(sampling.centre_crop(clip, p.crop_size))
        batch = stack_clips(clips), torch.from_numpy(rows[:, 0]), torch.from_numpy(rows[:, 2] == 1)
        _share(batch)
        return batch


def _share(values: Iterable) -> None:
    """In a loader process, move tensors to shared memory. If it is full this is an error here, and a hang
    later, where PyTorch would move them."""
    for value in values if get_worker_info() else ():
        if isinstance(value, Tensor):
            value.share_memory_()


def prefetch(feed: Iterable, device: str) -> Iterator:
    """The same items with their tensors on the device, each read and copied in a thread while the one before
    is at work: to a GPU on a stream of its own. A RuntimeError says so where there is too little shared
    memory for loader processes."""
    side = torch.cuda.Stream(device) if device.startswith("cuda") else None

    def read() -> Any:
        with torch.cuda.stream(side):  # none changes nothing
            return tree_map_only(Tensor, lambda t: t.to(device, non_blocking=True), next(items, end))

    with ThreadPoolExecutor(1) as thread:
        try:
            items, end = iter(feed), object()
            coming = thread.submit(read)
            while (item := coming.result()) is not end:
                if side is not None:  # the work waits for the copy, whose memory is kept until it ends
                    work = torch.cuda.current_stream(device)
                    work.wait_stream(side)
                    for tensor in tree_leaves(item):
                        if isinstance(tensor, Tensor):
                            tensor.record_stream(work)
                coming = thread.submit(read)
                yield item
        except (RuntimeError, OSError) as error:
            if "shared memory" not in (what := str(error).strip()) and "No space left" not in what:
                raise
            out = "num_workers = 0 needs no shared memory; docker run --shm-size=2g gives a container more"
            raise RuntimeError(f"{what}\nToo little shared memory: {out}") from None


def loaders(p: Params, device: str) -> int:
    """How many processes read clips: ``num_workers``, or none for a CPU, which is busy enough, and for a GPU
    one a core of the job but for one, at most 16; processes that train together share them."""
    if p.num_workers is not None or device == "cpu":
        return p.num_workers or 0
    return min(16, max(1, pool.cores() // int(os.environ.get("LOCAL_WORLD_SIZE", 1)) - 1))


def announce_loaders(p: Params, device: str) -> None:
    """To call before any worker process starts: what loaders need is then imported once, not by each."""
    if loaders(p, device):
        pool.context(__name__)


def loader(dataset: Dataset, p: Params, device: str, **options) -> DataLoader:
    """A data loader for either data set above; the processes change the speed, never the content."""
    workers = min(loaders(p, device), len(options.get("sampler", dataset)))
    options |= {"num_workers": workers, "pin_memory": device.startswith("cuda")}
    context = pool.context(__name__) if workers else None
    return DataLoader(dataset, None, multiprocessing_context=context, **options)  # an item is a batch
