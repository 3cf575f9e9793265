"""Operations on one picture against NumPy and torchvision, and the transforms made of them."""

import colorsys

import numpy as np
import pytest
from PIL import Image

from lsm.data import (
    ArrayDataset,
    CenterCrop,
    ColorJitter,
    Data,
    Digits,
    EvalBatches,
    RandAugment,
    RandomErasing,
    RandomFlip,
    RandomResizedCrop,
    TrivialAugment,
)
from lsm.data.inputs import Inputs
from lsm.data.transforms import operations, policies, windows
from lsm.errors import ConfigError, DataError


def noise(height=7, width=6, channels=3):
    shape = (height, width, channels) if channels == 3 else (height, width)
    return np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)


def grey(pixels):
    return pixels @ np.array([0.299, 0.587, 0.114])


def test_operations_are_their_formulas():
    x = noise()
    real, picture = x.astype(float), Image.fromarray(x)

    def check(name, amount, expected, within=1.0):
        found = np.asarray(getattr(operations, name)(picture, *amount)).astype(float)
        assert np.abs(found - np.clip(expected, 0, 255)).max() <= within, name
        assert np.abs(found - real).max() > 20, name

    check("brightness", (1.4,), real * 1.4)
    check("saturation", (1.5,), grey(real)[..., None] * -0.5 + real * 1.5, 1.5)
    check("contrast", (0.5,), grey(real).mean() / 2 + real / 2)
    check("posterize", (3,), x & 0b11100000, 0)
    check("solarize", (100,), np.where(x < 100, x, 255 - x), 0)
    low, high = real.min((0, 1)), real.max((0, 1))
    narrow = Image.fromarray((x // 2 + 50).astype(np.uint8))
    stretched = np.asarray(operations.autocontrast(narrow)).astype(float)
    assert np.abs(stretched - (x // 2 - low // 2) * 255 / (high // 2 - low // 2)).max() <= 1
    check("translate_x", (2.9,), np.pad(real, ((0, 0), (2, 0), (0, 0)))[:, :-2], 0)
    check("translate_y", (-2.9,), np.pad(real, ((0, 2), (0, 0), (0, 0)))[2:], 0)
    moved = [int(0.5 + 0.5 * (at + 0.5)) for at in range(7)]  # pixels have their centres at + 0.5
    rows = [np.pad(row, ((0, by), (0, 0)))[by:] for row, by in zip(real, moved, strict=True)]
    check("shear_x", (0.5,), np.stack(rows), 0)
    columns = zip(real.swapaxes(0, 1), moved, strict=False)
    columns = [np.pad(column, ((0, by), (0, 0)))[by:] for column, by in columns]
    check("shear_y", (0.5,), np.stack(columns, axis=1), 0)
    check("rotate", (180,), real[::-1, ::-1], 0)
    kernel = np.pad([[5]], 1, constant_values=1) / 13  # Pillow's SMOOTH; the border stays
    near = np.lib.stride_tricks.sliding_window_view(real, (3, 3), (0, 1))
    smooth = real.copy()
    smooth[1:-1, 1:-1] = np.einsum("yxcij,ij->yxc", near, kernel)
    check("sharpness", (1.8,), smooth * -0.8 + real * 1.8, 2)


def test_hue_turns_and_grey_has_none():
    colours = np.array([[[200, 40, 40], [40, 200, 40], [90, 90, 90]]], np.uint8)
    turned = np.asarray(operations.hue(Image.fromarray(colours), 1 / 3))
    for before, after in zip(colours[0] / 255, turned[0] / 255, strict=True):
        h, s, v = colorsys.rgb_to_hsv(*before)
        assert np.abs(np.array(colorsys.hsv_to_rgb(h + 1 / 3, s, v)) - after).max() < 0.03
    plain = Image.fromarray(noise(channels=1))
    assert operations.hue(plain, 0.3) is plain


def test_strengths_of_the_policies():
    white = Image.fromarray(np.full((331, 331), 200, np.uint8))

    def after(reach, change, strength):
        picture = policies.changed(white, np.array([change]), np.array([strength]), reach)
        return np.asarray(picture)

    moved = after(policies._RAND, 3, 1.0)  # 150 of 331 pixels to the right
    assert not moved[:, :150].any() and moved[:, 150:].all()
    assert not after(policies._WIDE, 4, -0.5)[-16:].any()  # 16 up
    assert after(policies._RAND, 6, 0.3)[0, 0] == 254  # 200 x (1 + 0.27)
    assert after(policies._WIDE, 10, 1.0)[0, 0] == 192  # two bits of 200 are left
    assert after(policies._RAND, 11, 0.3)[0, 0] == 55 == 255 - 200  # from 178.5 on
    for change in range(14):
        for reach in (policies._RAND, policies._WIDE):
            whole = after(reach, change, 0.0)
            assert change in (12, 13) or (whole == 200).all()


def test_draws_are_spread_evenly():
    rng = np.random.default_rng(0)
    drawn = RandAugment(num_ops=3, magnitude=15).draw(rng, 3000)
    assert (
        np.abs(np.bincount(drawn["changes"].ravel(), minlength=14) / 9000 - 1 / 14) < 0.014
    ).all()
    assert set(np.unique(drawn["strengths"])) == {-0.5, 0.5}
    strengths = TrivialAugment().draw(rng, 3000)["strengths"]
    assert len(np.unique(np.abs(strengths))) == 31 and abs(strengths.mean()) < 0.06
    orders = ColorJitter(hue=0.1).draw(rng, 500)["order"]
    assert len({tuple(order) for order in orders.tolist()}) == 24


def test_windows_have_the_shares_and_ratios_asked_for():
    sides = np.tile([60, 90], (2000, 1))
    drawn = RandomResizedCrop(8).draw(np.random.default_rng(0), 2000)
    (top, left, height, width), fits = (x.T for x in windows._windows(sides, drawn))
    assert fits.all() and (top + height <= 60).all() and (left + width <= 90).all()
    assert min(top.min(), left.min()) == 0 and (top + height).max() == 60
    assert (height * width / 5400).min() > 0.07 and (height * width / 5400).max() <= 1.0
    assert (width / height).min() > 0.7 and (width / height).max() < 1.42
    narrow = windows._middle(np.array([[100, 20], [20, 100], [30, 30]]), (0.75, 4 / 3))
    assert narrow.tolist() == [[36, 0, 27, 20], [0, 36, 20, 27], [0, 0, 30, 30]]


def test_ragged_pictures_are_cut_from_their_own_pixels():
    ragged = np.empty(2, object)
    ragged[:] = [noise(40, 30), noise(20, 64)]
    crop = RandomResizedCrop((8, 10))
    drawn = crop.draw(np.random.default_rng(1), 2)
    found = crop.apply({"image": ragged}, drawn)["image"]
    assert found.shape == (2, 8, 10, 3) and found.dtype == np.uint8
    boxes, _ = windows._windows(np.array([[40, 30], [20, 64]]), drawn)
    for picture, cut, (y, x, h, w) in zip(ragged, found, boxes.tolist(), strict=True):
        whole = Image.fromarray(picture[y : y + h, x : x + w])
        np.testing.assert_array_equal(cut, whole.resize((10, 8), Image.Resampling.BILINEAR))
    jittered = ColorJitter(0.5)({"image": ragged}, np.random.default_rng(0))["image"]
    assert [picture.shape for picture in jittered] == [(40, 30, 3), (20, 64, 3)]


def test_evaluation_cuts_the_middle_of_whole_pictures(tmp_path):
    ragged = np.empty(3, object)
    ragged[:] = [noise(40, 30), noise(20, 64), noise(16, 16)]
    crop = CenterCrop((8, 12), resize=16)
    whole = ArrayDataset({"image": ragged, "label": np.arange(3)})
    found = EvalBatches(whole, 2, np.array([1]), (crop,)).batch_at(0)
    # 20 x 64 becomes 16 x 51, of which 8 x 12 are the middle: from round(4) and round(19.5).
    resized = Image.fromarray(ragged[1]).resize((51, 16), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(found["image"], np.asarray(resized)[None, 4:12, 20:32])
    assert found["label"] == [1] and found["weight"] == [1]
    inputs = Inputs.of(whole, (crop,))
    assert inputs.columns["image"].shape == (8, 12, 3) and inputs.kind("image") == "pictures"
    Image.fromarray(ragged[1]).save(tmp_path / "1.png")
    from_file, _ = inputs.read("image", str(tmp_path / "1.png"))
    np.testing.assert_array_equal(from_file, found["image"])
    with pytest.raises(DataError, match="CenterCrop: a picture of 20 x 64; 8 x 70 or more"):
        CenterCrop((8, 70))({"image": ragged[1:2]}, np.random.default_rng(0))
    with pytest.raises(ConfigError, match="Data.evaluate: RandomFlip draws random numbers"):
        Data(Digits(), evaluate=(RandomFlip(),))


def test_erasing_fills_one_window():
    image = np.full((200, 20, 30, 1), 9, np.uint8)
    filled = RandomErasing(0.5, (0.1, 0.2), value=3)({"image": image}, np.random.default_rng(0))
    erased = (filled["image"][..., 0] == 3).sum((1, 2))
    assert 0.35 < (erased > 0).mean() < 0.65  # five standard deviations of 0.035 would be 0.18
    share = erased[erased > 0] / 600
    assert share.min() > 0.08 and share.max() < 0.22
    assert set(np.unique(filled["image"])) == {3, 9}


@pytest.mark.parametrize("pixels", [noise().astype(np.float32), np.zeros((7, 6, 4), np.uint8)])
def test_other_pictures_are_told(pixels):
    with pytest.raises(
        DataError, match=r"RandAugment: pictures are .* uint8 \(height, width, 1 or 3\)"
    ):
        RandAugment()({"image": pixels[None]}, np.random.default_rng(0))


@pytest.mark.slow
def test_operations_equal_torchvision_s():
    pytest.importorskip("torch", reason="needs torch and torchvision")
    torchvision = pytest.importorskip("benchmarks.peer", reason="needs torchvision").torchvision
    functional = torchvision.transforms.functional
    picture = Image.fromarray(noise(31, 40)).resize((57, 40), Image.Resampling.BICUBIC)
    named = {
        "brightness": ("adjust_brightness", (0.3, 1.7)),
        "contrast": ("adjust_contrast", (0.3, 1.7)),
        "saturation": ("adjust_saturation", (0.3, 1.7)),
        "sharpness": ("adjust_sharpness", (0.3, 1.7)),
        "hue": ("adjust_hue", (-0.4, 0.13)),
        "posterize": ("posterize", (2, 7)),
        "solarize": ("solarize", (0, 100.5)),
        "rotate": ("rotate", (-40.0, 133.0)),
        "autocontrast": ("autocontrast", ()),
        "equalize": ("equalize", ()),
    }
    for of in (picture, picture.convert("L")):
        for name, (peer, amounts) in named.items():
            for amount in [(x,) for x in amounts] or [()]:
                ours = np.asarray(getattr(operations, name)(of, *amount))
                np.testing.assert_array_equal(ours, getattr(functional, peer)(of, *amount), name)
        for box in ((3, 5, 20, 31), (0, 0, 40, 57)):
            ours = operations.resized_crop(of, *box, (24, 16))
            peer = functional.resized_crop(of, *box, [24, 16])
            np.testing.assert_array_equal(ours, peer)
        middle = functional.center_crop(functional.resize(of, 33), [31, 20])
        ours = CenterCrop((31, 20), resize=33)._cropped(of)
        np.testing.assert_array_equal(ours, middle)
    _compare_policies(torchvision.transforms.autoaugment, picture)


def _compare_policies(peer, picture):
    """Every change at every strength; its magnitudes are of float32, which moves some roundings."""
    sizes = (31, (picture.height, picture.width))
    spaces = [
        (peer.RandAugment()._augmentation_space(*sizes), policies._RAND),
        (peer.TrivialAugmentWide()._augmentation_space(31), policies._WIDE),
    ]
    nearest = peer.InterpolationMode.NEAREST
    for space, reach in spaces:
        assert len(space) == len(policies._CHANGES)
        for number, (name, (magnitudes, signed)) in enumerate(space.items()):
            differ = []
            for place in range(31):
                magnitude = float(magnitudes[place]) if magnitudes.ndim else 0.0
                for sign in (1, -1) if signed else (1,):
                    theirs = peer._apply_op(picture, name, sign * magnitude, nearest, None)
                    change = np.array([number]), np.array([sign * place / 30])
                    ours = policies.changed(picture, *change, reach)
                    differ.append(np.abs(np.asarray(ours).astype(int) - theirs))
            off = np.array(differ).max((1, 2, 3))
            # A factor moves a value by 1; a whole number of pixels, or a threshold, by one step.
            steps = {"TranslateX": 2, "TranslateY": 2, "Solarize": 8}.get(name, 0)
            assert (off > 1).sum() <= steps, name
