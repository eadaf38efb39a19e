"""The machine a process runs on: CPU settings that must precede Paddle, and the choice of device."""

import contextlib
import ctypes
import io
import os
import platform
import sys
import warnings
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path

_AVX512 = {"avx512f", "avx512cd", "avx512bw", "avx512dq", "avx512vl"}
_MKL_AVX512, _MKL_AVX2 = "7", "5"
"""MKL's names of Intel's processors with these instructions (Skylake-X, Haswell)."""
_KEEP_MEMORY = {-4: 0, -1: 2**31 - 1, -2: 256 << 20}
"""The arguments of glibc's `mallopt`: M_MMAP_MAX, M_TRIM_THRESHOLD and M_TOP_PAD, the last two in bytes."""


_WITHOUT_PADDLE = (
    "PaddlePaddle cannot be imported: pip install 'rocketqa_paddle[cpu]' (for a GPU: see the README)"
)


def tune_cpu() -> None:
    """Set what makes Paddle fast on a CPU. Call it before Paddle is imported; later it does nothing.

    Paddle computes on one thread unless `OMP_NUM_THREADS` is set; here the ranks of this machine share its
    cores. Numba's loops take as many threads. MKL is slow on AMD unless told otherwise. glibc returns every
    large temporary to the kernel, which zeroes it again for the next operation, so it is told to keep the
    memory. What the user has set stays.
    """
    if "paddle" in sys.modules:
        return
    ranks = max(1, int(os.environ.get("PADDLE_LOCAL_SIZE", os.environ.get("PADDLE_TRAINERS_NUM", "1"))))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores // ranks)))
    if (threads := os.environ["OMP_NUM_THREADS"].partition(",")[0]).isdigit():
        os.environ.setdefault("NUMBA_NUM_THREADS", threads)
    features = _features()
    if "AuthenticAMD" in features:
        os.environ.setdefault("MKL_DEBUG_CPU_TYPE", _MKL_AVX512 if features >= _AVX512 else _MKL_AVX2)
    if platform.libc_ver()[0] == "glibc" and not any(name.startswith("MALLOC_") for name in os.environ):
        for parameter, value in _KEEP_MEMORY.items():
            ctypes.CDLL(None).mallopt(parameter, value)


def _features() -> set[str]:
    """Maker and instructions of the processor, in the words of Linux; nothing elsewhere."""
    cpu = Path("/proc/cpuinfo")
    return {*cpu.read_text(errors="replace")[:8192].split()} if cpu.exists() else set()


def threads() -> int:
    """The number of threads that `tune_cpu` or the user has set."""
    given = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    return int(given) if given.isdigit() else 1


def has_bf16() -> bool:
    """Whether the processor has instructions for bf16."""
    return not {"avx512_bf16", "amx_bf16"}.isdisjoint(_features())


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

    Raises:
        ImportError: it is not installed, or cannot be imported; tells how to install it.
    """
    with warnings.catch_warnings(), contextlib.redirect_stderr(_WithoutThreadNotice()):
        warnings.filterwarnings("ignore", message="No ccache found")
        try:
            import paddle  # noqa: F401
        except ImportError as error:
            raise ImportError(f"{_WITHOUT_PADDLE} ({error})", name="paddle") from error


def find_device(use_cuda: bool, device_id: int = 0) -> str:
    """Return Paddle's name of a device, `gpu:device_id` or `cpu`.

    Raises:
        ValueError: a GPU is asked for and this Paddle or machine has none, or fewer.
    """
    import paddle

    if not use_cuda:
        return "cpu"
    if not paddle.is_compiled_with_cuda():
        remedy = "install paddlepaddle-gpu (the README gives the line) or pass use_cuda=False"
        raise ValueError(f"use_cuda=True, but this Paddle is built for CPU: {remedy}")
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
    paddle.device.set_device(name)
    try:
        yield
    finally:
        paddle.device.set_device(before)


def select(use_cuda: bool, precision: str = "fp32") -> contextlib.AbstractContextManager[None]:
    """Choose the device and the arithmetic of a command; compute inside the context that is returned.

    Raises:
        ValueError: the machine has no such device, or no instructions for such numbers.
    """
    select_device(use_cuda)
    return arithmetic(precision)


_PRECISION: ContextVar[str] = ContextVar("precision", default="fp32")


def arithmetic(precision: str) -> contextlib.AbstractContextManager[None]:
    """Run the networks in `fp32`, or in `bf16` or `fp16` by Paddle's automatic mixed precision (O1).

    A CPU has no mixed precision in Paddle. There, bf16 is for what is computed without gradient, see
    `bf16_on_cpu`.

    Raises:
        ValueError: the processor has no instructions for such numbers.
    """
    if precision == "fp32":
        return contextlib.nullcontext()
    if gpu_id() is None and (precision != "bf16" or not has_bf16()):
        raise ValueError(f"precision={precision}: this processor has no instructions for it, use fp32")
    return _in_half(precision)


@contextlib.contextmanager
def _in_half(precision: str) -> Iterator[None]:
    import paddle

    dtype, token = {"bf16": "bfloat16", "fp16": "float16"}[precision], _PRECISION.set(precision)
    mixed = contextlib.nullcontext() if gpu_id() is None else paddle.amp.auto_cast(dtype=dtype, level="O1")
    try:
        with mixed:
            yield
    finally:
        _PRECISION.reset(token)


def precision() -> str:
    """Return the precision of the innermost `arithmetic`, with which it can be entered again."""
    return _PRECISION.get()


def bf16_on_cpu() -> bool:
    """Whether what is computed now without gradient, on a CPU, may be computed in bf16."""
    return precision() == "bf16" and gpu_id() is None


def gpu_id() -> int | None:
    """Return the number of Paddle's current GPU, or None on a CPU."""
    import paddle

    kind, _, number = paddle.device.get_device().partition(":")
    return int(number) if kind == "gpu" else None
