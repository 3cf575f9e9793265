"""Names of convolutional networks in torchvision and timm, for `Start.names`."""

from lsm.interop.names import Torch


def torchvision_resnet() -> Torch:
    """`lsm.models.ResNet`, of 18 to 152 layers: torchvision's names, which are timm's too."""
    return Torch(
        rename=(
            (r"^norm/", "bn1/"),
            (r"^conv/", "conv1/"),
            (r"^stage_(\d)_block_(\d+)/", r"layer\1/\2/"),
            (r"/conv_(\d)/", r"/conv\1/"),
            (r"/norm_(\d)/", r"/bn\1/"),
            (r"/shortcut/", "/downsample/0/"),
            (r"/shortcut_norm/", "/downsample/1/"),
            (r"^head/", "fc/"),
        )
    )


def torchvision_convnext() -> Torch:
    """`lsm.models.ConvNeXt`: torchvision's names."""
    stages = [(rf"^stage_{i}_block_", f"features/{2 * i - 1}/") for i in (1, 2, 3, 4)]
    between = [(rf"^downsample_{i}", f"features/{2 * i - 2}/1") for i in (2, 3, 4)]
    return Torch(
        rename=(
            (r"^stem/", "features/0/0/"),
            (r"^stem_norm/", "features/0/1/"),
            *stages,
            *between,
            (r"/1_norm/", "/0/"),
            (r"/depthwise/", "/block/0/"),
            (r"/norm/", "/block/2/"),
            (r"/up/", "/block/3/"),
            (r"/down/", "/block/5/"),
            (r"^norm/", "classifier/0/"),
            (r"^head/", "classifier/2/"),
        )
    )


def timm_convnext() -> Torch:
    """`lsm.models.ConvNeXt`: timm's names."""
    stages = [(rf"^stage_{i}_block_", f"stages/{i - 1}/blocks/") for i in (1, 2, 3, 4)]
    between = [(rf"^downsample_{i}", f"stages/{i - 1}/downsample/1") for i in (2, 3, 4)]
    return Torch(
        rename=(
            (r"^stem/", "stem/0/"),
            (r"^stem_norm/", "stem/1/"),
            *stages,
            *between,
            (r"/1_norm/", "/0/"),
            (r"/layer_scale$", "/gamma"),
            (r"/depthwise/", "/conv_dw/"),
            (r"/up/", "/mlp/fc1/"),
            (r"/down/", "/mlp/fc2/"),
            (r"^norm/", "head/norm/"),
            (r"^head/(kernel|bias)", r"head/fc/\1"),
        )
    )
