//! HTTP: the intake of jobs and the answers about them.
//!
//! Not here: SQL (`store`), scheduling (`engine`), worker sockets (`net`).
