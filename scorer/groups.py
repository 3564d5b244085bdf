"""Groups of look-alike images, the upper level of the hierarchy after HierCore; found when a model is fitted.

No product label is used. How the published method groups is not known to us. Our reconstruction: Ward's hierarchy of
the images, cut where the silhouette is best, and each part cut again as long as it falls into parts.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from scorer import spherical_k_means
from scorer.gallery import Labels
from scorer.search.bank import unit_rows
from scorer.vectors import Vectors

# A group smaller than this joins its nearest neighbour: its calibration would rest on too few scores. Where a product
# is split each part has fewer calibration images; where two products are one group they have no common scale. A
# judgement.
_SMALLEST_GROUP = 10
# The same where the number of groups is given: what cross-fitting needs at least. A judgement, not measured.
_SMALLEST_GIVEN = 8
# Below this silhouette the images do not fall into groups. Good images of one product reach 0.2 to 0.63 when they are
# split (and each half then has half the images for its bank), those of two different products 0.75 to 0.97.
_SMALLEST_SILHOUETTE = 0.7
# The same for the first cut of a group into parts, its sub-looks, and for further cuts of these. With 50 to 160
# images, products that come in kinds reach 0.62 (juice bottle) and 0.67 (a simulated bottle) and more, a simulated
# fabric 0.58 to 0.61 and solar cells 0.67, where sub-looks change nothing. Screws reach up to 0.55, and lose 3 points
# of AUROC with sub-looks. The third kind of juice is told from the second by 0.5 to 0.55.
_SMALLEST_SILHOUETTE_OF_PARTS = 0.58
_SMALLEST_SILHOUETTE_WITHIN_PARTS = 0.5
# Runs of k-means, of which the best counts. A judgement.
_RESTARTS = 5
# Images that one cut is searched on, since its work grows with their square. All images are assigned afterwards; what
# has too few images in the sample is told apart when its part is cut again. A judgement, not measured.
_SAMPLE = 3000
# Images of the sample in an average group of the finest cut. A judgement.
_FEWEST_PER_GROUP = 3
# Rounds and seed of k-means: the defaults of faiss, a judgement.
_ROUNDS = 25
_FAISS_SEED = 1234


def find_groups(embeddings: Vectors, count: int | None, seed: int) -> Labels:
    """Return group labels (n,) from 0, the largest group first, of images by unit embeddings (n, d).

    With `count` None the silhouette decides on the number of groups.
    """
    rng = np.random.default_rng(seed)
    if count is None:
        labels = _fallen_apart(embeddings, rng)
    else:
        sample = _sample(embeddings, max(_SAMPLE, _SMALLEST_GIVEN * count), rng)
        centres = _k_means(sample, min(count, len(sample)), rng)
        labels = _without_small(embeddings, (embeddings @ centres.T).argmax(axis=1), _SMALLEST_GIVEN)
    order = sorted(set(labels.tolist()), key=lambda k: (-int((labels == k).sum()), int((labels == k).argmax())))
    return _relabelled(labels, order)


def _sample(embeddings: Vectors, most: int, rng: np.random.Generator) -> Vectors:
    n = len(embeddings)
    return embeddings if n <= most else embeddings[np.sort(rng.choice(n, most, replace=False))]


def _fallen_apart(embeddings: Vectors, rng: np.random.Generator, least: float = _SMALLEST_SILHOUETTE) -> Labels:
    """Return labels of the groups that the images fall into: each part is cut again until no part falls apart.

    One cut may take several products for one group, because other products are much farther apart. Such a group still
    falls into parts by itself.
    """
    labels = np.empty(len(embeddings), dtype=np.int64)
    waiting, done = [np.arange(len(embeddings))], 0
    while waiting:
        members = waiting.pop()
        parts = _cut(embeddings[members], rng, least)
        kinds = np.unique(parts)
        if len(kinds) > 1:
            waiting += [members[parts == kind] for kind in kinds]
        else:
            labels[members] = done
            done += 1
    return labels


def parts_of_group(embeddings: Vectors, seed: int) -> Vectors | None:
    """Return the unit centres (S, d) of the parts that the images (n, d) of one group fall into, None for no parts.

    The parts are nearer to each other than groups are, and each has at least ten images.
    """
    rng = np.random.default_rng(seed)
    parts = _cut(embeddings, rng, _SMALLEST_SILHOUETTE_OF_PARTS)
    kinds = np.unique(parts)
    if len(kinds) < 2:
        return None
    centres = []
    for part in kinds:
        members = embeddings[parts == part]
        labels = _fallen_apart(members, rng, _SMALLEST_SILHOUETTE_WITHIN_PARTS)
        centres += [members[labels == k].mean(axis=0) for k in np.unique(labels)]
    return unit_rows(np.stack(centres))


def _cut(embeddings: Vectors, rng: np.random.Generator, least: float) -> Labels:
    """Return labels (n,) of one cut into groups that are large enough; all 0 where the images do not fall apart.

    `least` is the silhouette below which they do not.
    """
    if len(embeddings) < 2 * _SMALLEST_GROUP:
        return np.zeros(len(embeddings), dtype=np.int64)
    sample = _sample(embeddings, _SAMPLE, rng)
    most = max(2, min(len(embeddings) // _SMALLEST_GROUP, len(sample) // _FEWEST_PER_GROUP))
    labels = _best_cut(sample, most, least)
    centres = np.stack([sample[labels == k].mean(axis=0) for k in range(int(labels.max()) + 1)])
    centres = spherical_k_means.settled(sample, unit_rows(centres), _ROUNDS, _FAISS_SEED)
    labels = (embeddings @ centres.T).argmax(axis=1)
    return _without_small(embeddings, labels, _SMALLEST_GROUP)


def _relabelled(labels: Labels, order: Sequence[int]) -> Labels:
    place = {old: new for new, old in enumerate(order)}
    return np.asarray([place[int(label)] for label in labels], dtype=np.int64)


def _best_cut(embeddings: Vectors, most: int, least: float = _SMALLEST_SILHOUETTE) -> Labels:
    """Return labels from 0 of the cut of Ward's hierarchy into 2 to `most` groups with the best mean silhouette.

    All 0 where no silhouette (Rousseeuw 1987) is above `least`. Ward's criterion, since average and complete linkage
    cut single odd images off first. From the finest cut on, each merge adds two columns of the images' summed distances
    to the groups, so that the exact silhouettes of all cuts cost little more than one.
    """
    from scipy.cluster.hierarchy import linkage  # here: scoring needs no scipy, which takes a second to import
    from scipy.spatial.distance import squareform

    n = len(embeddings)
    distance = np.maximum(1 - embeddings @ embeddings.T, 0)
    np.fill_diagonal(distance, 0)
    # Ward's criterion is of Euclidean distances; between unit vectors these are sqrt(2 - 2 s).
    merges = linkage(np.sqrt(2 * squareform(distance, checks=False)), "ward")[:, :2].astype(int)
    nodes: dict[int, list[int]] = {leaf: [leaf] for leaf in range(n)}
    for merge in range(n - most):
        first, second = (nodes.pop(int(node)) for node in merges[merge])
        nodes[n + merge] = first + second
    columns = {node: column for column, node in enumerate(nodes)}
    labels = np.empty(n, dtype=np.int64)
    for node, leaves in nodes.items():
        labels[leaves] = columns[node]
    rows = np.arange(n)
    sizes = np.bincount(labels).astype(np.float32)
    sums = distance @ np.eye(most, dtype=np.float32)[labels]
    within = sums[rows, labels]
    others = sums / sizes
    others[rows, labels] = np.inf
    best, best_silhouette = np.zeros(n, dtype=np.int64), least
    for merge in range(n - most, n - 1):
        inside, nearest = within / np.maximum(sizes[labels] - 1, 1), others.min(axis=1)
        silhouettes = (nearest - inside) / np.maximum(np.maximum(nearest, inside), 1e-12)
        silhouette = float(np.where(sizes[labels] > 1, silhouettes, 0).mean())
        if silhouette > best_silhouette:  # of equal ones, the cut into more groups
            best, best_silhouette = labels.copy(), silhouette
        stays, goes = (columns.pop(int(node)) for node in merges[merge])
        columns[n + merge] = stays
        sums[:, stays] += sums[:, goes]
        sizes[stays] += sizes[goes]
        labels[labels == goes] = stays
        members = np.flatnonzero(labels == stays)
        within[members] = sums[members, stays]
        others[:, stays] = sums[:, stays] / sizes[stays]
        others[members, stays] = np.inf
        others[:, goes] = np.inf
    return np.unique(best, return_inverse=True)[1]


def _k_means(embeddings: Vectors, count: int, rng: np.random.Generator) -> Vectors:
    """Return the centres (count, d) of the best of several runs of spherical k-means, each seeded by k-means++."""
    from sklearn.cluster import kmeans_plusplus  # here: scoring needs no scikit-learn, which takes a second to import

    seeds = [kmeans_plusplus(embeddings, count, random_state=int(rng.integers(2**31)))[0] for _ in range(_RESTARTS)]
    runs = [spherical_k_means.settled(embeddings, centres, _ROUNDS, _FAISS_SEED) for centres in seeds]
    return max(runs, key=lambda centres: float((embeddings @ centres.T).max(axis=1).sum()))


def _without_small(embeddings: Vectors, labels: Labels, smallest: int) -> Labels:
    """Return labels in which each group that is too small has joined the group with the most similar centre."""
    labels = labels.copy()
    while True:
        used, sizes = np.unique(labels, return_counts=True)
        if len(used) < 2 or sizes.min() >= smallest:
            return labels
        centres = unit_rows(np.stack([embeddings[labels == k].mean(axis=0) for k in used]))
        small = int(sizes.argmin())
        similarity = centres @ centres[small]
        similarity[small] = -np.inf
        labels[labels == used[small]] = used[int(similarity.argmax())]
