"""What this machine can compute on."""

from dataclasses import dataclass

from rocketqa_paddle.runtime import device


@dataclass(frozen=True)
class Machine:
    """Threads of a CPU, or GPUs with their memory in gigabytes; `bf16` tells of instructions for it."""

    cores: int = 1
    gpus: int = 0
    gigabytes: int = 0
    bf16: bool = False

    @property
    def pace(self) -> float:
        """How much a CPU trains in the time in which two cores train as much as a preset for a CPU."""
        return self.cores / 2

    def __str__(self) -> str:
        if self.gpus:
            return f"{self.gpus} GPU{'s' * (self.gpus > 1)} of {self.gigabytes} GB"
        return f"{self.cores} CPU core{'s' * (self.cores > 1)}"


def this_machine() -> Machine:
    """Return what Paddle finds here."""
    import paddle

    cores = device.threads()
    count = paddle.device.cuda.device_count() if paddle.is_compiled_with_cuda() else 0
    if not count:
        return Machine(cores, bf16=device.has_bf16())
    properties = paddle.device.cuda.get_device_properties(0)
    return Machine(cores, count, round(properties.total_memory / 2**30), properties.major >= 8)
