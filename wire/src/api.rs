//! The JSON shapes of the HTTP interface, shared by server and command line.
//!
//! A shape reads strictly: an unknown field, a field given twice or a value of another type is an error whose message
//! begins with a JSON pointer to the place ([`ShapeError`] takes it apart). What is asked of values beyond their type
//! (bounds, sizes, what excludes what) is intake's business, not this module's.
//!
//! Not here: anything that knows a caller, a database or a status code's meaning.

pub mod base64;
pub mod job;
pub mod problem;
pub mod query;
pub mod token;

mod fields;
mod text;

pub use fields::nearest;
pub use job::{
    Accepted, AcceptedBatch, AttemptView, CommandRequest, Fill, JobList, JobRequest, JobView,
    Links, Live, LogsRequest, RetryRequest, RuleRequest, StateView, UsageView,
};
pub use problem::{FieldError, Problem, ShapeError};
pub use query::{
    Done, Health, LogEnd, LogPiece, LogResync, NetStats, OutputStats, QueueList, QueueStats, Stats,
    StoreStats, Version, WorkerList, WorkerView,
};
pub use text::{InvalidTimestamp, Timestamp};
pub use token::{AuditList, AuditView, TokenList, TokenMade, TokenRequest, TokenView};
