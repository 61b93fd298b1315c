"""The speed of accelerators from their makers' data sheets, and the share of it that long rows reach."""

from dataclasses import dataclass

from mrsp_engine.attention.split import MachineRates
from mrsp_engine.errors import EngineUsageError

__all__ = ["HARDWARE", "Accelerator", "find_accelerator", "recognise_accelerator"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Accelerator:
    """One device.

    Attributes:
        name: What it is called.
        matrix_rate: Dense products in bfloat16, operations per second.
        memory_bytes: Size of its memory.
        memory_bandwidth: Bytes per second read from it.
        link_bandwidth: Bytes per second sent to the other devices of its node, one way.
        linear_efficiency: Share of the matrix rate that a model's linear layers reach.
        attention_efficiency: Share of it that attention reaches.
        message_seconds: Delay of one exchange.
    """

    name: str
    matrix_rate: float
    memory_bytes: float
    memory_bandwidth: float
    link_bandwidth: float
    linear_efficiency: float = 0.55
    attention_efficiency: float = 0.45
    message_seconds: float = 2e-5

    @property
    def linear_rate(self) -> float:
        """Operations per second in linear layers."""
        return self.matrix_rate * self.linear_efficiency

    @property
    def attention_rate(self) -> float:
        """Operations per second in attention."""
        return self.matrix_rate * self.attention_efficiency

    @property
    def machine_rates(self) -> MachineRates:
        """The rates in the form that the engine's choice of a split uses."""
        return MachineRates(
            flops_per_second=self.attention_rate,
            bytes_per_second=self.link_bandwidth,
            message_seconds=self.message_seconds,
        )


HARDWARE = {
    accelerator.name: accelerator
    for accelerator in (
        Accelerator(name="A100", matrix_rate=312e12, memory_bytes=80e9, memory_bandwidth=2.0e12, link_bandwidth=3.0e11),
        Accelerator(
            name="H100", matrix_rate=989e12, memory_bytes=80e9, memory_bandwidth=3.35e12, link_bandwidth=4.5e11
        ),
        Accelerator(
            name="H200", matrix_rate=989e12, memory_bytes=141e9, memory_bandwidth=4.8e12, link_bandwidth=4.5e11
        ),
        Accelerator(
            name="CPU",
            matrix_rate=9e10,
            memory_bytes=16e9,
            memory_bandwidth=1e10,
            link_bandwidth=2e9,
            attention_efficiency=0.3,
            message_seconds=2e-4,
        ),
    )
}
"""Data sheets for dense bfloat16; the CPU is one core of a server, in float32. Efficiencies are those that flash
attention and large products are known to reach on long rows; `longrl benchmark step` replaces them with measured ones.
"""


def find_accelerator(name: str) -> Accelerator:
    """The accelerator with this name.

    Raises:
        EngineUsageError: There is no such accelerator.
    """
    for known, accelerator in HARDWARE.items():
        if known.lower() == name.lower():
            return accelerator
    raise EngineUsageError(f"accelerator {name!r}: expected one of {', '.join(HARDWARE)}")


def recognise_accelerator(device_name: str) -> Accelerator | None:
    """The GPU with the name that its driver gives, such as "NVIDIA H100 80GB HBM3"; None if its speed isn't known here.

    Slower boards of the same chip ("NVIDIA H100 PCIe", "NVIDIA H100 NVL") aren't known.
    """
    gpu = next((known for name, known in HARDWARE.items() if name != "CPU" and name in device_name), None)
    is_slower = gpu is not None and gpu.name != "A100" and any(board in device_name for board in ("PCIe", "NVL"))
    return None if is_slower else gpu
