"""The map: where regions lie by their looks, on a plane. Made when somebody asks, once a round, beside the line."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import numpy as np
from sqlalchemy import ColumnElement, Connection, select

from discovery.round import clustering
from discovery.store import schema
from discovery.store.database import fact
from discovery.store.store import Store
from scorer.vectors import unit

REGIONS_MAX = 20_000
MAPS_KEPT = 8
"""Maps that are remembered: of all regions, and of single classes. A judgement: one takes a quarter of a megabyte."""
CLASSES_MIN = 3
MARGIN = 0.04
SIDE = 4095
"""Points are whole numbers from 0 to this."""
OUTER_SHARE = 0.005
"""Share of the points at each end of an axis that may be moved to it, so that the others have room. A judgement."""


@dataclass(frozen=True, eq=False)
class Projection:
    """Regions `ids` (n) and their points int (n, 2), of a round and an embedding version."""

    round: int
    version: str
    ids: np.ndarray
    points: np.ndarray


class RegionMaps:
    """Makes maps and remembers them. Safe to use from several threads, of which one makes a map at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._maps: OrderedDict[str | None, Projection] = OrderedDict()
        self._classes: tuple[tuple[int, int, str], dict[int, str]] | None = None

    def content(self, store: Store, class_id: str | None = None) -> dict[str, Any]:
        """Return the map of all regions or of a class.

        For each region: its id in `ids`, its point in `x` and `y`, and in `of` the place of its class in `classes`, -1
        for none.
        """
        with self._lock, store.reading() as connection:
            projection = self._projection(connection, class_id)
            owners = self._owners(connection, projection)
            c = schema.classes.c
            rows = connection.execute(select(c.id, c.name, c.state).order_by(c.number)).all()
        names = [owners.get(int(number)) for number in projection.ids]
        present = set(names)
        classes = [{"id": row.id, "name": row.name, "state": row.state} for row in rows if row.id in present]
        place_of = {row["id"]: place for place, row in enumerate(classes)}
        return {
            "round": projection.round,
            "classes": classes,
            "ids": projection.ids.tolist(),
            "x": projection.points[:, 0].tolist(),
            "y": projection.points[:, 1].tolist(),
            "of": [place_of.get(name, -1) if name else -1 for name in names],
        }

    def _projection(self, connection: Connection, class_id: str | None) -> Projection:
        number = int(fact(connection, "round", "0"))
        known = self._maps.get(class_id)
        if known is None or known.round != number:
            known = _projection(connection, class_id, number)
            self._maps[class_id] = known
        self._maps.move_to_end(class_id)
        while len(self._maps) > MAPS_KEPT:
            self._maps.popitem(last=False)
        return known

    def _owners(self, connection: Connection, projection: Projection) -> dict[int, str]:
        """Return the class of each region that has one, as it is now: people move regions between rounds."""
        key = (projection.round, int(fact(connection, "revision", "0")), projection.version)
        if self._classes is None or self._classes[0] != key:
            r = schema.regions.c
            query = select(r.class_id, r.id).where(r.class_id.is_not(None), r.embedding_version == projection.version)
            self._classes = key, {number: name for name, number in connection.execute(query)}
        return self._classes[1]


def _projection(connection: Connection, class_id: str | None, number: int) -> Projection:
    r, d = schema.regions.c, schema.defects.c
    newest = select(r.embedding_version)
    if class_id is not None:
        newest = newest.where(r.class_id == class_id)
    version = connection.scalar(newest.order_by(r.id.desc()).limit(1)) or ""
    same: ColumnElement[bool] = r.embedding_version == version
    if class_id is not None:
        same &= r.class_id == class_id
    latest = connection.scalars(select(r.id).where(same).order_by(r.id.desc()).limit(REGIONS_MAX)).all()
    shown = same & (r.id >= min(latest, default=0))
    if class_id is None:
        shown |= same & r.exemplar.is_(True)  # rare classes are on the map, too
    query = (
        select(r.id, r.class_id, r.embedding, d.model_version, d.group_id)
        .join_from(schema.regions, schema.defects, r.defect_id == d.id)
        .where(shown)
        .order_by(r.id)
    )
    rows = connection.execute(query).all()
    if not rows:
        return Projection(number, version, np.zeros(0, np.int64), np.zeros((0, 2), int))
    vectors = np.frombuffer(b"".join(row.embedding for row in rows), "<f2").reshape(len(rows), -1)
    names = np.unique([row.class_id or "" for row in rows], return_inverse=True)
    owners = names[1] - int(names[0][0] == "")  # the empty name comes first and stands for none
    groups = np.unique([f"{row.model_version}/{row.group_id}" for row in rows], return_inverse=True)[1]
    points = projected(vectors.astype(np.float32), groups, owners)
    return Projection(number, version, np.array([row.id for row in rows], np.int64), points)


def projected(vectors: np.ndarray, groups: np.ndarray, owners: np.ndarray) -> np.ndarray:
    """Return points int (n, 2) on a plane, from 0 to SIDE, of vectors (n, D); the same for the same vectors.

    Vectors are compared as rounds compare them, without the mean of their look-alike group (`groups` (n)). The plane is
    that of the first two principal axes of the classes' means (`owners` (n), -1 for none), along which classes differ
    most; with less than CLASSES_MIN classes, of all vectors.
    """
    from sklearn.decomposition import PCA  # here: it takes a second to import

    points = clustering.centred(unit(vectors), groups, owners)
    classes = np.unique(owners[owners >= 0])
    means = [points[owners == place].mean(axis=0) for place in classes]
    fitted = np.stack(means) if len(means) >= CLASSES_MIN else points
    axes = min(2, *fitted.shape)
    with np.errstate(invalid="ignore", divide="ignore"):  # of identical vectors, whose variance is zero
        pca = PCA(axes, svd_solver="full" if len(fitted) < points.shape[1] else "covariance_eigh").fit(fitted)
    plane = np.zeros((len(points), 2))
    plane[:, :axes] = (points - pca.mean_) @ pca.components_.T
    low, high = np.quantile(plane, (OUTER_SHARE, 1 - OUTER_SHARE), axis=0)
    share = np.clip((plane - low) / np.maximum(high - low, 1e-9), -MARGIN, 1 + MARGIN)
    return np.asarray(((share + MARGIN) / (1 + 2 * MARGIN) * SIDE).round(), int)
