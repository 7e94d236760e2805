"""The limits of the kernel and the gates, with their units and meanings.

Wire limits are in `llmos.ipc.wire`, those of a pure state machine in it.
"""

# processes
MAX_PROCESSES = 256  # alive at once, all kinds
HELLO_S = 10.0  # seconds from start to `sys.hello` before a process is given up
READY_S = 60.0  # seconds from start to `sys.ready`
TERM_S = 2.0  # seconds between SIGTERM and SIGKILL
DOWN_S = 8.0  # seconds an orderly end may take in all, after which whatever is left is killed
RESTART_S = (0.005, 0.2, 1.0, 4.0, 15.0)  # seconds before the 1st, 2nd, … restart in a row
REJAIL_S = 0.1  # seconds in which several grants to a driver become one restart
LEAVING_S = 0.02  # seconds between two looks whether a driver that was ended is gone, before it starts again
CALM_S = 60.0  # seconds a process must live for its next crash to count as the first again
LOG_LINES = 1000  # lines of stderr kept per process
LOG_LINE = 2000  # characters kept of one line
LOGS_OF_ENDED = 32  # agents whose last lines are kept after their end
SPARES = 2  # jails that wait for an agent; of the policies wanted last
DRIVER_SPARES = 16  # the same of drivers, one for each
DRIVER_SPARE_S = 2.0  # seconds without a driver's start after which one is made
SPARE_AGAIN_S = 5.0  # seconds after which one that died is made again
SPARE_S = 0.3  # seconds without a start after which one is made
MAX_STARTING = 4  # agents that start at once; the others wait for their turn
NICE = 5  # how far drivers and the core stand back for the kernel and the gates, so that the bus stays quick while they compute
AGENT_NICE = 10  # the same of agents
AGENT_MEMORY = 1 << 30  # bytes of address space of an agent
DRIVER_MEMORY = 4 << 30  # bytes of address space of a driver; mapped libraries count

# what a process may use, all of its jail together, where no control group sees to it: one that uses more is ended
WATCH_S = 5.0  # seconds between two looks at a process; with more than 25 processes it becomes more
WATCH_ENTRIES = 200  # entries of a directory that are looked at in one turn of the loop
WATCH_PAUSE_S = 0.2  # seconds between two such turns, and at least between two looks at processes
WATCH_IDLE_S = 0.5  # seconds between two looks whether it is time to go through a directory again
WATCH_DEPTH = 64  # directories within one another in a process's own directory; more is more than it may
WATCH_EXACT = 6  # looks of which one tells shared pages apart, which takes several times as long
WATCH_PSS_RSS = (
    256 << 20
)  # bytes resident beyond which that waits until a limit is in question: it takes 12 ms for a GB
AGENT_PSS = 1 << 30  # bytes of memory, shared pages counted by their share
DRIVER_PSS = 2 << 30  # the same
CORE_PSS = 64 << 30  # the same of the core: weights are mapped, and in memory once they have been used
AGENT_DISK = 256 << 20  # bytes in an agent's own directory, and in files that it deleted and holds open
DRIVER_DISK = 2 << 30  # the same of a driver
AGENT_FILES = 10_000  # files and directories in it
DRIVER_FILES = 100_000  # the same of a driver
MAX_TASKS = 512  # processes and threads of one jail, which its rlimits bound first
BURN_SHARE = 0.2  # of a processor that a process may use for ever with no call to show for it
AGENT_BURN_S = 480.0  # seconds of processor that an agent may use beyond that: ten minutes of a whole one without a call of its own
DRIVER_BURN_S = 240.0  # the same of a driver: five minutes without a call to serve

# health
PING_S = 5.0  # seconds between two pings to a driver
PING_MISSES = 3  # pings in a row that it may leave unanswered
CORE_SILENT_S = 120.0  # seconds without a word from the core while it has a job
SETTINGS_BYTES = 16_384  # of one driver's settings, as JSON: they reach it in an environment variable

# calls
MAX_CALLS = 256  # in flight per caller; one more is BUSY
MAX_DEPTH = 16  # calls that are made for one another; one more is BUSY
MAILBOX = 64  # calls that wait for, or are being served by, one process; one more is BUSY
SYSCALL_S = 30.0  # seconds a syscall without a deadline may take
STREAM_CHUNKS = 500  # of a stream kept for a reader out of credit; its mailbox must hold them all when the answer comes
STREAM_BYTES = 256 * 1024  # bytes of a stream kept for a reader out of credit, beyond which it ends with BUSY

MAX_CHILDREN = 32  # alive at once of all that one agent, or app, has spawned, and they in turn

MAX_FUNCTIONS = 16  # lent by one connection
FUNCTION_BYTES = 2048  # of one function's arguments and utterances, so that a list of them fits an answer

EVENTS_EXPIRE_S = 3600.0  # seconds between two looks for stored events that are too old
CLOCK_S = (
    60.0  # seconds after which the wall clock is looked at again, should it have been set, while something is to expire
)

# capabilities
MAX_HELD = 512  # in the hands of one holder, the user aside; one more is BUSY (a check may look at each)

# the audit log
AUDIT_DENIALS = 120  # rows per minute for one holder's refused calls; more are counted in the next row
AUDIT_ANCHOR_S = 5.0  # seconds after a row until the log is brought to disk and its head kept

# topics
MAX_SUBSCRIPTIONS = 256  # per connection
MAX_SUBSCRIPTIONS_OF_HOLDER = 1024  # of one holder, all its connections: a publication may look at each
RETAINED = 1_000  # topics whose last event is kept in memory
RETAINED_BYTES = 4 << 20  # of those events together
EVENT_BYTES = 60_000  # of one stored event, so that an answer holds at least one
EVENTS_TOPICS = 1_000  # that are stored at all; one more is BUSY
EVENTS_PER_TOPIC = 10_000  # stored events of one topic; the oldest go first
EVENTS_DAYS = 30  # after which a stored event is gone
EVENTS_BYTES = 64 << 20  # of all stored events; the oldest of the first level that holds most go first

# inference
MAX_JOBS = 128  # queued or running, all principals; one more is BUSY
ADMISSIONS = 4  # jobs of one principal that the core is to read at a time to say how large they are
MAX_CONTEXTS = 64  # open at once
MAX_ROWS = 16  # jobs that decode in one step
QUANTUM = 64  # decode steps of a turn when nobody waits
SLICE = 8  # the same when somebody waits: fairness is measured in these
PREFILL_SLICE = 128  # tokens of a prompt read in one turn (0.16 s of a 0.5B model): the longest wait for a turn's end
PREFILL_STEPS = 2  # decode steps of a turn that reads a slice too, so that answers flow while prompts are read
AGING_S = 20.0  # seconds of waiting that lift a job by one class
# seconds of the machine that a principal may be ahead of the one furthest behind and still run, and that all together may be at
# the expense of the heaviest: 5 % of ten seconds. Simulated, four agents take 14 % longer than without a bound; with 0.25 s, 21 %
CREDIT_S = 0.5
LAG = 16.0  # tokens that it may be ahead in any case: two slices
URGENT_S = 2.0  # seconds to spare before its deadline below which a job goes first
KV_BYTES = 2 << 30  # bytes of KV of all jobs together, where the machine's memory has not been divided
KV_HEADROOM = 256  # tokens of an answer for which KV is reserved at a time
PREFILL_TOKEN_S = 0.0013  # seconds a prompt's token takes, until a model's own are known
DECODE_TOKEN_S = 0.0034  # seconds a token of a batch takes, until then
DECODE_STEP_S = 0.027  # seconds a step of a batch takes, until then
RATES_S = 10.0  # seconds of work over which what a token takes is averaged
TOKEN_S_LEAST = 1e-6  # seconds below which no token or step is believed to take
TOKEN_S_MOST = 60.0  # and above
TURN_TOKENS = 1 << 24  # that no window has and no turn computes: a core that counts more has been taken over
ANSWER_CHARACTERS = 16 << 20  # of one answer that the kernel keeps; 32,768 tokens have at most some of these
CLASS_WEIGHT_DEFAULT = 1.0  # share of a principal inside its class
CORE_START_S = 2.0  # seconds after boot began at which the model is loaded although a driver is still starting
TEXT_BYTES = 60_000  # of a generated text that the final reply repeats; a longer one is in the chunks alone
LOAD_S = 300.0  # seconds a model may take to load
LOAD_CRASHES = 2  # ends of the core in a row while it loads one model, after which that one is left out
LOAD_KILLS = 4  # the same where somebody, or Linux for lack of memory, has killed it
MODEL_SHARE = 0.6  # of the machine's memory, for models and their contexts (`LLMOS_MODEL_MEMORY` says otherwise)
KV_LEAST = 256 << 20  # bytes of KV there are in any case
KV_MOST = 16 << 30  # the same at most, where nothing else is said
SPILL_SHARE = 0.1  # of the free disk, for contexts that are put aside
SPILL_MOST = 4 << 30  # bytes of them at most
CORE_DISK = SPILL_MOST + (64 << 20)  # bytes on disk that the core may take: what it has spilled, and a little
CORE_OPEN_FILES = 4096  # that the core may have open: a context that it has put aside has one
CORE_FILES = 1_000  # files in its directory: it deletes each as soon as it is open
RATE_S = 3.0  # seconds over which tokens per second are averaged
CORE_MEMORY = (
    1 << 40
)  # bytes of address space of the core: weights are mapped, and rows reserved for texts as long as the window
GENERATE_S = 600.0  # seconds an inference without a deadline may take

# programs that are run (`code.run`)
CODE_RUNS = 4  # at once
CODE_S = (
    660.0  # seconds a call without a deadline may take, waiting for the jail and looking through the project included
)
CODE_START_S = 15.0  # seconds from start until the jail is closed
CODE_PROJECTS = 64  # there may be; one more is BUSY
CODE_FILES = 2_000  # entries of one project
CODE_BYTES = 256 << 20  # bytes on disk of one project
CODE_FILE_BYTES = 64 << 20  # bytes of the largest file that a program may write
CODE_DEPTH = 16  # directories inside one another in a project
CODE_DISK_LEFT = 512 << 20  # bytes that must stay free on the disk while programs run
CODE_INODES_LEFT = 5_000  # files that must still find room there
CODE_WATCH_S = 0.2  # seconds between two looks at what a program uses
CODE_WATCH_MOST_S = 0.6  # the same, of one with many processes
CODE_PAUSE_S = 0.01  # seconds between two blocks that are taken of one's output
CODE_SLICE = 64  # entries of a project that are looked at before the loop goes on
CODE_OPEN_FILES = 64  # descriptors of one process
CODE_THREADS = 64  # threads and processes of one program
CODE_SCRATCH = 32 << 20  # bytes of its /tmp, and of its /dev/shm
CODE_ROOM = 512 << 20  # bytes of address space beside `memory_mb`: what is mapped and not used
CODE_TEXT = 16_000  # bytes of each stream that the final reply repeats, and of the list of files

# gate
GATE_MEMORY = 768 << 20  # bytes of address space; a peer that makes libzmq buffer more kills its own connection
GATE_FRAME = 1 << 20  # bytes of one ZMTP frame; a larger one disconnects its sender
GATE_HWM = 1000  # messages queued per peer and direction
GATE_RATE = 20_000.0  # messages per second per connection, sustained; more is answered BUSY
GATE_BURST = 40_000.0  # messages above the rate at once
GATE_PEERS = 1024  # connections known at once; the longest silent one is forgotten
GATE_PEERS_PER_PROCESS = 64  # the same for one operating-system process
PIPE_BACKLOG = 32 << 20  # bytes the kernel keeps for a gate that does not read, beyond which it is restarted
GATE_REAP_S = 0.5  # seconds between two looks for connections that are over
GATE_HEAP = 160 << 20  # bytes in use at which connections that only ever send beginnings are ended
GATE_PER_PEER = 128 << 10  # bytes of them that each connection may have for itself
GATE_WATCH_S = 0.025  # seconds between two looks at that
GATE_FILES = 16_384  # descriptors; a quarter of them may be connections that have said nothing
GATE_AHEAD = 8  # messages that a gate takes of its peers before it looks at the kernel's side again
GATE_PIPE = (
    1  # bytes on their way to the kernel, which Linux makes 4.5 KB; more wait at their senders, who then take turns
)

# the egress broker
EGRESS_MEMORY = 768 << 20  # bytes of address space; its threads' stacks and arenas count
EGRESS_STACK = 256 * 1024  # bytes of the stack of a thread that looks a name up
EGRESS_FILES = 2048  # descriptors; a connection has two
EGRESS_CONNECTIONS = 512  # open at once, all drivers
EGRESS_PER_PROCESS = 64  # the same for one driver; one more is BUSY
EGRESS_RATE = 20.0  # connections asked for per second and driver, sustained
EGRESS_BURST = 200.0  # connections above the rate at once
EGRESS_REQUEST_S = 5.0  # seconds for the whole of a request, and for the kernel's answer
EGRESS_CONNECT_S = 20.0  # seconds to resolve a name and to connect, all its addresses together
EGRESS_ADDRESSES = 4  # of one name that are tried
EGRESS_NAMES = 32  # names looked up at once, all drivers
EGRESS_NAMES_PER_PROCESS = 8  # the same for one driver; others wait
EGRESS_BLOCK = 32 * 1024  # bytes held for each direction of a connection
EGRESS_METER = 256 * 1024  # bytes after which a connection under a quota of bytes is accounted for
EGRESS_IDLE_S = (
    2100.0  # seconds without a byte after which a connection ends; mail clients are silent for 29 minutes (RFC 2177)
)
EGRESS_SWEEP_S = 5.0  # seconds between two looks at that


def share(limit: int, mine: int, others: int) -> bool:
    """Whether a holder that has `mine` of `limit` things may have one more: at most half of what the others leave.

    So there is always some left for the next one.
    """
    return mine < max(1, (limit - others) // 2)
