//! The store: a writer thread that owns the write side, readers beside it, and the seam behind which a database lies.
//!
//! The only place that knows SQL. Not here: what a fact means (`engine`), what an answer looks like (`http`).

pub mod depth;
pub mod memory;
pub mod reader;
pub mod seam;
pub mod sqlite;
pub mod verify;
pub mod writer;

mod audit;
mod checkpoint;
mod class;
mod fold;
mod ids;
mod load;
mod lock;
mod mark;
mod page;
mod ranges;
mod read;
mod recover;
mod retention;
mod scan;
mod sql;
mod tokens;

/// Folds facts as the writer does; how many rows they become. For the micro benches.
#[doc(hidden)]
pub fn folded_rows(epoch: hostler_wire::Epoch, facts: &[hostler_engine::Fact]) -> usize {
    let rows = fold::fold(epoch, facts);
    rows.assigned.len() + rows.started.len() + rows.attempts.len() + rows.ends.len()
}
