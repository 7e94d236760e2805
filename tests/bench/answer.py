"""What a benchmark keeps of one answer of a model, whoever gave it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Answer:
    """Times in seconds from sending the request; counts in tokens as the side that served it counts them.

    Attributes:
        first: until the first piece of text.
        total: until the end.
        completion: produced, those that a grammar forces included.
        prompt: of the whole prompt.
        cached: of the prompt, those that were not read anew.
    """

    text: str
    first: float
    total: float
    completion: int
    prompt: int
    cached: int
