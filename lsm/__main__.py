"""Runs the experiment of a config file, or goes on with the run of a folder.

python -m lsm --config=FILE.py --workdir=runs/NAME
"""

from lsm import cli

if __name__ == "__main__":
    cli.main()
