"""What a process has: device, models, memory, ranks, signals, clocks, and where it runs."""
