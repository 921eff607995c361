//! Hostler's load test: whole systems as processes, beside the simplest program that could do the same.
//!
//! A number alone says little about a scheduler: a figure comes with the environment it is of, where there is one with
//! a reference measured in the same run, and only after every job that was accepted has been found, once, ended as it
//! should.
//!
//! - What users measure with, as `hostler bench`: [`throughput`], [`latency`], [`process`], [`backlog`], [`logs`],
//!   [`connections`], [`mixed`]. Each has a `Plan` (its options) and a `measure` that makes a [`report`]; [`html`] draws
//!   it.
//! - What they are made of: [`system`] starts servers and workers or takes one that runs, [`http`] is a closed loop of
//!   requests, [`paced`] an open one, [`load`] jobs through it, [`watch`] looks on, [`check`] judges the end,
//!   [`environment`] says where.
//! - What figures are compared with: [`responder`], [`spawn`], [`append`], [`cat`].
//! - [`figures`]: the table that the project measures itself by. [`peers`]: the same work given to other systems.
//!   [`document`] writes them down.

pub mod append;
pub mod backlog;
pub mod cat;
pub mod check;
pub mod clock;
pub mod connections;
pub mod document;
pub mod environment;
pub mod figures;
pub mod html;
pub mod http;
pub mod inserts;
pub mod latency;
pub mod load;
pub mod logs;
pub mod mixed;
pub mod paced;
pub mod peers;
pub mod process;
pub mod report;
pub mod responder;
pub mod spawn;
pub mod system;
pub mod throughput;
pub mod watch;
