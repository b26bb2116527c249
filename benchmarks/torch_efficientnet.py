"""EfficientNet-Lite in PyTorch with timm's names: what m2ml's is held to and timed against."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional


class Convolution(nn.Conv2d):
    """A convolution with TensorFlow's padding, or PyTorch's."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1, *, same: bool) -> None:
        padding = 0 if same else kernel // 2
        super().__init__(inputs, outputs, kernel, stride, padding, groups=groups, bias=False)
        self.same = same

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.same:
            pads = []
            for size, kernel, stride in zip(x.shape[:1:-1], self.kernel_size, self.stride, strict=True):
                total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
                pads += [total // 2, total - total // 2]
            if any(pads):
                x = functional.pad(x, pads)
        return super().forward(x)


class Block(nn.Module):
    """An inverted residual; without expansion timm calls the last convolution ``conv_pw``."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int, **how: Any) -> None:
        super().__init__()
        eps, same, wide = how["eps"], how["same"], inputs * expansion
        self.expands, self.adds = expansion != 1, stride == 1 and inputs == outputs
        depthwise = Convolution(wide, wide, kernel, stride, wide, same=same)
        if self.expands:
            self.conv_pw, self.bn1 = Convolution(inputs, wide, 1, same=same), nn.BatchNorm2d(wide, eps)
            self.conv_dw, self.bn2 = depthwise, nn.BatchNorm2d(wide, eps)
            self.conv_pwl, self.bn3 = Convolution(wide, outputs, 1, same=same), nn.BatchNorm2d(outputs, eps)
        else:
            self.conv_dw, self.bn1 = depthwise, nn.BatchNorm2d(wide, eps)
            self.conv_pw, self.bn2 = Convolution(wide, outputs, 1, same=same), nn.BatchNorm2d(outputs, eps)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.expands:
            y = functional.relu6(self.bn1(self.conv_pw(x)))
            y = self.bn3(self.conv_pwl(functional.relu6(self.bn2(self.conv_dw(y)))))
        else:
            y = self.bn2(self.conv_pw(functional.relu6(self.bn1(self.conv_dw(x)))))
        return x + y if self.adds else y


class EfficientNetLite(nn.Module):
    """The module of an `m2ml.models.EfficientNetLiteConfig`; ``x [b, channels, height, width] -> [b, classes]``."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        eps, same = config.norm_eps, config.same
        self.conv_stem = Convolution(config.channels, config.stem, 3, 2, same=same)
        self.bn1 = nn.BatchNorm2d(config.stem, eps)
        stages, width = [], config.stem
        for stage in config.stages:
            blocks = []
            for i in range(stage.repeats):
                stride = 1 if i else stage.strides
                blocks.append(Block(width, stage.channels, stage.kernel, stride, stage.expansion, eps=eps, same=same))
                width = stage.channels
            stages.append(nn.Sequential(*blocks))
        self.blocks = nn.Sequential(*stages)
        self.conv_head, self.bn2 = Convolution(width, config.last, 1, same=same), nn.BatchNorm2d(config.last, eps)
        self.classifier = nn.Linear(config.last, config.classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.relu6(self.bn1(self.conv_stem(x)))
        x = functional.relu6(self.bn2(self.conv_head(self.blocks(x))))
        return self.classifier(x.mean((2, 3)))
