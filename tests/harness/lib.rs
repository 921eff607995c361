//! Starts, kills and restarts real processes, and asks them how they are: what the end-to-end tests are written with.
//!
//! - [`Cluster`]: a server in a data directory of its own, with workers, restarted on the same ports.
//! - [`Process`]: one process of ours: signals by its id, its end awaited with a deadline, its words kept in files.
//! - [`Client`]: HTTP/1.1 by hand, so that the tests see the bytes and not a library's idea of them.
//! - [`Relay`]: stands between worker and server; holds, cuts, delays, damages and remembers. [`Impostor`]: a false server.
//! - [`Certificates`]: an authority and what it has vouched for, good and bad.
//! - [`Database`]: the file itself, through its public views. [`Effects`]: what jobs really did, in their own words.
//! - [`eventually`], [`never`]: waiting with a deadline instead of sleeping. [`Random`]: chance that can be repeated.
//! - [`Wall`]: a wall clock that can be set, for one process. [`ReadOnly`]: a file system that turns read-only, likewise.
//!
//! A harness that cannot go on panics where it stands, with what it saw.
#![expect(
    clippy::unwrap_used,
    reason = "a harness that cannot go on fails its test where it stands"
)]

mod binary;
mod certificates;
mod clock;
mod cluster;
mod database;
mod disk;
mod effects;
mod http;
mod impostor;
mod process;
mod random;
mod read_only;
mod relay;
mod scratch;
mod wall;

pub use binary::{find_binary, find_old_binary, full, size, soak};
pub use certificates::{Certificates, Purpose};
pub use clock::{
    PATIENCE, elapsed, eventually, never, now, parse_rfc3339_ms, pause, unix_ms, wait_for,
};
pub use cluster::{Cluster, WorkerProc};
pub use database::Database;
pub use disk::{LoopDisk, SmallDisk};
pub use effects::{Effects, Start};
pub use http::{Client, Request, Response, Streaming};
pub use impostor::Impostor;
pub use process::{Finished, Process};
pub use random::Random;
pub use read_only::ReadOnly;
pub use relay::{Damage, Relay, Way};
pub use scratch::{Scratch, alive, free_port};
pub use wall::Wall;
