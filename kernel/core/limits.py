"""Every limit of the core, with its unit and meaning; those of a job's fields stand in `request`."""

PREFILL_SLICE = 128
"""Tokens fed to the model between two looks at the pipe while a prompt is read."""

PREFILL_SLICE_MIN = 16
"""Tokens; a slow model's slices shrink down to this, and no further, because smaller ones waste its matrix products."""

PREFILL_PATIENCE = 0.4
"""Seconds that one slice should take at most, so that a cancel or a yield acts within about that time."""

LASTING_ROOM = 2048
"""Tokens that a context kept between jobs has room for at first; it doubles when they are used up."""

CHUNK_INTERVAL = 0.015
"""Seconds between two chunks of one quantum's text; the first piece of a job goes out at once."""

TEMPLATE_SECONDS = 2.0
"""User-mode CPU seconds a chat template may take to render."""

TEMPLATE_MEMORY = 256 * 1024 * 1024
"""Bytes of address space a chat template may add while it renders."""

TEMPLATE_CHARACTERS = 4_000_000
"""Characters a chat template may produce."""

EMBED_TOKENS = 256
"""Tokens of a text that its embedding sees; all-MiniLM-L6-v2 was trained on no more."""

EMBED_BATCH_TOKENS = 512
"""Padded tokens in one run of the embedding model: many short texts or a few long ones."""

EMBED_CACHE = 4096
"""Vectors kept, least recently used dropped first (1.5 KB each at 384 dimensions)."""
