//! Hostler's load test and its comparison loops: whole systems as processes, on this machine's loopback, beside the
//! simplest program that could do the same.
//!
//! A number alone says little about a scheduler: each figure comes with a reference measured in the same run, with the
//! server's CPU time a job, and only after the database has shown that nothing was lost.
//!
//! - [`system`]: starts and stops a server with a worker, from the `hostler` binary.
//! - [`http`]: a closed loop of requests on many connections. [`load`]: jobs through it, counted and checked.
//! - [`responder`], [`spawn`], [`append`], [`cat`]: what the figures are compared with.
//! - [`backlog`]: a start with many jobs queued.
//! - [`figures`], [`logs`]: the figures themselves. [`report`]: how they are told.

pub mod append;
pub mod backlog;
pub mod cat;
pub mod clock;
pub mod figures;
pub mod http;
pub mod load;
pub mod logs;
pub mod report;
pub mod responder;
pub mod spawn;
pub mod system;
