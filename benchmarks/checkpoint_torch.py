"""PyTorch's saves and restores for `checkpoint`: a worker, run as a script in any interpreter.

    python benchmarks/checkpoint_torch.py '[[768, 768], [768]]'

It makes float32 tensors of these shapes, prints how many bytes they are, then reads lines such as
"save torch.save FOLDER" and answers each with seconds: of a save, those that a training loop waits,
and those until all is on the disk. It needs PyTorch and NumPy alone.
"""

import json
import os
import sys
import time
import warnings

import numpy as np
import torch
import torch.distributed.checkpoint as dcp


class TorchSave:
    """`torch.save` into one file, which is then synced; and `torch.load`."""

    def save(self, state, folder):
        """Returns the seconds that the loop waits, and all."""
        start = time.perf_counter()
        with open(f"{folder}/state.pt", "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        seconds = time.perf_counter() - start
        return seconds, seconds

    def restore(self, state, folder):
        """Returns new tensors."""
        return torch.load(f"{folder}/state.pt")


class Distributed:
    """`torch.distributed.checkpoint` in one process, with a thread for each CPU; it syncs."""

    def writer(self, folder):
        """Returns what writes; it copies the state first, where a save is asynchronous."""
        return dcp.FileSystemWriter(folder, thread_count=len(os.sched_getaffinity(0)))

    def save(self, state, folder):
        """See `TorchSave.save`."""
        start = time.perf_counter()
        dcp.save(state, storage_writer=self.writer(folder), no_dist=True)
        seconds = time.perf_counter() - start
        return seconds, seconds

    def restore(self, state, folder):
        """See `TorchSave.restore`."""
        found = {name: torch.empty_like(tensor) for name, tensor in state.items()}
        dcp.load(found, checkpoint_id=folder, no_dist=True)
        return found


class Asynchronous(Distributed):
    """The same, in the background."""

    def save(self, state, folder):
        """See `TorchSave.save`."""
        start = time.perf_counter()
        saved = dcp.async_save(state, storage_writer=self.writer(folder), no_dist=True)
        waited = time.perf_counter() - start
        saved.result()
        return waited, time.perf_counter() - start


CONTENDERS = {
    "torch.save": TorchSave(),
    "dcp.save": Distributed(),
    "dcp.async_save": Asynchronous(),
}


def serve(shapes):
    """Saves and restores until the input ends."""
    warnings.filterwarnings("ignore", "torch.distributed is disabled")
    arrays = (np.random.default_rng(i).standard_normal(s, np.float32) for i, s in enumerate(shapes))
    state = {str(i): torch.from_numpy(np.asarray(array)) for i, array in enumerate(arrays)}
    print(sum(tensor.nbytes for tensor in state.values()), flush=True)
    for line in sys.stdin:
        verb, name, folder = line.rstrip("\n").split(" ", 2)
        if verb == "save":
            print(*CONTENDERS[name].save(state, folder), flush=True)
            continue
        start = time.perf_counter()
        found = CONTENDERS[name].restore(state, folder)
        print(time.perf_counter() - start, flush=True)
        if any(not torch.equal(found[key], tensor) for key, tensor in state.items()):
            sys.exit(f"{name}: what is restored differs from what was saved")
        del found


if __name__ == "__main__":
    serve(json.loads(sys.argv[1]))
