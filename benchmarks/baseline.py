"""The baseline of ``make bench``: a careful user's own loop, and videos as hard to read as real ones."""

from pathlib import Path

import av
import numpy as np
import torch
from av.video.reformatter import VideoReformatter
from PIL import Image
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset

from videossl_core import models
from videossl_core.data import demo, pictures, pool
from videossl_core.params import Params
from videossl_core.prepare import Data


def make_videos(root: Path, count: int) -> None:
    """One shot each, 192 frames of 320 x 240, as hard to read as UCF101's: about 1 KB a frame, and a random
    clip costs the decoder about 48 frames from the key frame before it (the mean of 32 UCF101 videos)."""
    rows, columns = (np.linspace(0, demo.SIDE - 1, n).astype(int) for n in (240, 320))
    grain = np.random.default_rng(0).normal(0, 4, (240, 320, 3))  # a camera's: rendered areas are too smooth
    for i in range(count):
        down = demo.frames(list(demo.NOUNS)[i % 7], "falls", i)
        split = "test" if i % 4 == 3 else "train"
        path = root / split / f"class{i % 2}" / f"{i}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        with av.open(str(path), "w") as container:
            stream = container.add_stream("libx264", rate=25)
            stream.width, stream.height, stream.pix_fmt = 320, 240, "yuv420p"
            stream.options = {"crf": "23", "g": "64"}  # else x264's own settings
            for k, picture in enumerate(np.concatenate([down, down[::-1]] * 3)):
                noisy = picture[rows][:, columns] + np.roll(grain, 7 * k, (0, 1))
                frame = av.VideoFrame.from_ndarray(noisy.clip(0, 255).astype(np.uint8), format="rgb24")
                container.mux(stream.encode(frame))
            container.mux(stream.encode())


def store_plainly(source: Path, target: Path) -> None:
    """What data_prep does with a video, by PyAV and Pillow alone: the same JPEGs of a video without marks."""
    with av.open(str(source)) as container, open(target, "wb") as out:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        small, large = VideoReformatter(), VideoReformatter()
        for i, frame in enumerate(container.decode(stream)):
            scale = 256 / min(frame.width, frame.height)
            shapes = [(small, 136, 136, 136, 90)]
            if i % 8 == 0:
                shapes.append((large, round(frame.width * scale), round(frame.height * scale), 224, 92))
            for by, width, height, side, quality in shapes:
                pixels = by.reformat(
                    frame, width, height, "rgb24", None, None, "AREA", threads=1
                ).to_ndarray()
                y, x = (height - side) // 2, (width - side) // 2
                square = np.ascontiguousarray(pixels[y : y + side, x : x + side])
                Image.fromarray(square).save(out, "JPEG", quality=quality, optimize=True)


class PlainClips(Dataset):
    """The clips of the plain loop, decoded from the source videos."""

    def __init__(self, p: Params, data: Data):
        self.p, self.videos = p, [data.index.root / v for v in data.split.video]

    def __len__(self) -> int:
        return self.p.steps * self.p.batch_size

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        """A random crop of a random clip, (3, T, 112, 112), and its middle frame, (3, 224, 224)."""
        rng = np.random.default_rng(i)
        clip = source_clip(self.videos[rng.integers(len(self.videos))], rng, self.p.clip_frames)
        y, x = rng.integers(0, 136 - 112 + 1, 2)
        scaled = pictures.Scaler()
        small = torch.from_numpy(np.stack([scaled(frame, 136, 136) for frame in clip]))
        small = small.permute(3, 0, 1, 2)[:, :, y : y + 112, x : x + 112]
        picture = torch.from_numpy(pictures.Scaler()(clip[len(clip) // 2], 224, 224).copy())
        return small.float(), picture.permute(2, 0, 1).float() / 255


class Plain:
    """The loop as a careful user would write it from the paper: every step decodes its clips from the source
    videos and runs the ResNet-50 on a frame of each; fp32 in PyTorch's default layout."""

    def __init__(self, p: Params, data: Data, device: str, workers: int):
        from torchvision.models import resnet50  # here, for it loads as long as torch does

        self.p, self.device = p, device
        clips, start = PlainClips(p, data), pool.context(__name__) if workers else None
        self.feed = iter(DataLoader(clips, p.batch_size, num_workers=workers, multiprocessing_context=start))
        heads = {"classes": len(data.classes), "embedding": 1000}
        self.net = models.VideoNet("resnet18", heads).to(device, memory_format=torch.contiguous_format)
        self.mean = torch.tensor(models.SPORTS1M_MEAN, device=device).view(1, 3, 1, 1, 1)
        self.teacher = resnet50(weights=None).eval().to(device)
        self.optimizer = torch.optim.SGD(self.net.parameters(), p.lr, p.momentum, weight_decay=p.weight_decay)

    def step(self) -> int:
        clips, frames = (tensor.to(self.device) for tensor in next(self.feed))
        with torch.no_grad():
            h = self.teacher(frames).softmax(-1)
        features = self.net.backbone(clips - self.mean)
        logits, q = self.net.heads["classes"](features), self.net.heads["embedding"](features)
        k = len(clips) // 2
        labels = torch.zeros(k, dtype=torch.long, device=self.device)
        loss = cross_entropy(logits[:k], labels) + cross_entropy(q, h)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return len(clips)


def source_clip(path: Path, rng: np.random.Generator, length: int) -> list[av.VideoFrame]:
    """A random clip of a video file: seek to the key frame before it, and decode up to its end."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        start = int(rng.integers(0, max(1, stream.frames - length)))
        first = start / float(stream.average_rate)
        container.seek(int(first / stream.time_base), stream=stream)
        frames: list[av.VideoFrame] = []
        for frame in container.decode(stream):
            if frame.time is None or frame.time >= first - 1e-6:
                frames.append(frame)
            if len(frames) == length:
                break
    return frames
