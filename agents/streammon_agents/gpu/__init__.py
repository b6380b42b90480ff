"""GPUs: what NVIDIA's driver tells of each, its MIG instances and the processes on them (`docs/gpu.md`)."""
