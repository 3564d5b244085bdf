"""A worker that scores in batches, as on a GPU, with a vision transformer in PyTorch; here on a CPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from timm import create_model

from embedded_broker import EmbeddedBroker
from flawline import imaging, messages
from flawline.messages import Codec, Decision, Defect, Verdict
from flawline.settings.scorer import LayerSettings, ScorerSettings
from producers.simulation import PRODUCTS, LineSettings, SimulatedLine
from scorer.fit import fit_detector
from scorer.load import load_detector
from tests.workers.line import committed, feeding, frame, inspecting, line_settings, read, wait_until

pytestmark = pytest.mark.system

SIDE = 64


def test_batches_of_a_transformer_give_the_verdicts_of_single_images(
    embedded_broker: EmbeddedBroker, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    weights = tmp_path / "vit.safetensors"
    save_file(create_model("test_vit3", pretrained=False).state_dict(), weights)
    layers = tuple(LayerSettings(size=SIDE, block=block, rows=200, neighbours=5) for block in (1, 2))
    line = SimulatedLine(LineSettings(products=PRODUCTS[:2], defect_rate=0.5, height=SIDE, width=SIDE))
    fitted = fit_detector(
        [part.image for part in line.good_parts(40)],
        ScorerSettings(backbone="test_vit3", weights=weights, layers=layers, alarm_rate=0.2),
    )
    fitted.save(tmp_path / "model")
    images = [line.render("cam", i).image for i in range(60)]
    expected = fitted.score(images)
    alarms = sum(scores.decision is not Decision.ACCEPT for scores in expected)
    assert 3 < alarms < 57

    detector = load_detector(tmp_path / "model", runtime="torch", device="cpu", weights=weights, threads=2)
    settings = line_settings(
        embedded_broker.bootstrap, tmp_path, model=str(tmp_path / "model"), num_gpus=0.5, batch_limit=16
    )
    with feeding(settings) as feeder, inspecting(settings, 0, detector):
        for i, image in enumerate(images):
            data = imaging.encode(image, Codec.PNG)
            size = {"height": SIDE, "width": SIDE, "size_bytes": len(data)}
            feeder.send(frame(f"cam-{i % 4}", i // 4, data=data, checksum=messages.checksum(data), **size))
        feeder.flush()
        verdicts = {verdict.frame_id: verdict for verdict in read(settings, "verdicts", Verdict, 60)}
        defects = read(settings, "defects", Defect, alarms)
        wait_until(lambda: sum(committed(settings, i) or 0 for i in range(4)) == 60)
    for i, scores in enumerate(expected):
        verdict = verdicts[frame(f"cam-{i % 4}", i // 4).frame_id]
        assert verdict.score == pytest.approx(scores.aligned, rel=1e-3, abs=1e-4)
        assert (verdict.decision, verdict.group) == (scores.decision, scores.group)
    assert len(defects) == alarms
    embeddings = [region.embedding.array() for defect in defects for region in defect.regions]
    assert embeddings
    assert all(np.linalg.norm(vector.astype(np.float32)) == pytest.approx(1, abs=1e-2) for vector in embeddings)
