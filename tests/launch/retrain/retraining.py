"""Digits in files, and a driver that kills a retraining at each line of its journal."""

import pathlib
import sys

import numpy as np

from lsm.data import Digits

ROOT = pathlib.Path(__file__).parents[3]
CONFIG = ROOT / "experiments/configs/digits/retrain.py"

DRIVER = """
import os, signal, sys
from launch.retrain import __main__, cycle, incoming, journal, server

mode, *words = sys.argv[1:]
append, written = journal.Journal.append, 0

def killing(self, *said, **more):
    global written
    written += 1
    if mode == "before" and written == 2:  # the next step's work is done, and nobody knows
        os.kill(os.getpid(), signal.SIGKILL)
    made = append(self, *said, **more)
    if mode == "after":  # the line is there, and nothing after it
        os.kill(os.getpid(), signal.SIGKILL)
    return made

kills = 0
while True:
    child = os.fork()  # JAX has no threads yet
    if not child:
        journal.Journal.append = killing if mode != "never" else append
        os._exit(__main__.main(words))
    _, status = os.waitpid(child, 0)
    if not os.WIFSIGNALED(status):
        print("kills", kills)
        sys.exit(os.waitstatus_to_exitcode(status))
    kills += 1
"""


def digits(path, start, stop):
    """Writes some of the digits to a file."""
    image, label = (Digits().open("train").column(name) for name in ("image", "label"))
    names = np.array([f"d{n}" for n in label])
    np.savez(path, image=image[start:stop], label=names[start:stop])


def prepared(folder):
    """Old data, and a folder for new files with one that is whole and one that is not."""
    for name in ("data", "incoming"):
        (folder / name).mkdir(parents=True)
    digits(folder / "data/train.npz", 0, 400)
    digits(folder / "data/test.npz", 1100, 1400)
    digits(folder / "incoming/a.npz", 400, 600)
    whole = (folder / "incoming/a.npz").read_bytes()
    (folder / "incoming/torn.npz").write_bytes(whole[: len(whole) // 2])


def words(folder, *more):
    """The command line of a retraining in `folder`."""
    return [
        f"--config={CONFIG}:{folder / 'data'}",
        f"--watch={folder / 'incoming'}",
        f"--workdir={folder / 'work'}",
        f"--models={folder / 'digits'}",
        "--once",
        "--config.settle=0",
        "--config.experiment.writers=()",
        "--config.experiment.train.epochs=8",
        "--config.experiment.train.batch_size=16",
        "--config.gates.2.most=0.5",
        *more,
    ]


def command(mode, folder, *more):
    return [sys.executable, "-c", DRIVER, mode, *words(folder, *more)]
