"""The machine a process runs on: CPU settings that must precede Paddle, and the choice of device."""

from __future__ import annotations

import contextlib
import ctypes
import io
import os
import platform
import sys
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # names of glibc's mallopt
_KEEP = 2**31 - 1  # bytes; mallopt takes an int


def tune_cpu() -> None:
    """Set what makes Paddle fast on a CPU. Call it before Paddle is imported; later it does nothing.

    Threads: Paddle computes on one unless `OMP_NUM_THREADS` is set. Under a launcher the cores are
    shared out over the ranks of this machine. MKL runs at half speed on AMD unless told otherwise.
    glibc hands every large temporary back to the kernel, which then zeroes it again for the next
    operation; keeping the memory made elementwise operations 3 to 15 times faster. What the user
    has set already stays as it is.
    """
    if "paddle" in sys.modules:
        return
    ranks = max(1, int(os.environ.get("PADDLE_LOCAL_SIZE", os.environ.get("PADDLE_TRAINERS_NUM", "1"))))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores // ranks)))
    if _is_amd():
        os.environ.setdefault("MKL_DEBUG_CPU_TYPE", "5")
    if platform.libc_ver()[0] == "glibc" and not any(name.startswith("MALLOC_") for name in os.environ):
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, _KEEP)
        libc.mallopt(_M_TOP_PAD, 256 << 20)


class _WithoutThreadNotice(io.TextIOBase):
    """Standard error, less Paddle's notice on the number of threads."""

    def write(self, text: str) -> int:
        if "OMP_NUM_THREADS" in text:
            self.dropped = True
        elif not (getattr(self, "dropped", False) and text == "\n"):
            self.dropped = False
            sys.__stderr__.write(text)
        return len(text)

    def flush(self) -> None:
        sys.__stderr__.flush()


def import_paddle() -> None:
    """Import Paddle without its two notices that tell a user of this package nothing.

    They warn of more than one CPU thread, which `tune_cpu` asks for on purpose, and of a missing compiler
    cache. Whatever else Paddle and its loggers print, now or later, is passed on.
    """
    with warnings.catch_warnings(), contextlib.redirect_stderr(_WithoutThreadNotice()):
        warnings.filterwarnings("ignore", message="No ccache found")
        import paddle  # noqa: F401


def _is_amd() -> bool:
    cpuinfo = Path("/proc/cpuinfo")
    return cpuinfo.exists() and "AuthenticAMD" in cpuinfo.read_text(errors="replace")[:4096]


def find_device(use_cuda: bool, device_id: int = 0) -> str:
    """`gpu:device_id` or `cpu`, Paddle's name of a device.

    Raises:
        ValueError: a GPU is asked for and this Paddle or machine has none, or fewer.
    """
    import paddle

    if not use_cuda:
        return "cpu"
    if not paddle.is_compiled_with_cuda():
        raise ValueError(
            "use_cuda=True, but this Paddle is built for CPU: install paddlepaddle-gpu "
            "(the README gives the line) or pass use_cuda=False"
        )
    count = paddle.device.cuda.device_count()
    if not 0 <= device_id < count:
        raise ValueError(f"device_id={device_id}, but this machine shows {count} GPUs (0 to {count - 1})")
    return f"gpu:{device_id}"


def select_device(use_cuda: bool, device_id: int = 0) -> None:
    """Make a device Paddle's current one; see `find_device`."""
    import paddle

    paddle.device.set_device(find_device(use_cuda, device_id))


@contextlib.contextmanager
def using(name: str) -> Iterator[None]:
    """Compute on a device, then go back to the one before."""
    import paddle

    before = paddle.device.get_device()
    if before == name:
        yield
        return
    paddle.device.set_device(name)
    try:
        yield
    finally:
        paddle.device.set_device(before)


def arithmetic(precision: str) -> AbstractContextManager[None]:
    """Run the networks in `fp32`, or in `bf16` or `fp16` by Paddle's automatic mixed precision (O1)."""
    if precision == "fp32":
        return nullcontext()
    import paddle

    return paddle.amp.auto_cast(dtype={"bf16": "bfloat16", "fp16": "float16"}[precision], level="O1")


def gpu_id() -> int | None:
    """The number of Paddle's current GPU, or None on a CPU."""
    import paddle

    kind, _, number = paddle.device.get_device().partition(":")
    return int(number) if kind == "gpu" else None
