"""Classify videos by an exported model, with PyTorch and PyAV alone: python classify.py model.pt2 <videos>"""

import json
import sys
from itertools import chain, islice, pairwise

import av
import numpy as np
import torch

path, *videos = sys.argv[1:]
inside = {"about": ""}
model = torch.export.load(path, extra_files=inside).module()
classes, fps, stride, length, least, *_ = json.loads(inside["about"]).values()
for video in videos:
    probs = []
    with av.open(video) as file:  # its frames as they come; with fps those on screen every 1/fps seconds
        times = ((f, int(f.time * fps + 0.501) if fps else i) for i, f in enumerate(file.decode(video=0)))
        pairs = pairwise(chain(times, [(None, None)]))
        frames = (f for (f, at), (_, end) in pairs for _ in range(1 if end is None else end - at))
        while len(clip := list(islice(frames, 0, length * stride, stride))) >= (least if probs else 1):
            rgb = [np.rot90(f.to_ndarray(format="rgb24"), f.rotation // 90) for f in clip]
            probs.append(model(torch.from_numpy(np.stack(rgb))))
    ranked = sorted(zip(torch.stack(probs).mean(0).tolist(), classes, strict=True), reverse=True)
    print(json.dumps({"video": video, "probs": {name: p for p, name in ranked}}))
