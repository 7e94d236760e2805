"""A bare onnxruntime-genai loop, to measure against: reads a number of tokens per line, prints tokens per second of decoding.

`python -m tests.bench.bare FOLDER PROMPT`
"""

from __future__ import annotations

import os
import sys
import time

os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import onnxruntime_genai as og


def main() -> None:
    """Until the end of input."""
    model = og.Model(sys.argv[1])
    prompt = og.Tokenizer(model).encode(sys.argv[2])
    for line in sys.stdin:
        count = int(line)
        parameters = og.GeneratorParams(model)
        parameters.set_search_options(
            do_sample=False, min_length=len(prompt) + count, max_length=len(prompt) + count + 1
        )
        generator = og.Generator(model, parameters)
        generator.append_tokens(prompt)
        generator.generate_next_token()
        started = time.perf_counter()
        for _ in range(count - 1):
            generator.generate_next_token()
        sys.stdout.write(f"{(count - 1) / (time.perf_counter() - started)}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
