"""An agent that is there and does next to nothing, for benchmarks."""
