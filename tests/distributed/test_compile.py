"""What torch.compile makes of the networks; slow, because inductor builds C++."""

import re

import pytest
import torch

from hpc_stres.models import SubBatchNorm2d, build_model

# Its command lines do not quote torch's own folder.
pytestmark = pytest.mark.skipif(
    " " in torch.__file__, reason="torch's inductor cannot build under a path with a space"
)


def test_inductor_calls_the_fused_operator_and_leaves_the_relu_to_it():
    """On channels-last tensors, forwards and backwards, with the same values."""
    from torch._inductor.utils import run_and_get_code

    layers = [SubBatchNorm2d(6, 4, relu=True) for _ in range(2)]
    compiled = torch.compile(layers[1], fullgraph=True)
    x = torch.randn(8, 6, 4, 3).to(memory_format=torch.channels_last).requires_grad_()
    expected = layers[0](x)
    found, codes = run_and_get_code(compiled, x)
    torch.testing.assert_close(found, expected)
    gradients = [torch.autograd.grad(y.square().sum(), x)[0] for y in (found, expected)]
    torch.testing.assert_close(*gradients)
    assert "hpc_stres.sub_batch_norm.default" in codes[0]
    assert not re.findall(r"cpp_fused_\w*relu\w*", codes[0])


def test_inductor_fuses_the_relu_into_plain_normalisation():
    """The compiled code has no kernel whose only work is the ReLU."""
    from torch._inductor.utils import run_and_get_code

    own = SubBatchNorm2d(6, 4)
    x = torch.randn(8, 6, 4, 3)
    expected = own(x).relu()
    compiled = torch.compile(lambda value: own(value).relu(), fullgraph=True)
    with torch.no_grad():
        found, (code,) = run_and_get_code(compiled, x)
    torch.testing.assert_close(found, expected)
    kernels = set(re.findall(r"cpp_fused_\w+", code))
    with_relu = [name for name in kernels if "relu" in name]
    assert with_relu, kernels
    assert all("mul" in name or "add" in name for name in with_relu), kernels


def test_a_network_compiles_whole_and_trains_the_same():
    torch.manual_seed(0)
    model = build_model("st_resnet", 4, stages=(2,), width=4, norm_group=2)
    inputs = torch.randn(4, 3, 3, 16, 16), torch.randn(4, 3, 20, 16, 16)
    gradients = []
    for run in (model, torch.compile(model, fullgraph=True)):
        model.zero_grad()
        output = run(*inputs)
        (output.appearance.sum() + output.motion.square().sum()).backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    for one, two in zip(*gradients, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-4)
