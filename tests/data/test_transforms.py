import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from lsm.data import (
    AlternatingFlip,
    ArrayDataset,
    ColorJitter,
    Cutout,
    Poisson,
    RandAugment,
    RandomCrop,
    RandomErasing,
    RandomFlip,
    RandomResizedCrop,
    RandomRotate,
    RandomScale,
    Shuffled,
    TrainBatches,
    TrivialAugment,
)
from lsm.data.sampling import coins
from lsm.errors import ConfigError, DataError

ALL = [
    RandomFlip(),
    AlternatingFlip(),
    RandomCrop(2),
    RandomCrop(2, reflect=True),
    Cutout(3),
    RandomErasing(1.0, (0.1, 0.5)),
    RandomRotate(30),
    RandomScale(0.5, 2.0),
]
OF_BYTES = [
    ColorJitter(0.5, 0.5, 0.5, 0.2),
    RandAugment(),
    RandomResizedCrop((6, 5), (0.2, 0.8)),
    TrivialAugment(),
]


def pictures(examples: int, height: int = 6, width: int = 5, channels: int = 3) -> np.ndarray:
    shape = (examples, height, width, channels)
    return np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)


@pytest.mark.parametrize("transform", [*ALL, *OF_BYTES], ids=repr)
def test_pure_uint8_and_other_columns_untouched(transform):
    batch = {"image": pictures(32), "label": np.arange(32, dtype=np.int32)}
    batch["image"].flags.writeable = False
    first = transform(batch, np.random.default_rng(1))
    again = transform(batch, np.random.default_rng(1))
    other = transform(batch, np.random.default_rng(2))
    assert first["image"].dtype == np.uint8 and first["image"].shape == batch["image"].shape
    np.testing.assert_array_equal(first["image"], again["image"])
    assert not np.array_equal(first["image"], other["image"])
    assert first["label"] is batch["label"]


@pytest.mark.parametrize("transform", [*ALL, *OF_BYTES], ids=repr)
def test_rows_of_a_draw_are_rows_of_the_batch(transform):
    image = pictures(8)
    drawn = transform.draw(np.random.default_rng(3), 8)
    whole = transform.apply({"image": image}, drawn)["image"]
    half = transform.apply({"image": image[4:]}, {k: v[4:] for k, v in drawn.items()})["image"]
    np.testing.assert_array_equal(whole[4:], half)


@pytest.mark.parametrize("transform", [*ALL, RandAugment(), RandomResizedCrop(4)], ids=repr)
def test_data_without_pictures_is_told(transform):
    line = rf"^{type(transform).__name__}: the data has no column 'image'; it has x\.$"
    with pytest.raises(DataError, match=line):
        transform({"x": np.zeros((2, 3))}, np.random.default_rng(0))


@pytest.mark.parametrize("transform", ALL, ids=repr)
def test_pictures_of_another_form_are_told(transform):
    ragged = np.empty(2, object)
    ragged[:] = [pictures(1)[0], pictures(1, 7)[0]]
    for image, form in (
        (pictures(2)[..., 0], r"uint8 \(2, 6, 5\)"),
        (ragged, r"object \(2,\)"),
    ):
        line = rf"^{type(transform).__name__}: pictures are {form}; \(B, H, W, C\) is needed\.$"
        with pytest.raises(DataError, match=line):
            transform({"image": image}, np.random.default_rng(0))


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_flip_mirrors_the_drawn_ones(channels):
    image = pictures(4, channels=channels)
    mirror = np.array([True, False, True, False])
    out = RandomFlip().apply({"image": image}, {"mirror": mirror})["image"]
    np.testing.assert_array_equal(out[0], image[0, :, ::-1])
    np.testing.assert_array_equal(out[1], image[1])
    np.testing.assert_array_equal(out[2], image[2, :, ::-1])


def test_flip_probability():
    mirror = RandomFlip(0.2).draw(np.random.default_rng(0), 10_000)["mirror"]
    assert abs(mirror.mean() - 0.2) < 0.02  # five standard deviations of 0.004


def test_alternating_flip_shows_both_forms_in_any_two_epochs():
    n, size = 23, 8
    image = np.tile(np.array([0, 1], np.uint8).reshape(1, 1, 2, 1), (n, 1, 1, 1))
    numbered = ArrayDataset({"image": image, "number": np.arange(n)})
    whole = TrainBatches(numbered, size, 3, (RandomCrop(1), AlternatingFlip()))
    plain = TrainBatches(numbered, size, 3, (AlternatingFlip(),))
    met: dict[int, list[bool]] = {}
    for step in range(6 * n // size):  # most batches end one epoch and begin the next
        batch = plain.batch_at(step)
        for number, picture in zip(batch["number"].tolist(), batch["image"], strict=True):
            met.setdefault(number, []).append(bool(picture[0, 0, 0]))
        rows = np.array([1, 6])
        for part, of in ((plain, batch), (whole, whole.batch_at(step))):
            share = dataclasses.replace(part, rows=rows).batch_at(step)
            np.testing.assert_array_equal(share["image"], of["image"][rows])
    first = coins(3, np.arange(n))
    for number, mirrored in met.items():
        assert mirrored == [bool(first[number]) ^ epoch % 2 for epoch in range(len(mirrored))]
    assert {len(mirrored) for mirrored in met.values()} == {5, 6}


def test_coins_are_fair_and_never_change():
    tossed = np.array([coins(seed, np.arange(2**14)) for seed in range(3)])
    # Five standard deviations of 0.004: of heads, and of agreement with the neighbour and the seed.
    for mean in (*tossed.mean(1), *(tossed[:, 1:] == tossed[:, :-1]).mean(1)):
        assert abs(mean - 0.5) < 0.02
    assert abs((tossed[0] == tossed[1]).mean() - 0.5) < 0.02
    recorded = np.packbits(coins(7, np.arange(10**9, 10**9 + 32))).tolist()
    assert recorded == [199, 102, 8, 56]


def test_epochs_of_rows():
    assert Shuffled().epochs(2, 10, 7).tolist() == [1, 1, 1, 1, 1, 1, 2]  # places 14 to 20
    assert Poisson(4.0).epochs(5, 10, 3).tolist() == [2, 2, 2]  # 20 examples drawn before


@pytest.mark.parametrize("reflect", [False, True])
def test_crop_is_a_window_of_the_padded_picture(reflect):
    image = pictures(9)
    corner = np.array([[y, x] for y in (0, 2, 4) for x in (0, 3, 4)])
    out = RandomCrop(2, reflect).apply({"image": image}, {"corner": corner})["image"]
    mode = "reflect" if reflect else "constant"
    padded = np.pad(image, ((0, 0), (2, 2), (2, 2), (0, 0)), mode=mode)
    for i, (y, x) in enumerate(corner):
        np.testing.assert_array_equal(out[i], padded[i, y : y + 6, x : x + 5])


def test_crop_draws_every_corner():
    corner = RandomCrop(1).draw(np.random.default_rng(0), 1000)["corner"]
    assert {tuple(c) for c in corner.tolist()} == {(y, x) for y in range(3) for x in range(3)}


def test_cutout_fills_a_square_that_may_reach_outside():
    image = np.full((3, 6, 6, 1), 9, np.uint8)
    centre = np.array([[0.5, 0.5], [0.0, 0.0], [0.99, 0.5]])  # pixels (3, 3), (0, 0), (5, 3)
    out = Cutout(4, value=7).apply({"image": image}, {"centre": centre})["image"]
    expected = np.full((3, 6, 6, 1), 9, np.uint8)
    expected[0, 1:5, 1:5] = expected[1, :2, :2] = expected[2, 3:, 1:5] = 7
    np.testing.assert_array_equal(out, expected)


DTYPES = [
    np.uint8,
    np.int8,
    np.uint16,
    np.int16,
    np.int32,
    np.float16,
    np.float32,
    np.float64,
    bool,
]
LAYOUTS = {
    "rows": lambda x: x,
    "columns": np.asfortranarray,
    "planes": lambda x: np.ascontiguousarray(x.transpose(0, 3, 1, 2)).transpose(0, 2, 3, 1),
    "turned": lambda x: np.ascontiguousarray(x.swapaxes(1, 2)).swapaxes(1, 2),
    "mirrored": lambda x: np.ascontiguousarray(x[:, ::-1, ::-1])[:, ::-1, ::-1],
    "every second": lambda x: np.repeat(x, 2, axis=0)[::2],
}


@given(
    st.sampled_from(ALL),
    st.sampled_from(DTYPES),
    st.tuples(st.integers(0, 3), st.integers(3, 7), st.integers(3, 7), st.integers(1, 4)),
    st.integers(0, 1000),
)
def test_any_dtype_and_layout(transform, dtype, shape, seed):
    rng = np.random.default_rng(seed)
    real = np.dtype(dtype).kind == "f"
    high = 2 if dtype is bool else 127
    image = (rng.random(shape) if real else rng.integers(0, high, shape)).astype(dtype)
    drawn = transform.draw(rng, len(image))
    out = transform.apply({"image": image}, drawn)["image"]
    assert out.dtype == dtype and out.shape == shape
    for layout in LAYOUTS.values():
        there = layout(image)
        before = there.copy()
        np.testing.assert_array_equal(transform.apply({"image": there}, drawn)["image"], out)
        np.testing.assert_array_equal(there, before)
    # Of bytes: the same picture, which the tests below know.
    if not real and dtype is not bool:
        as_bytes = transform.apply({"image": image.astype(np.uint8)}, drawn)["image"]
        np.testing.assert_array_equal(out, as_bytes)
    assert not out.size or (out.min() >= 0 and out.max() <= image.max())


@given(st.sampled_from([np.float16, np.float32, np.float64]), st.integers(0, 1000))
def test_pictures_of_floats_are_scaled_ones_of_bytes(dtype, seed):
    rng, image = np.random.default_rng(seed), pictures(3)
    for transform in (RandomRotate(180), RandomScale(0.5, 2.0)):
        drawn = transform.draw(rng, 3)
        of_bytes = transform.apply({"image": image}, drawn)["image"].astype(float)
        of_floats = transform.apply({"image": (image / 255).astype(dtype)}, drawn)["image"]
        # Half a unit of rounding to bytes, and float16's own.
        assert np.abs(of_floats.astype(float) * 255 - of_bytes).max() < 0.75
        assert len(np.unique(of_floats)) > 20


def test_cutout_fills_only_with_what_the_pictures_can_hold():
    grey = np.ones((1, 4, 4, 1), np.float32)
    filled = Cutout(4, value=0.5)({"image": grey}, np.random.default_rng(0))["image"]
    assert set(np.unique(filled)) == {0.5, 1.0}
    for value, dtype in ((0.5, np.uint8), (200, np.int8), (2, bool)):
        with pytest.raises(
            ConfigError,
            match=f"Cutout.value: {value} cannot be held by pictures of {np.dtype(dtype)}",
        ):
            Cutout(4, value)({"image": grey.astype(dtype)}, np.random.default_rng(0))


def test_quarter_turns_are_exact():
    image = pictures(3, 5, 5)
    angle = np.deg2rad([90, -90, 180])
    out = RandomRotate(180).apply({"image": image}, {"angle": angle})["image"]
    for turned, picture, quarters in zip(out, image, (1, 3, 2), strict=True):
        options = [np.rot90(picture, quarters), np.rot90(picture, -quarters)]
        assert any(np.array_equal(turned, option) for option in options)


@pytest.mark.parametrize("shape", [(9, 9, 1), (8, 11, 3)])
def test_rotate_and_scale_agree_with_scipy(shape):
    image = pictures(1, *shape)
    centre = (np.array(shape[:2]) - 1) / 2

    def scipy_warp(matrix):
        return np.stack(
            [
                ndimage.affine_transform(
                    np.pad(image[0, :, :, c].astype(float), 1),
                    matrix,
                    offset=centre + 1 - matrix @ centre,
                    output_shape=shape[:2],
                    order=1,
                )
                for c in range(shape[2])
            ],
            axis=-1,
        )

    a = 0.4
    rotated = RandomRotate(40).apply({"image": image}, {"angle": np.array([a])})["image"][0]
    turn = np.array([[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]])
    assert np.abs(rotated - scipy_warp(turn)).max() < 0.51  # rounding to a whole number
    scaled = RandomScale(0.5, 2).apply({"image": image}, {"factor": np.array([1.3])})["image"][0]
    assert np.abs(scaled - scipy_warp(np.eye(2) / 1.3)).max() < 0.51


def test_scale_one_changes_nothing():
    image = pictures(2)
    out = RandomScale(1, 1)({"image": image}, np.random.default_rng(0))["image"]
    np.testing.assert_array_equal(out, image)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: RandomFlip(1.5), "RandomFlip.probability: 1.5"),
        (lambda: RandomCrop(0), "RandomCrop.padding: 0"),
        (lambda: Cutout(0), "Cutout.size: 0"),
        (lambda: Cutout(4, 256), "Cutout.value: 256"),
        (lambda: RandomRotate(0), "RandomRotate.degrees: 0"),
        (lambda: RandomScale(1.2, 1.1), "low 1.2 and high 1.1"),
        (lambda: ColorJitter(hue=0.6), r"ColorJitter.hue: 0.6 given; .*\[0, 0.5\]"),
        (lambda: RandAugment(magnitude=31), r"RandAugment.magnitude: 31 given; .*\[0, 30\]"),
        (lambda: TrivialAugment(bins=1), "TrivialAugment.bins: 1"),
        (lambda: RandomResizedCrop(None), "RandomResizedCrop.size: None"),
        (lambda: RandomResizedCrop(8, scale=(0.5, 0.2)), "RandomResizedCrop.scale: "),
        (lambda: RandomErasing(ratio=(0.0, 1.0)), "RandomErasing.ratio: "),
        (lambda: RandomErasing(ratio=0.3), r"RandomErasing.ratio: 0.3 given; allowed: a pair"),
        (lambda: RandomResizedCrop(8, scale=(0.5, 1.1)), "RandomResizedCrop.scale: .* <= 1"),
        (lambda: RandomResizedCrop(224.0), "RandomResizedCrop.size: 224.0 is not a size"),
    ],
)
def test_settings_out_of_range_are_errors(make, said):
    with pytest.raises(ConfigError, match=said):
        make()


def test_padding_that_cannot_mirror_is_an_error():
    with pytest.raises(ConfigError, match="6 cannot mirror pictures of 6 x 5"):
        RandomCrop(6, reflect=True)({"image": pictures(1)}, np.random.default_rng(0))
