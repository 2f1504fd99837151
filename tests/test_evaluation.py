"""Clip and video top-1 against numbers worked out by hand."""

import math
from typing import ClassVar

import numpy as np
import pandas as pd
import pytest
import torch

from videossl_core import evaluation, params, sampling
from videossl_core.data import codec
from videossl_core.data.frames import FrameStore, StoreSettings
from videossl_lab import results

LENGTHS = {"a.mp4": 20, "b.mp4": 8, "c.mp4": 5}


class Brightness(torch.nn.Module):
    """Three classes whose logits depend on the clip's mean alone; copies share the clips they have seen."""

    seen: ClassVar[list] = []

    def __init__(self):
        super().__init__()
        self.seen.clear()
        self.drop = torch.nn.Dropout(0.5)  # would show if the network were not in evaluation mode

    def forward(self, clips):
        assert not self.training
        self.seen += list(clips)
        mean = self.drop(clips.float().mean((1, 2, 3, 4)))
        return {"classes": torch.stack([mean / 20, 5 - mean / 40, torch.full_like(mean, 3.0)], 1)}


@pytest.fixture
def store(tmp_path) -> FrameStore:
    rng = np.random.default_rng(0)
    for name, count in LENGTHS.items():
        levels = np.repeat(rng.integers(0, 250, count), 32 * 32 * 3).reshape(count, 32, 32, 3)
        codec.write(tmp_path / "v" / name, levels.astype(np.uint8), qp=2)
    store = FrameStore(tmp_path, StoreSettings(32, 95, 8))
    store.add(list(LENGTHS), tmp_path / "v")
    return store


def predict(network, store, **given) -> evaluation.Predictions:
    p = params.load(frame_size=32, crop_size=24, clip_frames=8, batch_size=2, **given)
    rows = pd.DataFrame({"video": list(LENGTHS), "class_name": ["x", "y", "y"], "label": [0, 1, 1]})
    return evaluation.predict(network, p, rows, ["x", "y", "z"], store, "cpu")


def softmax(mean):
    e = [math.exp(v) for v in (mean / 20, 5 - mean / 40, 3.0)]
    return np.array(e) / sum(e)


def test_predictions_by_hand(store):
    network = Brightness().train()
    predictions = predict(network, store)
    assert network.training  # it stays as it is

    def mean(video, numbers):
        return sampling.read_clip(store, video, np.asarray(numbers))[..., 4:28, 4:28].double().mean().item()

    centre = [range(6, 14), range(8), [0, 1, 2, 3, 4, 0, 1, 2]]
    clips = [[range(8), range(8, 16)], [range(8)], [[0, 1, 2, 3, 4, 0, 1, 2]]]
    for i, video in enumerate(LENGTHS):
        assert predictions.clip_probs[i] == pytest.approx(softmax(mean(video, centre[i])), abs=1e-6)
        expected = np.mean([softmax(mean(video, c)) for c in clips[i]], axis=0)
        assert predictions.video_probs[i] == pytest.approx(expected, abs=1e-6)
    assert len(network.seen) == 3 + 4
    for kind, probs in (("clip", predictions.clip_probs), ("video", predictions.video_probs)):
        right = probs.argmax(1) == [0, 1, 1]
        assert predictions.top1()[f"{kind}_top1"] == pytest.approx(100 * right.mean())
        by_class = predictions.per_class().set_index("class_name")
        assert by_class.loc["y", f"{kind}_top1"] == pytest.approx(100 * right[1:].mean())
        assert list(predictions.table[f"{kind}_pred"]) == [["x", "y", "z"][k] for k in probs.argmax(1)]
    assert list(predictions.per_class().videos) == [1, 2]


def test_mean_softmax_decides_the_video(store):
    """Not a vote, and not the mean of the logits."""
    logits = iter([[0, 9, 0], [8, 0, 0], [0, 3, 0]])  # centre clip, then the two clips of the first video

    class Scripted(torch.nn.Module):
        def forward(self, clips):
            return {"classes": torch.tensor([next(logits, [0, 0, 0]) for _ in clips], dtype=torch.float32)}

    table = predict(Scripted(), store).table
    assert (table.clip_pred[0], table.video_pred[0]) == ("y", "x")


def test_padded_last_clip_counts(store):
    network = Brightness()
    predict(network, store, last_clip="pad")
    assert len(network.seen) == 3 + 3 + 1 + 1


def test_subset_is_evenly_spaced():
    rows = pd.DataFrame({"video": range(100)})
    assert list(evaluation.evenly_spaced(rows, 5).video) == [0, 25, 50, 74, 99]
    assert evaluation.evenly_spaced(rows, 100) is rows


def test_compare_counts_and_measures():
    table = pd.DataFrame({"video": ["a", "b"], "video_pred": ["x", "y"], "video_confidence": [0.9, 0.6]})
    assert results.compare(table, table[::-1]).startswith("0 of 2 videos have another predicted class")
    changed = table.assign(video_pred=["x", "x"], video_confidence=[0.9, 0.55])
    assert results.compare(table, changed) == (
        "1 of 2 videos have another predicted class than on record; confidences differ by 5.0e-02 at most"
    )
    assert results.compare(table, table[1:]) == "only 1 of 2 recorded and 1 predicted videos are the same"
