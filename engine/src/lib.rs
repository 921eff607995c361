//! Hostler's rules of scheduling as a pure state machine: an event and a time go in, effects come out. No clock, socket,
//! thread, randomness or database in here; the dispatch thread is a thin shell round it, and so is the simulator.
//!
//! ```text
//! Engine::new(config)                        once a server start
//! engine.handle(now, event, &mut effects)    takes one event; `now` never goes back
//! engine.dispatch(now, &mut effects)         ends a turn: ready jobs to free slots
//! engine.next_deadline()                     when to send Event::Tick if nothing happens before
//! engine.job(id)                             what a query may see
//! engine.check()                             every invariant, slowly
//! ```
//!
//! The invariants, in words:
//!
//! - A job is in exactly one phase; a terminal one is remembered only until its end is committed.
//! - Of a job at most one attempt is current; its fence is (job, epoch, attempt), attempt numbers only grow.
//! - An assignment leaves as an effect only after its fact is committed; so do answers and acknowledgements (P1, P2, P4).
//! - A worker never holds more than slots + prefetch; prefetch is 0 while another fitting worker has a free slot (P5).
//! - Among the jobs that may run, the one with the highest priority, then the lowest id, goes first (P5).
//! - A failure, a loss and a return are counted apart; back-off grows with failures only.
#![warn(missing_docs)]

mod attempt;
mod cancel;
mod commit;
pub mod effect;
pub mod engine;
pub mod event;
pub mod fact;
mod job;
pub mod lanes;
mod queue;
mod ready;
mod retry;
mod session;
pub mod spec;
pub mod time;
mod timers;
mod worker;

pub use effect::{Effect, Effects};
pub use engine::{Config, Counts, Engine, JobView, QueueView, WorkerView};
pub use event::Event;
pub use fact::Fact;
pub use spec::{Class, ClassId, ClassSpec};
pub use time::{Span, Time, WallTime, When};
