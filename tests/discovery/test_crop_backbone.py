"""Backbones that describe crops: mask guidance of transformers and of maps, and what cannot be had."""

from __future__ import annotations

import numpy as np
import pytest
import timm
import torch
from torch.nn import functional

from discovery.learned import augment, crop_backbone, masked_vit
from discovery.learned.augment import Crop
from flawline.errors import FlawlineError
from tests.discovery.drawings import KINDS, crops

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def vit(vit_weights):
    return crop_backbone.load("test_vit", vit_weights, "cpu")


def reference(model, pixels, patches):
    """Return what the same transformer gives, written out: in the last blocks logits to closed patches are -1e9."""
    tokens = model._pos_embed(model.patch_embed(pixels))
    size = tokens.shape[1]
    bias = torch.zeros(len(pixels), 1, size, size)
    bias[:, 0, 0, 1:] = torch.where(patches, 0.0, -1e9)
    for number, block in enumerate(model.blocks):
        normed = block.norm1(tokens)
        attention = block.attn
        q, k, v = (
            attention.qkv(normed)
            .reshape(len(pixels), size, 3, attention.num_heads, attention.head_dim)
            .permute(2, 0, 3, 1, 4)
        )
        logits = (q * attention.head_dim**-0.5) @ k.transpose(-2, -1)
        if number >= len(model.blocks) - masked_vit.MASKED_BLOCKS:
            logits = logits + bias
        seen = (logits.softmax(dim=-1) @ v).transpose(1, 2).reshape(len(pixels), size, -1)
        tokens = tokens + attention.proj(seen)
        tokens = tokens + block.mlp(block.norm2(tokens))
    return model.norm(tokens)[:, 0]


@pytest.mark.parametrize("depth", [6, 12])
def test_class_token_is_masked_in_the_last_nine_blocks_only(depth):
    torch.manual_seed(0)
    # With more than nine blocks the test sees that the first ones stay as they are.
    model = timm.create_model("test_vit", pretrained=False, num_classes=0, img_size=64, depth=depth).eval()
    trunk = masked_vit.MaskedVit(model)
    pixels = torch.randn(2, 3, 64, 64)
    masks = torch.zeros(2, 64, 64)
    masks[0, :32, :16] = 1
    masks[1, 20:24, 20:24] = 1
    with torch.inference_mode():
        tokens, patches = trunk(pixels, masks)
        output = trunk.last_block()(tokens, patches)
        expected = reference(model, pixels, masked_vit.inside(masks, (4, 4)))
    assert torch.allclose(output, expected, atol=1e-4)


def test_full_mask_gives_the_transformers_own_class_token():
    torch.manual_seed(0)
    model = timm.create_model("test_vit", pretrained=False, num_classes=0, img_size=64).eval()
    trunk = masked_vit.MaskedVit(model)
    pixels = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        output = trunk.last_block()(*trunk(pixels, torch.ones(2, 64, 64)))
        assert torch.allclose(output, model.forward_features(pixels)[:, 0], atol=1e-5)


def test_defect_finer_than_a_patch_keeps_the_patch_it_covers_most():
    masks = torch.zeros(3, 32, 32)
    masks[0, 3:5, 17:19] = 1
    masks[1, :16, :16] = 1
    patches = masked_vit.inside(masks, (2, 2))
    assert patches.tolist() == [[False, True, False, False], [True, False, False, False], [True] * 4]


@pytest.mark.parametrize("name", ["test_vit", "tf_efficientnet_lite0"])
def test_embedding_tells_kinds_apart_and_looks_inside_the_mask(name, vit_weights):
    backbone = crop_backbone.load(name, vit_weights if name == "test_vit" else None, "cpu")
    made, kinds = crops(9)
    vectors = backbone.embed(made)
    assert vectors.shape == (9, backbone.dimension)
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(np.ones(9), abs=1e-4)
    labels = np.array([KINDS.index(kind) for kind in kinds])
    cosines = vectors @ vectors.T
    alike = labels[:, None] == labels[None, :]
    np.fill_diagonal(cosines, np.nan)
    assert np.nanmean(cosines[alike]) > np.nanmean(cosines[~alike])
    elsewhere = Crop(made[0].pixels, np.roll(made[0].mask, (40, 40), (0, 1)))
    assert not np.allclose(backbone.embed([elsewhere])[0], vectors[0], atol=1e-3)


def test_embedding_depends_on_the_crop_alone_and_its_version_on_the_weights(vit, vit_weights):
    made, _ = crops(5)
    together, alone = vit.embed(made), np.concatenate([vit.embed([crop]) for crop in made])
    assert together == pytest.approx(alone, abs=1e-5)
    assert vit.embed([]).shape == (0, vit.dimension)
    assert vit.version == crop_backbone.load("test_vit", vit_weights, "cpu").version
    assert vit.version != crop_backbone.load("tf_efficientnet_lite0", None, "cpu").version


def test_random_views_keep_mask_and_pixels_together():
    pixels = np.zeros((80, 60, 3), np.uint8)
    mask = np.zeros((80, 60), bool)
    pixels[10:40, 20:50] = 255
    mask[10:40, 20:50] = True
    rng = np.random.default_rng(0)
    for _ in range(20):
        shown, covered = augment.augmented(Crop(pixels, mask), 64, rng)
        assert shown.shape == (64, 64, 3) and covered.shape == (64, 64)
        bright = shown.mean(axis=2) > shown.mean()
        assert ((covered > 0.5) == bright).mean() > 0.85


@pytest.mark.parametrize(
    ("name", "weights", "message"),
    [("no_such_model", None, "no_such_model"), ("test_vit", "missing", "no such weights file")],
)
def test_backbone_that_cannot_be_had_is_said_in_one_line(tmp_path, name, weights, message):
    with pytest.raises(FlawlineError, match=message) as raised:
        crop_backbone.load(name, tmp_path / weights if weights else None, "cpu")
    assert "\n" not in str(raised.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_device_that_is_not_there_is_said(vit_weights):
    with pytest.raises(FlawlineError, match=r"discovery\.device 'cuda' is not available"):
        crop_backbone.load("test_vit", vit_weights, "cuda")


def test_crop_that_is_gone_or_damaged_is_said_in_one_line():
    for crop, mask in ((b"", b""), (b"\xff\xd8none", b"png")):
        with pytest.raises(FlawlineError):
            augment.decode(crop, mask)


def test_mask_that_cannot_be_asked_of_an_old_timm_is_said():
    class Old(torch.nn.Module):
        def forward(self, x):
            return x

    model = timm.create_model("test_vit", pretrained=False)
    model.blocks[0] = Old()
    with pytest.raises(FlawlineError, match=r"timm 1\.0\.16"):
        masked_vit.MaskedVit(model)


def test_last_block_of_maps_hands_on_the_mean_inside_before_it_is_trained():
    block = crop_backbone.MapBlock(8)
    tokens = torch.randn(3, 5, 8)
    output = block(tokens, torch.ones(3, 4, dtype=torch.bool))
    assert torch.equal(output, tokens[:, 0])
    (functional.normalize(output, dim=1).sum() + block(tokens * 2, torch.ones(3, 4, dtype=torch.bool)).sum()).backward()
    assert block.project.weight.grad is not None
