"""What the tour needs besides the engine: clips to look at, a network's predictions, sliders that redraw."""

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

from videossl_core.params import Params
from videossl_core.prepare import Data
from videossl_lab import films
from videossl_lab.clips import centre_clip


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


def centre_clips(data: Data, p: Params, role: str) -> Clips:
    """The centre clips of all videos with this role (labelled or unlabelled)."""
    rows, pixels, teacher = data.rows(role), [], []
    for video in rows.video:
        numbers, clip = centre_clip(data, p, video)
        pixels.append(clip)
        teacher.append(torch.from_numpy(data.targets.of(video, numbers[len(numbers) // 2])))
    return Clips(rows, torch.stack(pixels), torch.stack(teacher).double())


def play(clips: Clips, examples: list[int], captions: list[str], fps: int = 8) -> HTML:
    """The very clips that the network gets, playable, slowed down."""
    pictures = (clips.pixels[i].permute(1, 2, 3, 0).numpy() for i in examples)
    return HTML("".join(films.player(f, fps, c, 170) for f, c in zip(pictures, captions, strict=True)))


@torch.no_grad()
def logits_of(network: nn.Module, pixels: Tensor) -> dict[str, Tensor]:
    """The network's logits of clips, by head: classes (N, C) and embedding (N, M), float64."""
    network.eval()
    device = next(network.parameters()).device
    parts = [network(part.to(device)) for part in pixels.split(32)]
    return {head: torch.cat([part[head] for part in parts]).cpu().double() for head in parts[0]}


def predictions(clips: Clips, logits: Tensor, classes: list[str]) -> pd.DataFrame:
    """One row a clip: true and predicted class, the latter's probability, and whether it is right."""
    p, best = (values.numpy() for values in logits.softmax(-1).max(-1))
    table = pd.DataFrame({"true": clips.rows.class_name, "predicted": np.array(classes)[best], "p": p})
    return table.assign(right=table.predicted == table.true)


def pick_examples(table: pd.DataFrame) -> list[int]:
    """Positions of four clips worth a look: a right and a wrong one with p near 0.97, then any near 0.9 and
    0.6; no clip twice."""
    chosen: list[int] = []
    for among, p in ((table.right, 0.97), (~table.right, 0.97), (table.p > 0, 0.9), (table.p > 0, 0.6)):
        distance = (table.p[among] - p).abs().drop(chosen, errors="ignore")
        chosen += [int(distance.idxmin())] if len(distance) else []
    return chosen


WIDE = {"style": {"description_width": "14em"}, "layout": {"width": "40em"}}


def slider(name: str, value: float, low: float, high: float, step: float) -> ipywidgets.FloatSlider:
    """A slider for mouse and arrow keys that reports when it rests."""
    limits = {"min": low, "max": high, "step": step}
    return ipywidgets.FloatSlider(value, description=name, continuous_update=False, **limits, **WIDE)


def dropdown(name: str, value, options) -> ipywidgets.Dropdown:
    """A list to choose from, as wide as a slider."""
    return ipywidgets.Dropdown(value=value, description=name, options=options, **WIDE)


def interact(draw: Callable[..., Figure], **controls: ipywidgets.Widget) -> None:
    """Show controls, and below them ``draw(name=value, ...)`` as an ordinary picture that they redraw. On a
    page without a kernel, their values stand in their place as text."""

    def figure() -> Figure:
        made = draw(**{name: control.value for name, control in controls.items()})
        plt.close(made)
        return made

    box = ipywidgets.VBox(list(controls.values()))
    values = [f"{c.value:.3g}" if isinstance(c.value, float) else c.value for c in box.children]
    shown = ", ".join(f"{c.description} = {value}" for c, value in zip(box.children, values, strict=True))
    text = f"Drawn for {shown}; in JupyterLab these can be moved."
    display(box._repr_mimebundle_() | {"text/plain": text, "text/html": f"<em>{escape(text)}</em>"}, raw=True)
    handle = display(figure(), display_id=True)
    for control in box.children:
        control.observe(lambda _: handle.update(figure()), "value")
