//! Runs Hostler's jobs: commands and named handlers.
//!
//! A program that brings its own handlers builds a [`Worker`]; the command line runs a plain [`Config`] with [`run`].
//! Beneath both lies the [`session`], a state machine without I/O that keeps what is owed to the server, and a loop
//! round it that has the sockets and the processes.
#![warn(missing_docs)]

mod cgroup;
mod child;
mod clock;
mod handlers;
mod kin;
mod link;
mod notes;
mod oom;
mod orphans;
mod output;
mod pace;
mod pipe;
mod proc;
mod reaper;
pub mod session;
pub mod shim;
mod signs;
mod spawn;
mod spill;
mod usage;
mod worker;

pub use cgroup::{Delegated, GroupLimits};
pub use clock::{Span, Time};
pub use handlers::{Handler, HandlerError, Job};
pub use hostler_tls::{ClientFiles, Words};
pub use hostler_wire::token::Token;
pub use output::{Spool, SpoolLimits};
pub use session::Exit;
pub use spill::SpillFiles;
pub use worker::{Config, Stopper, Worker, WorkerError, run};
