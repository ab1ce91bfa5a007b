"""System metrics of this machine, sampled at every metric point of the trainer.

Promises: the same keys on every machine and rank, whatever the hardware; a sample costs microseconds and never fails.
"""

from collections.abc import Mapping
from pathlib import Path

import psutil
import torch


class SystemMetrics:
    """Processor, memory, disk, network and GPU memory of this machine. Rates are means since the previous call."""

    def __init__(self, work_dir: Path, device: torch.device) -> None:
        self._work_dir = work_dir
        self._device = device
        psutil.cpu_percent()  # the first value is measured from here
        self._traffic = psutil.net_io_counters()

    def __call__(self) -> Mapping[str, float]:
        memory, before, now = psutil.virtual_memory(), self._traffic, psutil.net_io_counters()
        self._traffic = now
        facts = {
            "cpu_percent": psutil.cpu_percent(),
            "memory_used_gb": (memory.total - memory.available) / 1e9,
            "memory_percent": memory.percent,
            "process_memory_gb": psutil.Process().memory_info().rss / 1e9,
            "disk_free_gb": psutil.disk_usage(str(self._work_dir)).free / 1e9,
            "network_received_mb": (now.bytes_recv - before.bytes_recv) / 1e6,
            "network_sent_mb": (now.bytes_sent - before.bytes_sent) / 1e6,
        }
        if self._device.type == "cuda":
            free, total = torch.cuda.mem_get_info(self._device)
            facts["gpu_memory_percent"] = 100 * (total - free) / total
        return facts
