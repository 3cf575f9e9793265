"""Trains a served model on as data comes in; what passes its gates is served, step by step.

config     what is trained, and what a new version has to keep: values
journal    what was begun and done, in a file that shows an edit
incoming   new files: whole and sound ones are taken, others set aside
figures    a version measured: accuracy, by class, calibration, latency, size
server     the server that is asked for its own figures
cycle      from new files to a version that serves, or not
"""

from launch.retrain.config import Bound, Canary, NoWorse, Retraining

__all__ = ["Bound", "Canary", "NoWorse", "Retraining"]
