"""Per process: device, loaded models, memory, ranks, signals, clocks, provenance."""
