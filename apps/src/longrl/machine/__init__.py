"""What this machine has: GPUs, memory, disk, installed packages. Nothing here loads torch."""
