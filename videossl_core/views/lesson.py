"""What the tour needs besides the engine: a short run of its own, clips to look at, sliders that redraw."""

from collections.abc import Callable
from dataclasses import dataclass
from html import escape

import ipywidgets
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from IPython.display import HTML, display
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from videossl_core import runs, training
from videossl_core.data import files
from videossl_core.params import Params
from videossl_core.prepare import Data, device
from videossl_core.views import films, show

# ---- Clips, and what a network says of them


@dataclass(frozen=True)
class Clips:
    """The centre clips of some videos.

    ``rows`` are those of the split (video, class_name, label, role); ``pixels`` (N, 3, T, S, S) uint8;
    ``teacher`` (N, M) is h(a), a the middle frame of each.
    """

    rows: pd.DataFrame
    pixels: Tensor
    teacher: Tensor

    @property
    def labels(self) -> Tensor:
        return torch.tensor(self.rows.label.tolist())

    def frame(self, i: int) -> np.ndarray:
        """(S, S, 3) uint8: the middle frame of clip i."""
        return self.pixels[i, :, self.pixels.shape[2] // 2].permute(1, 2, 0).numpy()


def centre_clips(data: Data, p: Params, role: str) -> Clips:
    """The centre clips of all videos with this role (labelled or unlabelled)."""
    rows, pixels, teacher = data.rows(role), [], []
    for video in rows.video:
        numbers, clip = show.centre_clip(data, p, video)
        pixels.append(clip)
        teacher.append(torch.from_numpy(data.targets.of(video, numbers[len(numbers) // 2])))
    return Clips(rows, torch.stack(pixels), torch.stack(teacher).double())


@torch.no_grad()
def ask(network: nn.Module, pixels: Tensor) -> dict[str, Tensor]:
    """The network's logits of clips, by head: classes (N, C) and embedding (N, M), float64."""
    network.eval()
    where = next(network.parameters()).device
    parts = [network(part.to(where)) for part in pixels.split(32)]
    return {head: torch.cat([part[head] for part in parts]).double().cpu() for head in parts[0]}


def said(clips: Clips, logits: Tensor, classes: list[str]) -> pd.DataFrame:
    """One row a clip: video, true class, said class, its probability, and whether it is right."""
    p, best = logits.softmax(-1).max(-1)
    return pd.DataFrame(
        {
            "video": clips.rows.video,
            "true": clips.rows.class_name,
            "said": [classes[i] for i in best],
            "p": p,
            "right": best == clips.labels,
        }
    )


def telling(said: pd.DataFrame) -> list[int]:
    """Positions of four clips worth a look: a right and a wrong one with p near 0.97, then any near 0.9 and
    0.6; no clip twice."""
    chosen: list[int] = []
    for among, p in ((said.right, 0.97), (~said.right, 0.97), (said.p > 0, 0.9), (said.p > 0, 0.6)):
        left = said[among & ~said.index.isin(chosen)]
        if len(left):
            chosen.append(int((left.p - p).abs().idxmin()))
    return chosen


def played(clips: Clips, positions: list[int], captions: list[str], fps: int = 8) -> HTML:
    """The very clips that the network gets, playable, slowed down."""
    pictures = (clips.pixels[i].permute(1, 2, 3, 0).numpy() for i in positions)
    shown = [films.player(f, fps, c, 170) for f, c in zip(pictures, captions, strict=True)]
    return HTML("".join(shown))


# ---- Training with the curves in sight


class _Watch(show.LiveTraining):
    """Keeps the network of each evaluation, too."""

    def __init__(self, run: runs.Run):
        super().__init__()
        self.run = run

    def on_eval(self, log: pd.DataFrame, metrics: pd.DataFrame) -> None:
        super().on_eval(log, metrics)
        state = self.run.read_checkpoint()
        kept = stage(self.run, state["step"])
        kept.folder.mkdir(exist_ok=True)
        with files.atomic(kept.checkpoint) as temporary:
            torch.save({k: state[k] for k in ("model", "ema", "classes", "precision")}, temporary)


def stage(run: runs.Run, step: int) -> runs.Run:
    """Where the network after this iteration is kept, for ``training.load_network``."""
    return runs.Run(run.folder / f"after{step}")


def train(p: Params) -> runs.Run:
    """Train with live curves. The same parameters again: nothing is done; others replace the run."""
    run = runs.Run(p.run_dir)
    other = run.params.exists() and bool(p.differing(run.read_params()))
    watch = _Watch(run)
    training.train(p.model_copy(update={"overwrite": other}), watch.progress, watch.on_log, watch.on_eval)
    watch.close()
    return run


def untrained(p: Params, classes: int, clips: Clips) -> nn.Module:
    """The network before the first iteration. Its batch norm has measured these clips, as in training: with
    the statistics that it begins with the answers would be wildly sure."""
    network = training.build_network(p, classes).to(device(p))
    update_bn(clips.pixels.split(32), network, device(p))
    return network


def networks(run: runs.Run, p: Params) -> dict[int, nn.Module]:
    """The network after each evaluation of the run that was kept, and the last one, by iteration."""
    kept = {step: stage(run, step) for step in sorted(set(pd.read_csv(run.metrics).step))}
    kept = {step: at for step, at in kept.items() if at.checkpoint.exists()} | {p.steps: run}
    return {step: training.load_network(at, p)[0] for step, at in kept.items()}


# ---- Sliders


def slider(name: str, value: float, low: float, high: float, step: float) -> ipywidgets.FloatSlider:
    """A slider for mouse and arrow keys that reports when it rests."""
    return ipywidgets.FloatSlider(
        value, description=name, min=low, max=high, step=step, continuous_update=False,
        style={"description_width": "14em"}, layout={"width": "40em"},
    )  # fmt: skip


def choice(name: str, value, options) -> ipywidgets.Dropdown:
    """A list to choose from, as wide as a slider."""
    return ipywidgets.Dropdown(
        value=value, description=name, options=options,
        style={"description_width": "14em"}, layout={"width": "40em"},
    )  # fmt: skip


def live(draw: Callable[..., Figure], **controls: ipywidgets.Widget) -> None:
    """Show controls, and below them ``draw(name=value, ...)`` as an ordinary picture that they redraw.

    Where there is no kernel to move them (a page made of the notebook) their place says what they stood at.
    """
    box = ipywidgets.VBox(list(controls.values()))
    values = (f"{c.value:.3g}" if isinstance(c.value, float) else c.value for c in controls.values())
    stood = ", ".join(f"{c.description} = {v}" for c, v in zip(controls.values(), values, strict=True))
    text = f"Drawn for {stood}; in JupyterLab these can be moved."
    display(box._repr_mimebundle_() | {"text/plain": text, "text/html": f"<em>{escape(text)}</em>"}, raw=True)

    def redraw(_=None):
        figure = draw(**{name: control.value for name, control in controls.items()})
        handle.update(figure) if handle else None
        plt.close(figure)

    figure = draw(**{name: control.value for name, control in controls.items()})
    handle = display(figure, display_id=True)
    plt.close(figure)
    for control in controls.values():
        control.observe(redraw, "value")
