"""A store with rounds and no broker, fed with defects whose crops and vectors go by their kind."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from sqlalchemy import func, select

from discovery.round_runner import RoundRunner
from discovery.store import schema
from discovery.store.store import Batch, Store, TakenDefect
from flawline import imaging
from flawline.messages import Codec
from flawline.settings.tree import load_settings
from tests.discovery.drawings import KINDS, draw
from tests.discovery.factories import START_NS, defect, directions, near

ROUND = {"window_regions": 200, "exemplars": 12, "class_limit": 6, "confirm_rounds": 1}


class RoundLine:
    """Rounds as the service runs them."""

    def __init__(self, folder, weights, **discovery):
        values = ROUND | {"crop_backbone": "test_vit", "crop_weights": weights, "device": "cpu"} | discovery
        self.settings = load_settings(None, data_dir=folder, discovery=values)
        self.store = Store(self.settings.store_url, utc_ns=lambda: START_NS)
        self.runner = RoundRunner(self.settings, self.store)
        self.rng = np.random.default_rng(5)
        self.kinds, self.sequence = {}, 0

    def feed(self, count, version, seed, kinds=KINDS, crops=True):
        """Ingest `count` defects of each kind; vectors of different versions have nothing in common."""
        axes = directions(3, seed=seed)
        taken = []
        for _ in range(count):
            for kind in kinds:
                axis = axes[KINDS.index(kind)]
                message = defect(self.sequence, near(axis, self.rng, 0.4), version=version)
                image, mask = draw(kind, self.rng)
                crop = imaging.encode(image, Codec.JPEG) if crops else b""
                region = replace(message.regions[0], crop=crop, mask=imaging.encode_mask(mask))
                taken.append(TakenDefect(replace(message, regions=(region,)), (None,)))
                self.kinds[message.frame_id] = kind
                self.sequence += 1
        self.store.ingest(Batch(defects=taken))

    def round(self):
        self.runner.ask()
        steps = 0
        while self.runner.busy:
            self.runner.step()
            steps += 1
        return steps

    def class_of_kind(self):
        classes = {}
        for frame, name in self.store.assignments().items():
            classes.setdefault(self.kinds[frame], set()).add(name)
        return classes

    def members(self):
        r = schema.regions
        with self.store.reading() as connection:
            rows = connection.execute(select(r.c.class_id, func.count()).group_by(r.c.class_id))
            return {row[0]: row[1] for row in rows if row[0]}
