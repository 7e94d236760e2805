"""Every limit of the core, with its unit and meaning; those of a job's fields stand in `request`."""

PREFILL_SLICE = 128
"""Tokens fed to the model between two looks at the pipe while a prompt is read."""

PREFILL_SLICE_MIN = 16
"""Tokens; a slow model's slices shrink down to this, and no further, because smaller ones waste its matrix products."""

PREFILL_PATIENCE = 0.4
"""Seconds that one slice should take at most, so that a cancel or a yield acts within about that time."""

CHUNK_INTERVAL = 0.015
"""Seconds between two chunks of one turn's text; the first piece of a job goes out at once, and what is left at the turn's end."""

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

ROWS = 16
"""Texts that are worked on at once; a step over more costs each of them too much time."""

GENAI_ROWS = 12
"""The same for GenAI, which works on one after the other; `KEPT_ROWS` of them may be idle."""

ROOM = 4096
"""Tokens that every row has address space for at first; it doubles, for all, when one needs more."""

KV_BYTES = 1 << 30
"""Bytes of keys and values in memory where the kernel has not said."""

KV_SLACK = 0.03
"""Share of that which is made free at once when there is no room, so that it is not done for every token."""

PROBES = 8
"""Tokens with which it is tried at loading whether a row alone rounds as one of a pair does."""

KEPT_ROOM = 512
"""Tokens that a row of GenAI's has room for at least; above that, the next power of two."""

KEPT_ROWS = 4
"""Rows kept after their jobs by an engine that cannot copy them."""

READ_S = 0.002
"""Seconds that reading a token of a prompt takes, before it was measured."""

READ_LEARNS = 0.2
"""Weight of the newest measurement of that."""

READ_DOUBLES = 4096
"""Tokens of a text after which reading one more costs about twice as much, since it looks back at all of them."""

SPILL_READ_S = 1e-9
"""Seconds that a byte takes from a file, before it was measured."""

SPILL_LEARNS = 0.1
"""Weight of the newest measurement of that."""

SPILL_S = 0.002
"""Seconds that coming back from a file takes at least."""

SPILL_BLOCK = 8 << 20
"""Bytes written to a file at a time."""

DRAFT_NGRAM = 3
"""Tokens that must have occurred before for those after them to be drafted."""

DRAFT_FIRST = 3
"""Tokens of a draft; more once one was right, up to `DRAFT_MOST`."""

DRAFT_MOST = 7
"""Tokens of a draft at most: with the one before them a run of eight, which costs a quarter more than a run of two."""

DRAFT_SETBACKS = 5
"""Drafts that were wrong from the first token on, in a row, after which the pause of 2^n tokens grows no more."""

SUMMARY_TOKENS = 256
"""Tokens of the summary that takes the place of what a long conversation pages out."""

ANSWER_SHARE = 4
"""A conversation is paged when less than the window divided by this is left for the answer that was asked for."""

MULTIPLE = 20_000
"""Least common multiple, without powers of ten, of all `multipleOf` of a schema."""
