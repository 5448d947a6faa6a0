"""Inception-v3 written again from the published figures: straight lines of plain torch functions.

It shares nothing with the package's table; a state dict with torchvision's names is all it reads.
"""

import torch
from torch.nn import functional


class Oracle:
    """The forward pass in evaluation mode, from a state dict."""

    def __init__(self, state):
        self.state = state

    def c(self, x, name, stride=1, pad=0):
        s = self.state
        x = functional.conv2d(x, s[f"{name}.conv.weight"], stride=stride, padding=pad)
        mean, var = s[f"{name}.bn.running_mean"], s[f"{name}.bn.running_var"]
        weight, bias = s[f"{name}.bn.weight"], s[f"{name}.bn.bias"]
        return functional.batch_norm(x, mean, var, weight, bias, False, 0.0, 1e-3).clamp(min=0)

    def average(self, x):
        return functional.avg_pool2d(x, 3, 1, 1)

    def a(self, x, n):
        b1 = self.c(x, f"{n}.branch1x1")
        b5 = self.c(self.c(x, f"{n}.branch5x5_1"), f"{n}.branch5x5_2", pad=2)
        b3 = self.c(self.c(x, f"{n}.branch3x3dbl_1"), f"{n}.branch3x3dbl_2", pad=1)
        b3 = self.c(b3, f"{n}.branch3x3dbl_3", pad=1)
        return torch.cat([b1, b5, b3, self.c(self.average(x), f"{n}.branch_pool")], 1)

    def b(self, x, n):
        b3 = self.c(x, f"{n}.branch3x3", 2)
        d = self.c(self.c(x, f"{n}.branch3x3dbl_1"), f"{n}.branch3x3dbl_2", pad=1)
        d = self.c(d, f"{n}.branch3x3dbl_3", 2)
        return torch.cat([b3, d, functional.max_pool2d(x, 3, 2)], 1)

    def cc(self, x, n):
        b1 = self.c(x, f"{n}.branch1x1")
        b7 = self.c(x, f"{n}.branch7x7_1")
        b7 = self.c(b7, f"{n}.branch7x7_2", pad=(0, 3))
        b7 = self.c(b7, f"{n}.branch7x7_3", pad=(3, 0))
        d = self.c(x, f"{n}.branch7x7dbl_1")
        d = self.c(d, f"{n}.branch7x7dbl_2", pad=(3, 0))
        d = self.c(d, f"{n}.branch7x7dbl_3", pad=(0, 3))
        d = self.c(d, f"{n}.branch7x7dbl_4", pad=(3, 0))
        d = self.c(d, f"{n}.branch7x7dbl_5", pad=(0, 3))
        return torch.cat([b1, b7, d, self.c(self.average(x), f"{n}.branch_pool")], 1)

    def d(self, x, n):
        b3 = self.c(self.c(x, f"{n}.branch3x3_1"), f"{n}.branch3x3_2", 2)
        b7 = self.c(x, f"{n}.branch7x7x3_1")
        b7 = self.c(b7, f"{n}.branch7x7x3_2", pad=(0, 3))
        b7 = self.c(b7, f"{n}.branch7x7x3_3", pad=(3, 0))
        b7 = self.c(b7, f"{n}.branch7x7x3_4", 2)
        return torch.cat([b3, b7, functional.max_pool2d(x, 3, 2)], 1)

    def e(self, x, n):
        b1 = self.c(x, f"{n}.branch1x1")
        b3 = self.c(x, f"{n}.branch3x3_1")
        one = self.c(b3, f"{n}.branch3x3_2a", pad=(0, 1))
        two = self.c(b3, f"{n}.branch3x3_2b", pad=(1, 0))
        d = self.c(self.c(x, f"{n}.branch3x3dbl_1"), f"{n}.branch3x3dbl_2", pad=1)
        three = self.c(d, f"{n}.branch3x3dbl_3a", pad=(0, 1))
        four = self.c(d, f"{n}.branch3x3dbl_3b", pad=(1, 0))
        pooled = self.c(self.average(x), f"{n}.branch_pool")
        return torch.cat([b1, one, two, three, four, pooled], 1)

    def __call__(self, x):
        """The logits, and those of the auxiliary head where the state has one."""
        x = self.c(x, "Conv2d_1a_3x3", 2)
        x = self.c(x, "Conv2d_2a_3x3")
        x = self.c(x, "Conv2d_2b_3x3", pad=1)
        x = functional.max_pool2d(x, 3, 2)
        x = self.c(x, "Conv2d_3b_1x1")
        x = self.c(x, "Conv2d_4a_3x3")
        x = functional.max_pool2d(x, 3, 2)
        for name in ("Mixed_5b", "Mixed_5c", "Mixed_5d"):
            x = self.a(x, name)
        x = self.b(x, "Mixed_6a")
        for name in ("Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"):
            x = self.cc(x, name)
        second = self.auxiliary(x) if "AuxLogits.fc.weight" in self.state else None
        x = self.d(x, "Mixed_7a")
        x = self.e(self.e(x, "Mixed_7b"), "Mixed_7c")
        x = functional.adaptive_avg_pool2d(x, 1).flatten(1)
        return functional.linear(x, self.state["fc.weight"], self.state["fc.bias"]), second

    def auxiliary(self, x):
        x = self.c(functional.avg_pool2d(x, 5, 3), "AuxLogits.conv0")
        x = functional.adaptive_avg_pool2d(self.c(x, "AuxLogits.conv1"), 1).flatten(1)
        return functional.linear(
            x, self.state["AuxLogits.fc.weight"], self.state["AuxLogits.fc.bias"]
        )
