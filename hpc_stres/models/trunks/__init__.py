"""Trunks: frames in, a map of features and a classifier out, under published parameter names.

A trunk gives its `stem`, its `stages` of units, the number of its `features`, the side of the
window that its published form averages over, and its classifier `fc`.
"""

from hpc_stres.models.resnet import Trunk, TrunkOptions
from hpc_stres.models.trunks.inception import InceptionOptions, InceptionV3

AnyTrunk = Trunk | InceptionV3
AnyTrunkOptions = TrunkOptions | InceptionOptions


def make_trunk(planes: int, num_classes: int, options: AnyTrunkOptions) -> AnyTrunk:
    """A stream's trunk from its options."""
    if isinstance(options, InceptionOptions):
        return InceptionV3(planes, num_classes, options)
    return Trunk(planes, num_classes, options)
