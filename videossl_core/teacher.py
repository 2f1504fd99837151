"""The frozen ImageNet classifier of section 3.3: its softmax h(a) of frames and their features, computed once
and kept on disk."""

import math
import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from videossl_core.data import files
from videossl_core.data.frames import FrameStore, StoreSettings
from videossl_core.image_classifiers import TeacherError, row_of
from videossl_core.models import folded
from videossl_core.params import Params
from videossl_core.progress import track
from videossl_core.sampling import View

AT_ONCE = 256  # frames in memory: a film of two hours has 27,000 of them


class Classifier(nn.Module):
    """A teacher ready to look at frames: (N, 3, S, S) uint8, S the row's ``side``, to its softmax h(a),
    (N, M), and its features, (N, F, 2, 2), both float32.

    The features are the last feature map, averaged over each quarter of the frame: the last map that any
    layer gets or gives, of a transformer its patch tokens without the class token. For most networks the mean
    of the quarters is the vector that their head gets.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, name: str, weights_file: Path | None = None, trained: bool = True):
        super().__init__()
        self.row = row = row_of(name)
        net = row.build().eval().requires_grad_(False)
        try:
            state = row.read(weights_file) if weights_file else row.weights() if trained else net.state_dict()
            net.load_state_dict(state)
        except Exception as error:  # torch raises a different type for every kind of damage
            out = "Give teacher_weights = <file>, or take teacher = 'efficientnet_lite0': no download"
            what = f"the weights of {name} could not be downloaded ({error}). {out}"
            if weights_file:
                what = f"teacher_weights = {weights_file}: not the weights of {name} ({error!r})"
            raise TeacherError(what) from error
        self.weights_hash = weights_hash(state)
        self.register_buffer("mean", torch.tensor(row.mean).view(1, 3, 1, 1) * 255)
        self.register_buffer("std", torch.tensor(row.std).view(1, 3, 1, 1) * 255)
        generator = torch.Generator().manual_seed(0)
        frame = torch.randint(256, (1, 3, row.side, row.side), generator=generator).byte()
        self.net = _fast(net, (frame - self.mean) / self.std)
        self.last = threading.local()  # each video has its thread
        for place, layer in self.net.named_modules():
            if "head." not in place and "pool." not in place:  # attention that pools has maps of its own
                layer.register_forward_pre_hook(self._keep)
                layer.register_forward_hook(self._keep)
        self.features = self(frame)[1].shape[1]

    def _keep(self, layer: nn.Module, inputs: tuple, *output: object) -> None:
        maps = feature_map((output or inputs or (None,))[0], self.row.classes)
        if maps is not None:
            self.last.maps = maps

    @torch.inference_mode()
    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        softmax, features = [], []
        on_gpu = self.mean.is_cuda
        at_once = 64 if on_gpu else 4  # few enough for a CPU's caches
        for x in frames.tensor_split(max(1, len(frames) // at_once)):
            with torch.autocast(self.mean.device.type, torch.float16, enabled=on_gpu):
                logits = self.net((x.to(self.mean.device) - self.mean) / self.std)[:, : self.row.classes]
            softmax.append(logits.float().softmax(-1))
            features.append(quarters(self.last.maps.float()))
        return torch.cat(softmax), torch.cat(features)

    def look(self, store: FrameStore, video: str, numbers: np.ndarray) -> tuple[Tensor, Tensor]:
        """The same, on the classifier's device, of a video's frames for the teacher."""
        return self(torch.from_numpy(store.images(video, numbers, teacher=True)).permute(0, 3, 1, 2))


def weights_hash(state: dict[str, Tensor]) -> str:
    digest = b"".join(k.encode() + v.contiguous().numpy().tobytes() for k, v in sorted(state.items()))
    return files.sha256(digest)


@torch.no_grad()
def _fast(net: nn.Module, x: Tensor) -> nn.Module:
    """Batch norms folded, activations in place, colours innermost: twice as fast. The network as it is where
    that changes more than the rounding, for not every one uses its layers in their order."""
    fast, plain = folded(net, nn.Module).to(memory_format=torch.channels_last), net(x)
    fast.apply(lambda layer: setattr(layer, "inplace", True))
    with suppress(RuntimeError):
        if torch.allclose(fast(x), plain, 1e-3, 1e-3 * plain.abs().max().item()):
            return fast
    return net


def feature_map(x: Any, classes: int) -> Tensor | None:
    """(N, F, H, W) if ``x`` is a map: with channels first or last, or of tokens (N, T, F), where those of no
    place come first. None for what has a single place, and for a map of the classes."""
    if not isinstance(x, Tensor) or x.ndim not in (3, 4):
        return None
    if x.ndim == 3:
        side = math.isqrt(x.shape[1])
        x = x[:, x.shape[1] - side**2 :].transpose(1, 2).unflatten(2, (side, side))
    elif x.shape[1] == x.shape[2] != x.shape[3]:
        x = x.movedim(3, 1)
    return x if 1 < x.shape[2] == x.shape[3] and x.shape[1] != classes else None


def quarters(maps: Tensor) -> Tensor:
    """(N, F, H, W) to (N, F, 2, 2). A middle row or column counts half in both of its quarters, so that the
    mean stays the mean."""
    return F.adaptive_avg_pool2d(F.interpolate(maps, scale_factor=2), 2)


class Targets:
    """What the teacher makes of every ``stride``-th frame of some videos, in float16: for each video a .npy
    file of its softmax (frames, M), if it has ``classes``, and one of its features (frames, F, 2, 2)."""

    def __init__(self, folder: Path, stride: int, classes: int, features: int):
        self.folder, self.stride, self.classes = folder, stride, classes
        self.shapes: dict[bool, tuple[int, ...]] = {True: (features, 2, 2)}  # of a frame
        if classes:
            self.shapes[False] = (classes,)

    def path(self, video: str, features: bool = False) -> Path:
        return self.folder / f"{video}{'.features' if features else ''}.npy"

    def of(self, video: str, frame: int) -> np.ndarray:
        """(M,) float32 distribution h(a) of the frame the teacher saw that is nearest to this one."""
        seen = np.load(self.path(video), mmap_mode="r", allow_pickle=False)
        h = seen[self.nearest(frame, len(seen))].astype(np.float32)
        return h / h.sum()  # float16 on disk: the sum is 1 only to about 1e-3

    def nearest(self, frame: int, seen: int) -> int:
        """Which of the ``seen`` frames for the teacher is nearest to this one of the video."""
        return min(seen - 1, round(frame / self.stride))

    def features(self, video: str) -> np.ndarray:
        """(frames, F, 2, 2) float16 of all frames that the teacher saw, on disk until they are used."""
        return np.load(self.path(video, features=True), mmap_mode="r", allow_pickle=False)

    def complete(self, video: str, frames: int, source: Path, features: bool = False) -> bool:
        """Is there a whole file, made after the frames that it is about?"""
        try:
            stat = self.path(video, features).stat()
        except FileNotFoundError:
            return False
        size = 128 + 2 * frames * math.prod(self.shapes[features])  # the header of a .npy file comes first
        return stat.st_size == size and stat.st_mtime_ns >= source.stat().st_mtime_ns


def same_view(view: View, settings: StoreSettings, height: int, width: int) -> View:
    """Box and flip of the student's view, in the teacher's frame, of a video of this height and width in a
    store of these settings."""
    side, short = settings.frame_size, min(height, width)
    top, bottom = _part(view.top / side, (view.top + view.height) / side, height / short, settings)
    left, right = _part(view.left / side, (view.left + view.width) / side, width / short, settings)
    return View(top, left, bottom - top, right - left, view.flip)


def _part(first: float, last: float, length: float, settings: StoreSettings) -> tuple[int, int]:
    """Where a part of the picture, from share to share of one side, begins and ends in the teacher's frame;
    ``length`` is that of the side, the shorter one of the picture being 1.

    The student sees the whole picture, the teacher its centre: what lies beyond is cut off. At least an
    eighth of the teacher's frame is kept, the nearest, for in a wide picture the two may not even meet.
    """
    square, whole = settings.teacher_side, round(length * settings.teacher_short)
    ends = (round(share * whole) - (whole - square) // 2 for share in (first, last))
    begin, end = (min(max(at, 0), square) for at in ends)
    least = square // 8
    begin = min(begin, square - least)
    return begin, max(end, begin + least)


def build_targets(
    p: Params, store: FrameStore, videos: list[str], device: str, features: bool = False
) -> Targets:
    """Run the teacher once on each video; what is on disk from the same weights and frames stays.

    The folder, inside the frame store, is named by teacher and weights hash, so that targets of other
    weights, frames or strides are never mistaken for these. Both files come from one pass; a video that has
    only its softmax, from before there were features, is seen again if ``features`` are asked for.
    """
    classifier = Classifier(p.teacher, p.teacher_weights).to(device)
    folder = store.folder / f"teacher-{p.teacher.replace(':', '-')}-{classifier.weights_hash[:12]}"
    targets = Targets(folder, store.settings.teacher_stride, classifier.row.classes, classifier.features)
    counts = (-(-store.table.frames.loc[videos].astype(int) // targets.stride)).to_dict()

    def lacking(video: str, kinds: Iterable[bool]) -> list[bool]:
        source = store.path(video)
        return [kind for kind in kinds if not targets.complete(video, counts[video], source, kind)]

    def missing() -> list[str]:
        kinds = {False, features} & targets.shapes.keys()
        return [video for video in videos if lacking(video, kinds)]

    def see(video: str) -> None:
        count, into = counts[video], {}
        with ExitStack() as written:
            for kind in lacking(video, targets.shapes):  # a record stays one
                temporary = written.enter_context(files.atomic(targets.path(video, kind)))
                shape = (count, *targets.shapes[kind])
                into[kind] = np.lib.format.open_memmap(temporary, "w+", np.float16, shape)
            for first in range(0, count, AT_ONCE):
                numbers = np.arange(first, min(first + AT_ONCE, count))
                seen = classifier.look(store, video, numbers)
                if not all(part.isfinite().all() for part in seen):
                    raise TeacherError(f"{video}: the output of the teacher ({p.teacher}) is not finite")
                for kind, array in into.items():
                    array[numbers] = seen[kind].half().cpu().numpy()
            for array in into.values():
                array.flush()

    if not missing():
        return targets  # without the lock: a cache that is complete may be read-only
    with files.locked(folder):
        todo = missing()  # another process may have done it while this one waited
        threads = torch.get_num_threads()
        try:  # a thread for each video: faster than all for one, and the same on any number of cores
            with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
                list(track(pool.map(see, todo), len(todo), f"running the teacher ({p.teacher})"))
        finally:
            torch.set_num_threads(threads)
    return targets
