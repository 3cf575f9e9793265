"""The TPU's library on a machine that has no TPU, where it is installed for `launch.plan` alone."""

import contextlib
import glob
import os

import jax


def ignore_without_tpu() -> None:
    """Keeps jax from loading libtpu where there is no TPU; call it before a device is touched.

    Loading it takes time, and it prints warnings, leaves log files, and takes a lock that another
    process may want. jax is pointed at a file that is no library, and goes on as without libtpu.
    Nothing is done where a TPU is seen, or a platform is chosen.
    """
    none_seen = os.environ.get("TPU_SKIP_MDS_QUERY") == "1"  # jax sets it where it sees no TPU
    nodes = glob.glob("/dev/accel*") + glob.glob("/dev/vfio/[0-9]*")  # of one that jax knows not
    installed = "TPU_LIBRARY_PATH" in os.environ  # set by libtpu itself when jax looks for it
    if none_seen and installed and not nodes and not jax.config.jax_platforms:
        os.environ["TPU_LIBRARY_PATH"] = __file__


def ask_for_plans() -> None:
    """Makes jax ready to ask the library for plans: undoes `ignore_without_tpu`.

    The constants of a trace are made on the CPU, and those of a config that is loaded after this;
    the library asks no cloud, writes no logs, and takes no lock.
    """
    with contextlib.suppress(RuntimeError):  # there are devices already
        jax.config.update("jax_platforms", "cpu")
    if os.environ.get("TPU_LIBRARY_PATH") == __file__:
        import libtpu

        os.environ["TPU_LIBRARY_PATH"] = libtpu.get_library_path()
    os.environ["TPU_SKIP_MDS_QUERY"] = "1"  # do not ask the cloud which machine this is
    os.environ["TPU_LOG_DIR"] = "disabled"  # else it leaves files in /tmp
    os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"  # no TPU is taken, so none need be locked
