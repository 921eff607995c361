//! Hostler's server: the threads, and what each owns.
//!
//! A job's way through it: `http` (parse, allow) → `store` (commit, answer) → the engine's lanes → `dispatch` (the engine
//! decides) → `net` (frames out) → a worker; and back: `net` → `dispatch` → `store`. Output goes past all of that, from
//! `net` to `output`.

pub mod auth;
pub mod clock;
pub mod config;
pub mod dispatch;
pub mod findings;
pub mod http;
pub mod mailbox;
pub mod metrics;
pub mod net;
pub mod output;
pub mod server;
pub mod store;

pub use config::Config;
pub use findings::{Finding, Report};
pub use server::{Server, ServerError, StartError, Stopper};
pub use store::verify::{VerifyError, verify};
