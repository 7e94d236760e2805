"""The core: the process that owns the model the way a kernel owns a CPU.

The kernel starts it, drives it over an inherited pipe and restarts it; nothing else can reach it. It is a process of
its own because the model runtime holds the GIL through a whole prefill, and because model files are untrusted input.

`loop` speaks with the kernel, `job` is one inference, `engine` is what a job needs of a model runtime, `genai` is that
runtime; `sampler`, `grammar`, `template`, `stream` and `tokenizer` are the pure steps in between.
"""
