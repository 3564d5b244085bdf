"""Classes across a change of embedding: by the crops of their exemplars, or described anew; ids go on."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from sqlalchemy import select

from discovery import embedding_change
from discovery.learned import crop_backbone
from discovery.round import lineage
from discovery.store import registry, schema
from flawline.messages import Tensor
from flawline.settings.discovery import DiscoverySettings
from tests.discovery.drawings import KINDS
from tests.discovery.factories import directions, near
from tests.discovery.round_line import RoundLine

pytestmark = pytest.mark.system


@pytest.fixture
def line(tmp_path, vit_weights):
    return RoundLine(tmp_path, vit_weights)


def test_change_of_embedding_keeps_every_id(line):
    line.feed(14, "old", 5)
    line.round()
    before = line.class_of_kind()
    assert sorted(map(len, before.values())) == [1, 1, 1]
    line.feed(18, "new", 6)
    line.round()
    assert line.class_of_kind() == before
    known = registry.read(line.store)
    assert {defect_class.embedding_version for defect_class in known.classes} == {"new"}
    assert {defect_class.id: defect_class.members for defect_class in known.classes} == line.members()
    assert sum(line.members().values()) == 96


def test_new_kind_that_comes_with_the_new_embedding_is_born_beside_the_old_ones(line):
    line.feed(20, "old", 5, kinds=KINDS[:2])
    line.round()
    before = line.class_of_kind()
    line.feed(20, "new", 6)
    line.round()
    after = line.class_of_kind()
    assert {kind: after[kind] for kind in KINDS[:2]} == before
    assert len(after[KINDS[2]]) == 1
    assert not after[KINDS[2]] & set().union(*before.values())


def test_class_that_is_away_at_the_change_comes_back_with_its_id(line):
    line.feed(14, "old", 5)
    line.round()
    before = line.class_of_kind()
    line.feed(20, "new", 6, kinds=KINDS[:2])
    line.round()
    line.feed(16, "new", 6)
    line.round()
    assert line.class_of_kind() == before


def test_change_back_to_the_former_embedding_keeps_every_id(line):
    line.feed(14, "old", 5)
    line.round()
    before = line.class_of_kind()
    line.feed(18, "new", 6)
    line.round()
    line.feed(18, "old", 5)
    line.round()
    assert line.class_of_kind() == before


def test_without_crops_the_classes_are_found_anew_and_the_old_ones_stay(line):
    line.feed(14, "old", 5, crops=False)
    line.round()
    before = line.class_of_kind()
    line.feed(18, "new", 6)
    line.round()
    after = line.class_of_kind()
    assert all(before[kind] < after[kind] for kind in KINDS)


def test_without_a_backbone_rounds_go_on(tmp_path, caplog):
    line = RoundLine(tmp_path, tmp_path / "missing")
    line.feed(14, "old", 5)
    line.round()
    line.feed(18, "new", 6)
    line.round()
    assert len(registry.read(line.store).classes) == 6
    assert "crops cannot be described" in caplog.text


def test_crops_are_described_a_slice_at_a_time(line, monkeypatch):
    monkeypatch.setattr(embedding_change, "STEP_REGIONS", 10)
    line.feed(14, "old", 5)
    line.round()
    line.feed(18, "new", 6)
    assert line.round() >= (3 * 12 + 54) / 10


def test_own_embedding_of_another_backbone_is_made_again_for_what_is_kept(tmp_path, vit_weights):
    line = RoundLine(tmp_path, vit_weights, embedding="crop")
    backbone = crop_backbone.load("test_vit", vit_weights, "cpu")
    line.runner._backbone = backbone
    line.feed(14, "of the workers", 5)
    line.round()
    before = line.class_of_kind()
    assert len(set.union(*before.values())) >= 3  # the untrained backbone tells the kinds apart, not without errors
    versions = {defect_class.embedding_version for defect_class in registry.read(line.store).classes}
    assert versions == {backbone.version}
    backbone.version = "another"  # as with other weights
    line.round()
    after = line.class_of_kind()
    assert all(before[kind] <= after[kind] for kind in KINDS)
    with line.store.reading() as connection:
        assert set(connection.scalars(select(schema.regions.c.embedding_version))) == {"another"}
        sizes = {len(row) for row in connection.scalars(select(schema.regions.c.embedding))}
    assert sizes == {2 * backbone.dimension}
    assert {defect_class.embedding_version for defect_class in registry.read(line.store).classes} == {"another"}


def test_exemplars_decide_only_where_they_agree_and_are_near():
    axes = directions(4, dimension=16)
    rng = np.random.default_rng(0)
    known = np.stack([near(axes[i % 2], rng, 0.3) for i in range(20)])
    names = ["D-0001" if i % 2 == 0 else "D-0002" for i in range(20)]
    asked = np.stack([known[0], known[1], axes[2], (axes[0] + axes[1]) / 2**0.5])
    assert embedding_change.alike(known, names, asked)[:3] == ["D-0001", "D-0002", None]
    assert embedding_change.alike(known[:0], [], asked) == [None] * 4
    assert embedding_change.alike(known, names, asked[:0]) == []
    assert embedding_change.alike(known[:1], names[:1], asked) == [None] * 4


def test_merged_class_gets_nothing(line):
    line.feed(14, "old", 5)
    line.round()
    known = registry.read(line.store)
    first, second = known.classes[:2]
    gone = replace(second, state=lineage.ClassState.MERGED, merged_into=first.id)
    with line.store.transaction() as connection:
        registry.save_classes(connection, [gone], known.next_number)
        exemplars, _ = embedding_change.waiting(connection, "new", DiscoverySettings())
        assert exemplars == {}
    line.feed(18, "new", 6)
    with line.store.reading() as connection:
        exemplars, regions = embedding_change.waiting(connection, "new", DiscoverySettings())
    assert second.id not in exemplars.values()
    assert len(regions) == 54


def test_vectors_that_are_no_numbers_are_left_out(line):
    line.feed(2, "old", 5)

    def broken(crops):
        vectors = np.ones((len(crops), 4), np.float32)
        vectors[0] = np.nan
        vectors[1] = 0
        return vectors

    with line.store.reading() as connection:
        embeddings = embedding_change.described(connection, [1, 2, 3, 99], broken)
    assert {number: vector is None for number, vector in embeddings.items()} == {1: True, 2: True, 3: False, 99: True}
    assert Tensor.of(embeddings[3], "float16").shape == (4,)
