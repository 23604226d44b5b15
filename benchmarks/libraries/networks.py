"""Networks of many libraries, small, with random weights, and what they take; a library is imported when it is asked for.

Each line names the classes of its library by strings, so that a library that is not installed, or lacks a class, costs its
own rows alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Sample:
    """One network.

    Attributes:
        library: the name by which its package is imported.
        name: of the network.
        build: builds it.
        inputs: what it takes: positional or keyword arguments.
    """

    library: str
    name: str
    build: Callable[[], nn.Module]
    inputs: Any

    @property
    def key(self) -> str:
        """``library/name``."""
        return f"{self.library}/{self.name}"


def image(side: int = 64, channels: int = 3, batch: int = 1) -> tuple[Tensor]:
    """(N, C, H, W) of noise."""
    return (torch.randn(batch, channels, side, side, generator=torch.Generator().manual_seed(0)),)


def volume(side: int = 32, channels: int = 1) -> tuple[Tensor]:
    """(1, C, D, H, W) of noise."""
    return (torch.randn(1, channels, side, side, side, generator=torch.Generator().manual_seed(0)),)


def signal(length: int = 4000, channels: int | None = 1) -> tuple[Tensor]:
    """(1, C, L) of noise, or (1, L) where there are no channels."""
    shape = (1, length) if channels is None else (1, channels, length)
    return (torch.randn(shape, generator=torch.Generator().manual_seed(0)),)


def _made(path: str, *arguments: Any, **options: Any) -> Callable[[], nn.Module]:
    """Builds what ``module:attribute`` names, of these arguments; attributes of attributes are joined by dots."""

    def build() -> nn.Module:
        module, _, attributes = path.partition(":")
        found: Any = import_module(module)
        for attribute in attributes.split("."):
            found = getattr(found, attribute)
        return found(*arguments, **options)

    return build


def _transformers(model: str, config: str, **options: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        library: Any = import_module("transformers")
        return getattr(library, model)(getattr(library, config)(**options))

    return build


def _table(library: str, rows: dict[str, tuple[Callable[[], nn.Module], Any]]) -> list[Sample]:
    return [Sample(library, name, build, inputs) for name, (build, inputs) in rows.items()]


def samples() -> list[Sample]:
    """All of them, whether their libraries are installed or not."""
    return [
        sample for table in (_OF_TRANSFORMERS, _OF_OTHERS) for name in table for sample in _table(name, table[name])
    ]


def is_installed(library: str) -> bool:
    """Whether a package can be found."""
    return find_spec(library) is not None


_SMALL = {"hidden_sizes": [32, 64, 96, 128], "depths": [1, 1, 2, 1]}
_MIT = {"hidden_sizes": [16, 32, 80, 128], "depths": [1, 1, 1, 1]}
_SPEECH = {
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "conv_dim": [32] * 3,
    "conv_stride": [5, 2, 2],
    "conv_kernel": [10, 3, 2],
    "num_feat_extract_layers": 3,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}
_OF_TRANSFORMERS: dict[str, dict[str, tuple[Callable[[], nn.Module], Any]]] = {
    "transformers": {
        "ResNet": (_transformers("ResNetModel", "ResNetConfig", embedding_size=16, **_SMALL), image()),
        "ResNet basic": (
            _transformers("ResNetModel", "ResNetConfig", embedding_size=16, layer_type="basic", **_SMALL),
            image(),
        ),
        "RegNet": (
            _transformers("RegNetModel", "RegNetConfig", embedding_size=16, groups_width=16, **_SMALL),
            image(),
        ),
        "ConvNext": (_transformers("ConvNextModel", "ConvNextConfig", **_SMALL), image()),
        "ConvNextV2": (_transformers("ConvNextV2Model", "ConvNextV2Config", **_SMALL), image()),
        "MobileNetV1": (_transformers("MobileNetV1Model", "MobileNetV1Config", depth_multiplier=0.25), image()),
        "MobileNetV2": (_transformers("MobileNetV2Model", "MobileNetV2Config", depth_multiplier=0.35), image()),
        "EfficientNet": (
            _transformers(
                "EfficientNetModel", "EfficientNetConfig", width_coefficient=0.5, depth_coefficient=0.5, hidden_dim=640
            ),
            image(),
        ),
        "BiT": (_transformers("BitModel", "BitConfig", embedding_size=32, num_groups=8, **_SMALL), image()),
        "Segformer": (
            _transformers("SegformerForSemanticSegmentation", "SegformerConfig", **_MIT, decoder_hidden_size=32),
            image(),
        ),
        "GLPN": (
            _transformers("GLPNForDepthEstimation", "GLPNConfig", **_MIT, decoder_hidden_size=32),
            image(),
        ),
        "PoolFormer": (_transformers("PoolFormerModel", "PoolFormerConfig", **_MIT), image()),
        "LeViT": (_transformers("LevitModel", "LevitConfig"), image(224)),
        "CvT": (
            _transformers("CvtModel", "CvtConfig", depth=[1, 2, 3], embed_dim=[32, 64, 96], num_heads=[1, 2, 3]),
            image(),
        ),
        "SwiftFormer": (
            _transformers("SwiftFormerModel", "SwiftFormerConfig", depths=[1, 1, 2, 1], embed_dims=[24, 48, 64, 96]),
            image(),
        ),
        "FocalNet": (
            _transformers("FocalNetModel", "FocalNetConfig", image_size=64, embed_dim=24, depths=[1, 1, 2, 1]),
            image(),
        ),
        "MobileViT": (_transformers("MobileViTModel", "MobileViTConfig", image_size=64), image()),
        "MobileViTV2": (
            _transformers("MobileViTV2Model", "MobileViTV2Config", image_size=64, width_multiplier=0.5),
            image(),
        ),
        "ViT": (
            _transformers(
                "ViTModel",
                "ViTConfig",
                image_size=64,
                hidden_size=48,
                num_hidden_layers=2,
                num_attention_heads=4,
                intermediate_size=64,
            ),
            image(),
        ),
        "DPT": (
            _transformers(
                "DPTForDepthEstimation",
                "DPTConfig",
                image_size=64,
                hidden_size=48,
                num_hidden_layers=4,
                num_attention_heads=4,
                intermediate_size=64,
                backbone_out_indices=[0, 1, 2, 3],
                neck_hidden_sizes=[16, 24, 32, 48],
                fusion_hidden_size=24,
            ),
            image(),
        ),
        "UperNet": (
            lambda: _upernet("UperNetForSemanticSegmentation"),
            image(),
        ),
        "MaskFormer": (_transformers("MaskFormerForInstanceSegmentation", "MaskFormerConfig"), image(96)),
        "RT-DETR": (
            _transformers("RTDetrForObjectDetection", "RTDetrConfig", encoder_layers=1, decoder_layers=2),
            image(128),
        ),
        "RT-DETR backbone": (_transformers("RTDetrResNetBackbone", "RTDetrResNetConfig", **_SMALL), image()),
        "HGNetV2": (_transformers("HGNetV2Backbone", "HGNetV2Config"), image()),
        "SuperPoint": (_transformers("SuperPointForKeypointDetection", "SuperPointConfig"), image()),
        "TextNet": (_transformers("TextNetModel", "TextNetConfig"), image()),
        "Swin2SR": (
            _transformers(
                "Swin2SRForImageSuperResolution",
                "Swin2SRConfig",
                image_size=32,
                embed_dim=24,
                depths=[1, 1],
                num_heads=[2, 2],
            ),
            image(32),
        ),
        "VitMatte": (lambda: _matting(64), image(64, 4)),
        "Wav2Vec2": (_transformers("Wav2Vec2Model", "Wav2Vec2Config", **_SPEECH), signal(channels=None)),
        "HuBERT": (_transformers("HubertModel", "HubertConfig", **_SPEECH), signal(channels=None)),
        "SEW": (_transformers("SEWModel", "SEWConfig", **_SPEECH), signal(channels=None)),
        "EnCodec": (
            _transformers("EncodecModel", "EncodecConfig", num_filters=8, codebook_dim=32, hidden_size=32),
            signal(4000),
        ),
        "DAC": (_transformers("DacModel", "DacConfig", encoder_hidden_size=8, decoder_hidden_size=64), signal(4096)),
        "HiFi-GAN": (
            _transformers("SpeechT5HifiGan", "SpeechT5HifiGanConfig", upsample_initial_channel=32),
            (torch.randn(1, 20, 80),),
        ),
        "Whisper": (
            _transformers(
                "WhisperForAudioClassification",
                "WhisperConfig",
                d_model=48,
                encoder_layers=2,
                encoder_attention_heads=4,
                encoder_ffn_dim=64,
                max_source_positions=100,
            ),
            (torch.randn(1, 80, 200),),
        ),
    }
}


def _upernet(name: str) -> nn.Module:
    library: Any = import_module("transformers")
    backbone = library.ConvNextConfig(**_SMALL, out_features=["stage1", "stage2", "stage3", "stage4"])
    return getattr(library, name)(
        library.UperNetConfig(backbone_config=backbone, hidden_size=32, auxiliary_channels=16)
    )


def _matting(side: int) -> nn.Module:
    library: Any = import_module("transformers")
    backbone = library.VitDetConfig(
        num_channels=4,
        image_size=side,
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        out_features=["stage2"],
    )
    sizes = {"convstream_hidden_sizes": [48, 96, 192], "fusion_hidden_sizes": [64, 48, 32, 16]}
    return library.VitMatteForImageMatting(library.VitMatteConfig(backbone_config=backbone, hidden_size=48, **sizes))


def _yolo(name: str) -> Callable[[], nn.Module]:
    return _made(
        "ultralytics.nn.tasks:" + ("SegmentationModel" if "seg" in name else "DetectionModel"),
        f"{name}.yaml",
        verbose=False,
    )


def _smp(model: str, encoder: str = "resnet18") -> Callable[[], nn.Module]:
    return _made(f"segmentation_models_pytorch:{model}", encoder, encoder_weights=None, classes=3)


def _rtdetr() -> nn.Module:
    return import_module("ultralytics.nn.tasks").RTDETRDetectionModel("rtdetr-resnet50.yaml", verbose=False)


def _lora() -> nn.Module:
    peft: Any = import_module("peft")
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3))
    return peft.get_peft_model(network, peft.LoraConfig(target_modules=["2", "3"], r=2, init_lora_weights=False))


_CELLS = {"spatial_dims": 3, "in_channels": 1, "out_channels": 2}
_UP = {"upscale": 2}
_OF_OTHERS: dict[str, dict[str, tuple[Callable[[], nn.Module], Any]]] = {
    "segmentation_models_pytorch": {
        **{
            model: (_smp(model), image())
            for model in (
                "Unet",
                "UnetPlusPlus",
                "MAnet",
                "Linknet",
                "FPN",
                "PSPNet",
                "DeepLabV3",
                "DeepLabV3Plus",
                "UPerNet",
            )
        },
        "PAN": (_smp("PAN"), image(128)),
        "Unet efficientnet-b0": (_smp("Unet", "efficientnet-b0"), image()),
        "Unet mobilenet_v2": (_smp("Unet", "mobilenet_v2"), image()),
        "Unet se_resnet50": (_smp("Unet", "se_resnet50"), image()),
        "Unet mit_b0": (_smp("Unet", "mit_b0"), image()),
        "Unet densenet121": (_smp("Unet", "densenet121"), image()),
        "Segformer mit_b0": (_smp("Segformer", "mit_b0"), image()),
    },
    "monai": {
        "UNet": (
            _made("monai.networks.nets:UNet", **_CELLS, channels=(8, 16, 32), strides=(2, 2), num_res_units=2),
            volume(),
        ),
        "BasicUNet": (_made("monai.networks.nets:BasicUNet", **_CELLS, features=(8, 8, 16, 16, 32, 8)), volume()),
        "AttentionUnet": (
            _made("monai.networks.nets:AttentionUnet", **_CELLS, channels=(8, 16, 32), strides=(2, 2)),
            volume(),
        ),
        "DynUNet": (
            _made(
                "monai.networks.nets:DynUNet",
                **_CELLS,
                kernel_size=[3, 3, 3],
                strides=[1, 2, 2],
                upsample_kernel_size=[2, 2],
                filters=[8, 16, 32],
                norm_name="batch",
            ),
            volume(),
        ),
        "SegResNet": (_made("monai.networks.nets:SegResNet", **_CELLS, init_filters=8), volume()),
        "VNet": (_made("monai.networks.nets:VNet", **_CELLS), volume()),
        "UNETR": (
            _made(
                "monai.networks.nets:UNETR", 1, 2, (32, 32, 32), feature_size=8, hidden_size=48, mlp_dim=64, num_heads=4
            ),
            volume(),
        ),
        "HighResNet": (_made("monai.networks.nets:HighResNet", **_CELLS), volume(16)),
        "DenseNet121 3-D": (_made("monai.networks.nets:DenseNet121", **_CELLS), volume()),
        "ResNet 3-D": (_made("monai.networks.nets:resnet18", spatial_dims=3, n_input_channels=1), volume()),
        "SEResNet50": (_made("monai.networks.nets:SEResNet50", spatial_dims=2, in_channels=3), image()),
        "EfficientNetBN": (_made("monai.networks.nets:EfficientNetBN", "efficientnet-b0", pretrained=False), image()),
        "FlexibleUNet": (_made("monai.networks.nets:FlexibleUNet", 3, 2, "efficientnet-b0"), image()),
        "AutoEncoder": (
            _made(
                "monai.networks.nets:AutoEncoder",
                spatial_dims=2,
                in_channels=3,
                out_channels=3,
                channels=(8, 16),
                strides=(2, 2),
            ),
            image(),
        ),
        "SwinUNETR": (_made("monai.networks.nets:SwinUNETR", 1, 2, depths=(1, 1, 1, 1), feature_size=12), volume(64)),
    },
    "ultralytics": {
        **{
            name: (_yolo(name), image(128))
            for name in (
                "yolov3-tiny",
                "yolov5n",
                "yolov6n",
                "yolov8n",
                "yolov8n-seg",
                "yolov9t",
                "yolov10n",
                "yolo11n",
                "yolo11n-seg",
                "yolo12n",
                "yolo26n",
            )
        },
        "rtdetr-resnet50": (_rtdetr, image(128)),
        "YOLO wrapper": (lambda: import_module("ultralytics").YOLO("yolov8n.yaml").model, image(128)),
    },
    "spandrel": {
        "SPAN": (_made("spandrel.architectures.SPAN:SPAN", num_in_ch=3, num_out_ch=3, feature_channels=16), image(32)),
        "ESRGAN": (_made("spandrel.architectures.ESRGAN:ESRGAN", num_filters=16, num_blocks=2), image(32)),
        "Compact": (_made("spandrel.architectures.Compact:Compact", num_feat=16, num_conv=4), image(32)),
        "SwinIR": (
            _made(
                "spandrel.architectures.SwinIR:SwinIR",
                img_size=32,
                embed_dim=24,
                depths=[2],
                num_heads=[2],
                window_size=8,
                **_UP,
            ),
            image(32),
        ),
        "RCAN": (_made("spandrel.architectures.RCAN:RCAN", n_resgroups=2, n_resblocks=2, n_feats=16), image(32)),
        "DnCNN": (_made("spandrel.architectures.DnCNN:DnCNN"), image(32, 1)),
        "NAFNet": (_made("spandrel.architectures.NAFNet:NAFNet", width=16), image(32)),
        "OmniSR": (_made("spandrel.architectures.OmniSR:OmniSR", num_feat=16), image(32)),
        "RealCUGAN": (_made("spandrel.architectures.RealCUGAN:UpCunet2x"), image(32)),
        "CRAFT": (_made("spandrel.architectures.CRAFT:CRAFT"), image(32)),
    },
    "efficientnet_pytorch": {
        name: (_made("efficientnet_pytorch:EfficientNet.from_name", name), image())
        for name in ("efficientnet-b0", "efficientnet-b2")
    },
    "efficientnet_lite_pytorch": {
        "efficientnet-lite0": (_made("efficientnet_lite_pytorch:EfficientNet.from_name", "efficientnet-lite0"), image())
    },
    "geffnet": {
        name: (_made(f"geffnet:{name}", pretrained=False), image())
        for name in (
            "mobilenetv3_large_100",
            "tf_efficientnet_b0",
            "mixnet_s",
            "spnasnet_100",
            "tf_mixnet_s",
            "efficientnet_lite0",
            "mnasnet_small",
        )
    },
    "resnest": {"resnest50": (_made("resnest.torch:resnest50"), image())},
    "diffusers": {
        "UNet2D": (
            _made(
                "diffusers:UNet2DModel",
                sample_size=16,
                block_out_channels=(32, 64),
                down_block_types=("DownBlock2D", "AttnDownBlock2D"),
                up_block_types=("AttnUpBlock2D", "UpBlock2D"),
                layers_per_block=1,
            ),
            (*image(16), torch.tensor([3])),
        ),
        "AutoencoderKL": (
            _made(
                "diffusers:AutoencoderKL",
                block_out_channels=(32, 32),
                down_block_types=("DownEncoderBlock2D",) * 2,
                up_block_types=("UpDecoderBlock2D",) * 2,
            ),
            image(32),
        ),
        "VQModel": (
            _made(
                "diffusers:VQModel",
                block_out_channels=(32, 32),
                down_block_types=("DownEncoderBlock2D",) * 2,
                up_block_types=("UpDecoderBlock2D",) * 2,
            ),
            image(32),
        ),
        "AutoencoderTiny": (
            _made(
                "diffusers:AutoencoderTiny",
                encoder_block_out_channels=(16, 16),
                decoder_block_out_channels=(16, 16),
                num_encoder_blocks=(1, 1),
                num_decoder_blocks=(1, 1),
            ),
            image(32),
        ),
        "AutoencoderKLWan": (
            _made(
                "diffusers:AutoencoderKLWan",
                base_dim=8,
                z_dim=4,
                dim_mult=[1, 1, 1, 1],
                latents_mean=[0.0] * 4,
                latents_std=[1.0] * 4,
            ),
            (torch.randn(1, 3, 5, 32, 32),),
        ),
        "AutoencoderKLCogVideoX": (
            _made(
                "diffusers:AutoencoderKLCogVideoX",
                block_out_channels=(8, 8, 8, 8),
                norm_num_groups=2,
                layers_per_block=1,
            ),
            (torch.randn(1, 3, 5, 32, 32),),
        ),
    },
    "peft": {"LoRA of convolutions": (_lora, image(32))},
    "pytorchcv": {
        name: (_made("pytorchcv.model_provider:get_model", name, pretrained=False), image(224))
        for name in (
            "resnet10",
            "shufflenetv2_wd2",
            "mobilenet_wd4",
            "squeezenet_v1_1",
            "hrnet_w18_small_v1",
            "igcv3_wd4",
            "diaresnet10",
            "seresnet10",
            "preresnet10",
            "densenet121",
            "dla34",
            "menet108_8x1_g3",
            "proxylessnas_cpu",
            "ghostnet",
            "peleenet",
        )
    },
    "pretrainedmodels": {
        name: (_made(f"pretrainedmodels:{name}", num_classes=1000, pretrained=None), image(224))
        for name in (
            "se_resnet50",
            "xception",
            "dpn68",
            "bninception",
            "resnext101_32x4d",
            "nasnetamobile",
            "fbresnet152",
        )
    },
    "encodec": {
        "EncodecModel": (
            lambda: import_module("encodec").EncodecModel.encodec_model_24khz(pretrained=False),
            signal(4800),
        )
    },
    "pytorchvideo": {
        "x3d": (
            _made("pytorchvideo.models.x3d:create_x3d", input_clip_length=4, input_crop_size=64, depth_factor=1.0),
            (torch.randn(1, 3, 4, 64, 64),),
        ),
        "resnet": (
            _made("pytorchvideo.models.resnet:create_resnet", model_depth=50, head_pool_kernel_size=(4, 2, 2)),
            (torch.randn(1, 3, 4, 64, 64),),
        ),
    },
    "torchsr": {
        "edsr_baseline": (_made("torchsr.models:edsr_baseline", scale=2, pretrained=False), image(32)),
        "rdn": (_made("torchsr.models:rdn_b", scale=2, pretrained=False), image(32)),
        "ninasr_b0": (_made("torchsr.models:ninasr_b0", scale=2, pretrained=False), image(32)),
    },
    "kornia": {
        "DISK": (_made("kornia.feature:DISK"), image()),
        "HardNet": (_made("kornia.feature:HardNet", pretrained=False), image(32, 1, 2)),
        "SOSNet": (_made("kornia.feature:SOSNet", pretrained=False), image(32, 1, 2)),
        "KeyNet": (_made("kornia.feature:KeyNet", pretrained=False), image(64, 1)),
    },
    "open_clip": {
        "RN50 visual": (lambda: import_module("open_clip").create_model("RN50").visual, image(224)),
    },
    "torchxrayvision": {
        "DenseNet": (_made("torchxrayvision.models:DenseNet", weights=None), image(64, 1)),
    },
    "vit_pytorch": {
        "CCT": (_made("vit_pytorch.cct:cct_2", img_size=64, num_classes=5), image()),
        "CvT": (_made("vit_pytorch.cvt:CvT", num_classes=5, s1_emb_dim=24, s2_emb_dim=32, s3_emb_dim=48), image()),
        "MaxViT": (
            _made(
                "vit_pytorch.max_vit:MaxViT",
                num_classes=5,
                dim=24,
                dim_conv_stem=16,
                depth=(1, 1),
                window_size=4,
                dim_head=8,
            ),
            image(),
        ),
        "MobileViT": (
            _made(
                "vit_pytorch.mobile_vit:MobileViT",
                (64, 64),
                [32, 40, 48],
                [8, 8, 16, 16, 24, 24, 32, 32, 40, 40, 48],
                5,
            ),
            image(),
        ),
    },
    "torchaudio": {
        "Wav2Letter": (_made("torchaudio.models:Wav2Letter", num_features=1), signal(8000)),
        "WaveRNN": (
            _made(
                "torchaudio.models:WaveRNN",
                upsample_scales=[2, 2, 2],
                n_classes=16,
                hop_length=8,
                n_res_block=2,
                n_rnn=16,
                n_fc=16,
                n_hidden=16,
                n_output=16,
            ),
            (torch.randn(1, 1, 96), torch.randn(1, 1, 128, 16)),
        ),
        "ConvTasNet": (
            _made(
                "torchaudio.models:ConvTasNet",
                enc_num_feats=32,
                msk_num_feats=16,
                msk_num_hidden_feats=32,
                msk_num_layers=2,
                msk_num_stacks=1,
            ),
            signal(4000),
        ),
        "HDemucs": (_made("torchaudio.models:hdemucs_low", sources=["a", "b"]), signal(16384, 2)),
    },
}
