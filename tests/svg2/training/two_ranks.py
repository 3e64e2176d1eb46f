"""What two processes do for the tests of this folder, all in one start of torchrun.

    python -m tests.svg2.training.two_ranks FOLDER PORT...

`FOLDER/commands.json` holds command lines of `svg2.training`. Each gets a port of its own for its
process group. Every process writes `averages.RANK.json`, and `exits.RANK.json` with the message
with which each command ended, or None.
"""

import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from svg2.runs.distributed import process_group, processes
from svg2.training.__main__ import main
from svg2.training.pipeline import DEFAULTS
from svg2.training.ranks import average_gradients, shared_clock

SIZE = 96


def averages() -> dict[str, object]:
    """Gradient and clock of a process whose own ones differ by its rank."""
    layer = torch.nn.Linear(2, 1, bias=False)
    layer(torch.full((1, 2), 2.0 * dist.get_rank())).sum().backward()
    average_gradients(layer)
    assert layer.weight.grad is not None
    clock = shared_clock(float(dist.get_rank()), "cpu")
    return {"gradient": layer.weight.grad.tolist(), "clock": clock}


def ending(command: list[str]) -> str | None:
    """The message with which a command ends early."""
    try:
        main(command)
    except SystemExit as end:
        return str(end)
    return None


if __name__ == "__main__":
    root, ports = Path(sys.argv[1]), sys.argv[2:]
    torch.set_num_threads(1)
    DEFAULTS |= {"height": SIZE, "width": SIZE}
    rank = processes().rank
    with process_group("cpu"):
        (root / f"averages.{rank}.json").write_text(json.dumps(averages()))
    exits = []
    for command, port in zip(json.loads((root / "commands.json").read_text()), ports, strict=True):
        # The store of the launcher keeps the addresses of the group before.
        os.environ |= {"TORCHELASTIC_USE_AGENT_STORE": "False", "MASTER_PORT": port}
        exits.append(ending(command))
    (root / f"exits.{rank}.json").write_text(json.dumps(exits))
