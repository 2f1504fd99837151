"""Machines that nobody here has: what is different about them is faked, as faithfully as it can be."""

import numpy as np
import pytest
import torch
from support.helpers import NETWORKS
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from videossl_core import evaluation, precision, prepare, teacher, training


class AppleGPU(TorchDispatchMode):
    """This CPU as a device without float64: only what came from it by ``.cpu()`` may be of that type."""

    def __enter__(self):
        self.on_host = WeakIdKeyDictionary()

        def cpu(tensor):
            copy = tensor.clone()
            self.on_host[copy] = True
            return copy

        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(torch.Tensor, "cpu", cpu)
        return super().__enter__()

    def __exit__(self, *error):
        self.patch.undo()
        return super().__exit__(*error)

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        made = op(*args, **kwargs or {})
        for tensor in (t for t in tree_leaves(made) if isinstance(t, torch.Tensor)):
            if any(t in self.on_host for t in given):
                self.on_host[tensor] = True
            assert tensor in self.on_host or tensor.dtype != torch.float64, f"{op}: no float64 on this GPU"
        return made


def test_fake_gpu_refuses_float64():
    x = torch.ones(3)
    with AppleGPU():
        assert (x + 1).cpu().double().softmax(-1).sum() == 1
        for wrong in (
            x.double,
            lambda: x.sum(dtype=torch.float64),
            lambda: torch.zeros(2, dtype=torch.float64),
        ):
            with pytest.raises(AssertionError, match="no float64"):
                wrong()


@pytest.mark.parametrize("method", NETWORKS)
def test_no_float64_on_the_device(tiny, method):
    """A training step, the evaluation, and a prediction of every clip."""
    p = tiny(method=method, steps=1, eval_every=1, tau=0, teacher_view="same")
    data = prepare.prepare(p)
    with AppleGPU():
        trainer = training.make_trainer(p, data)
        rows = list(trainer)
        what = trainer.network, p, data.rows("test"), data.classes, data.store, "cpu"
        made = evaluation.predict(*what, every_clip=True)
    assert [row.get("subset") for row in rows] == [None, "test", "unlabelled"]
    assert made.every_clip.dtype == made.video_probs.dtype == np.float64
    assert np.allclose(made.every_clip.sum(1), 1, rtol=0, atol=1e-12)


def test_no_float64_before_a_run(tiny):
    """The teacher and the check of half precision."""
    p = tiny()
    with AppleGPU():
        frames = torch.zeros(1, 3, 224, 224, dtype=torch.uint8)
        softmax, _ = teacher.Classifier(p.teacher)(frames)
        checked = precision.check(training.build_network(p, 3), (8, 3, 8, 48, 48), "bf16", "cpu")
    assert softmax.dtype == torch.float32
    assert checked.dtype == "bf16"
