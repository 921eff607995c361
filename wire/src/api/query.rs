//! Answers about the server, its workers, and what jobs print.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::api::text::{self, Timestamp};
use crate::{JobId, JobState};

/// `GET /workers`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct WorkerList {
    /// By name.
    pub workers: Vec<WorkerView>,
}

/// One worker.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct WorkerView {
    /// Its stable name.
    pub name: String,
    /// Whether it is connected; otherwise its grace runs.
    pub connected: bool,
    /// Whether it takes no new work.
    pub draining: bool,
    /// Jobs it runs at once.
    pub slots: u32,
    /// Attempts it holds.
    pub held: u32,
    /// How long ago it was last heard.
    pub last_heard_ms: u64,
    /// Queues it serves.
    pub queues: Vec<String>,
    /// What it says of itself.
    pub labels: BTreeMap<String, String>,
}

/// `GET /queues`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct QueueList {
    /// By name: those with jobs, and those a connected worker serves.
    pub queues: Vec<QueueStats>,
}

/// One queue.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct QueueStats {
    /// Its name.
    pub name: String,
    /// Jobs that may run now.
    pub queued: u64,
    /// Attempts that workers have.
    pub running: u64,
    /// How long the first of the queued has been waiting for a slot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oldest_wait_ms: Option<u64>,
    /// Connected workers that serve it.
    pub workers: u64,
    /// Their slots together, which other queues may share.
    pub slots: u64,
}

/// `GET /stats`: live jobs by state, the workers together, and what the server has done since its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Stats {
    /// Waiting for a time.
    pub scheduled: u64,
    /// May run now.
    pub queued: u64,
    /// On a worker.
    pub running: u64,
    /// Told to stop.
    pub cancelling: u64,
    /// Connected workers.
    pub workers: u64,
    /// Their slots together.
    pub slots: u64,
    /// Attempts they hold.
    #[serde(default)]
    pub held: u64,
    /// How long the first of the queued has been waiting for a slot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oldest_wait_ms: Option<u64>,
    /// Since the server's start.
    #[serde(default)]
    pub since_start: Done,
    /// The database.
    #[serde(default)]
    pub store: StoreStats,
    /// The worker port.
    #[serde(default)]
    pub net: NetStats,
    /// What jobs print.
    #[serde(default)]
    pub output: OutputStats,
}

/// The database: `GET /stats`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(default)]
pub struct StoreStats {
    /// Jobs that have not ended.
    pub live: u64,
    /// Commits made since the start.
    pub commits: u64,
    /// Commits refused since the start: no space, or no writes allowed.
    pub refused: u64,
    /// Bytes in its log, as of the last step of housekeeping; grows while somebody holds an old snapshot.
    pub log_bytes: u64,
}

/// The worker port: `GET /stats`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(default)]
pub struct NetStats {
    /// Open connections, of any kind.
    pub connections: u64,
    /// Connections accepted since the start.
    pub accepted: u64,
    /// Of these, told to go, for any reason.
    pub refused: u64,
    /// Of these, for a wrong token.
    pub unauthorised: u64,
    /// Workers cut off because they did not read.
    pub cut_off: u64,
    /// Bytes of output that wait for the disk.
    pub pending_output_bytes: u64,
}

/// Job output: `GET /stats`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(default)]
pub struct OutputStats {
    /// Bytes on disk.
    pub stored_bytes: u64,
    /// Bytes written since the start.
    pub appended_bytes: u64,
    /// Times that output found no place since the start.
    pub failures: u64,
    /// Segments deleted for age or size since the start.
    pub retired_segments: u64,
}

/// What a server has done since its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(default)]
pub struct Done {
    /// Jobs accepted.
    pub submitted: u64,
    /// Jobs ended, by state.
    pub succeeded: u64,
    /// Jobs ended, by state.
    pub failed: u64,
    /// Jobs ended, by state.
    pub cancelled: u64,
    /// Jobs ended, by state.
    pub expired: u64,
    /// Jobs ended, by state.
    pub skipped: u64,
    /// Attempts that ended without ending their job.
    pub attempts: u64,
    /// Frames of live questions sent to workers; one may ask about many jobs for many people.
    pub probes: u64,
}

/// `GET /version`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Version {
    /// Of the program.
    pub version: String,
    /// Of the HTTP interface.
    pub api: String,
    /// Of the worker protocol.
    pub protocol: u16,
    /// Random, made once with the data directory, in hex: tells a wiped or different server.
    pub cluster_id: String,
    /// This start of the server.
    pub epoch: u32,
}

/// `GET /healthz`, `GET /readyz` when all is well.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Health {
    /// `ok` or `ready`.
    pub status: Cow<'static, str>,
}

/// A line of `GET /jobs/{id}/logs` as `application/x-ndjson`, and the data of an event in `text/event-stream`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct LogPiece<'a> {
    /// When the worker read it.
    pub t: Timestamp,
    /// `stdout` or `stderr`.
    #[serde(borrow)]
    pub stream: Cow<'a, str>,
    /// Of which attempt.
    pub attempt: u16,
    /// Its place in that stream.
    pub offset: u64,
    /// The bytes, if they are UTF-8.
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    pub data: Option<Cow<'a, str>>,
    /// The bytes in base 64, if they are not.
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    pub data_b64: Option<Cow<'a, str>>,
}

/// Output was passed over: the event `resync`, and the line `{"resync":…}`, stand before the piece that goes on after
/// it. It was above the job's limit, gone before a slow reader came to it, or dropped by the worker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct LogResync<'a> {
    /// Of which attempt.
    pub attempt: u16,
    /// `stdout` or `stderr`.
    #[serde(borrow)]
    pub stream: Cow<'a, str>,
    /// Where that stream goes on.
    pub offset: u64,
    /// How much of it is missing before that.
    pub missing_bytes: u64,
}

/// The last event of an output, and the last line (as `{"end":…}`) of a followed one in its ndjson form.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct LogEnd {
    /// Whose.
    #[serde(with = "text::id")]
    pub id: JobId,
    /// Its state now.
    #[serde(with = "text::state")]
    pub state: JobState,
    /// Why, if there is something to explain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Cow<'static, str>>,
    /// The attempt the output is of; 0 if there is none.
    pub attempt: u16,
    /// Exit code, if a process had one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<u8>,
    /// Signal that ended it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<u8>,
    /// Bytes the job wrote that were not kept.
    #[serde(default)]
    pub truncated_bytes: u64,
    /// Bytes the worker counted that have not arrived.
    #[serde(default)]
    pub incomplete_bytes: u64,
}
