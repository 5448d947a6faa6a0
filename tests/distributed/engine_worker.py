"""Three ranks that step a small network: straight, and begun again from what they had in the middle.

Run as a script; the ranks are forked, for importing torch is what costs here."""

import os
import sys

import torch

STEPS, RANKS = 6, 3


class Network(torch.nn.Module):
    """Layers of odd sizes, so that no bucket is cut into equal parts."""

    def __init__(self):
        super().__init__()
        sizes = (7, 13, 11, 5)
        self.layers = torch.nn.ModuleList(map(torch.nn.Linear, sizes, sizes[1:]))

    def forward(self, data):
        for layer in self.layers[::-1] if len(data[0]) == 5 else self.layers:
            data = torch.tanh(layer(data))
        return data


def make(state, momentum):
    """An engine as after a start, from a checkpoint or from the beginning."""
    from hpc_stres.config.loading import load_config
    from hpc_stres.training.engine import make_engine
    from tests.conftest import TINY

    torch.manual_seed(1)
    network = Network()
    if state is not None:
        network.load_state_dict(state)
    engine = make_engine(network, load_config(TINY).training, torch.device("cpu"), 1)
    if momentum is not None:
        engine.load_momentum(momentum)
    return network, engine


def train(rank, restart_at):
    """All steps; after `restart_at` of them with a new engine. Returns the weights."""
    network, engine = make(None, None)
    for step in range(STEPS):
        if step == restart_at:
            state = {name: value.clone() for name, value in network.state_dict().items()}
            momentum = {name: value.clone() for name, value in engine.momentum().items()}
            network, engine = make(state, momentum)
        data = torch.randn(4, 7, generator=torch.Generator().manual_seed(100 * step + rank))
        loss = engine.forward(True, data).square().sum()
        engine.backward(loss, True)
        engine.step(0.05)
    return network.state_dict()


def run(rank):
    """Exit status 0 where each restarted run has the weights of the straight one, bit for bit."""
    torch.distributed.init_process_group("gloo", rank=rank, world_size=RANKS)
    straight = train(rank, None)
    assert straight["layers.0.weight"].abs().sum() > 0
    for restart_at in (1, 3, 5):
        again = train(rank, restart_at)
        differing = [name for name in straight if not torch.equal(straight[name], again[name])]
        assert not differing, f"restarted after {restart_at} steps: {differing}"
    torch.distributed.destroy_process_group()


def main():
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": sys.argv[1]}
    torch.set_num_threads(1)
    children = []
    for rank in range(RANKS):
        pid = os.fork()
        if not pid:
            run(rank)
            os._exit(0)
        children.append(pid)
    return max(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) != 0 for pid in children)


if __name__ == "__main__":
    sys.exit(main())
