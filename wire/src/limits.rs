//! Every size the protocol allows, each with its reason. Checked before anything is allocated.

/// Largest frame body before the handshake is done: a stranger may not make us hold more.
pub const HANDSHAKE_FRAME_BYTES_MAX: usize = 2 << 20;
/// Largest first frame a server takes on a connection: a hello is short.
pub const HELLO_FRAME_BYTES_MAX: usize = 512;
/// Largest frame body after it: one job's body at its limit (4 MiB) and its neighbours in the batch.
pub const FRAME_BYTES_MAX: usize = 8 << 20;
/// Most assignments, reports or fences in one frame: what a turn of the engine handles.
pub const BATCH_ITEMS_MAX: usize = 16_384;
/// Most attempts asked about in one probe: the answer fits into a frame even if every note is as long as it may be.
pub const PROBE_ITEMS_MAX: usize = 1_024;
/// Most attempts a worker may hold (running, prefetched or unacknowledged) and resume: 2 ms of no-op work, many times.
pub const HELD_MAX: usize = 65_536;
/// Most slots of one worker.
pub const SLOTS_MAX: u32 = 4_096;
/// Longest name of a worker, queue, handler, label key or value: they stand in tables.
pub const NAME_BYTES_MAX: usize = 128;
/// Most queues a worker serves.
pub const QUEUES_MAX: usize = 256;
/// Most labels on a worker or job.
pub const LABELS_MAX: usize = 64;
/// Most handler names announced by a worker.
pub const HANDLERS_MAX: usize = 1_024;
/// Largest body of one job: argv, environment, standard input or payload together.
pub const BODY_BYTES_MAX: usize = 4 << 20;
/// Most arguments and most environment entries of a command: above what the kernel takes in practice.
pub const ARGS_MAX: usize = 131_072;
/// Largest result of a handler kept with the job by default; a larger one becomes `{too_large, bytes, sha256}`.
pub const RESULT_BYTES_MAX: usize = 4 << 20;
/// Longest sentence in a report.
pub const MESSAGE_BYTES_MAX: usize = 4_096;
/// Last bytes of standard error kept with an end: about 20 lines.
pub const STDERR_TAIL_BYTES_MAX: usize = 4_096;
/// Largest piece of output in one frame: small enough that many jobs share the pipe fairly.
pub const CHUNK_BYTES_MAX: usize = 64 << 10;
/// Most other addresses in a `NotLeader`.
pub const ADDRESSES_MAX: usize = 16;
/// Largest encoded body of one job: its content at the limit and a length before each argument and variable.
pub const WORK_BYTES_MAX: usize = BODY_BYTES_MAX + 12 * ARGS_MAX + 1_024;
/// Most epochs a resuming worker knows; attempts of older ones are void.
pub const EPOCHS_MAX: usize = 1_024;
/// Longest address: a host name of 255, a colon, a port.
pub const ADDRESS_BYTES_MAX: usize = 261;
