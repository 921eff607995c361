//! Every statement, named.

/// What makes each version of the schema from the one before it; the first from nothing.
pub(super) const SCHEMAS: &[&str] = &[
    include_str!("schema/0001_init.sql"),
    include_str!("schema/0002_tokens_and_audit.sql"),
    include_str!("schema/0003_done.sql"),
];

// Opening.
pub(super) const META_NEW: &str = "INSERT INTO meta (one, cluster) VALUES (1, ?1)";
pub(super) const META: &str = "SELECT cluster, mark_id, mark_seq, purged_id, epoch, batch, engine_us, boot, boottime_us, wall_ms, ids_through \
     FROM meta WHERE one = 1";
pub(super) const EPOCH_NEW: &str = "INSERT INTO epochs (epoch, nonce) VALUES (?1, ?2)";
pub(super) const EPOCH_LAST: &str = "SELECT max(epoch) FROM epochs";
pub(super) const EPOCHS_FROM: &str =
    "SELECT epoch, nonce FROM epochs WHERE epoch >= ?1 ORDER BY epoch";
/// Epochs grow with seq: the first row that recovery reads has the oldest epoch of all of them.
pub(super) const EPOCH_OLDEST: &str = "SELECT min(epoch) FROM (SELECT (SELECT epoch FROM assigned WHERE seq > ?1 ORDER BY seq LIMIT 1) AS epoch \
     UNION ALL SELECT min(run_epoch) FROM carried)";
pub(super) const CLASSES: &str = "SELECT id, spec FROM classes ORDER BY id";
pub(super) const TOKENS: &str = "SELECT id, role, name, digest, stored_key, server_key, queues, allow, requests_per_second, jobs_per_second, \
     created_ms, created_by, expires_ms, revoked_ms, used_ms FROM tokens ORDER BY created_ms, id";
pub(super) const SEQ_LAST: &str = "SELECT max(coalesce((SELECT max(seq) FROM assigned), 0), coalesce((SELECT max(seq) FROM started), 0))";
pub(super) const STATE_NAME: &str =
    "INSERT OR REPLACE INTO state_names (code, name) VALUES (?1, ?2)";
pub(super) const REASON_NAME: &str =
    "INSERT OR REPLACE INTO reason_names (code, name) VALUES (?1, ?2)";

// A commit.
pub(super) const CLASS: &str =
    "INSERT INTO classes (id, queue, max_attempts, spec) VALUES (?1, ?2, ?3, ?4)";
pub(super) const JOB_PLAIN: &str = "INSERT INTO jobs (id, class, priority, sync, created_ms, created_by, body) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)";
/// The same of several: `rarray` numbers the bodies from 1.
pub(super) const JOBS_PLAIN: &str = "INSERT INTO jobs (id, class, priority, sync, created_ms, created_by, body) \
     SELECT ?1 + rowid, ?2, ?3, ?4, ?5, ?6, value FROM rarray(?7)";
pub(super) const JOB: &str = "INSERT INTO jobs (id, class, priority, sync, created_ms, created_by, body, due_ms, expires_ms, deadline_ms, \
     engine, \
     retry_of, name, labels) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14)";
pub(super) const KEY_NEW: &str = "INSERT OR REPLACE INTO keys (token, key, hash, first, count, at_ms) VALUES (?1, ?2, ?3, ?4, ?5, ?6)";
pub(super) const WORKER: &str =
    "INSERT INTO workers (id, name, instance, at_ms) VALUES (?1, ?2, ?3, ?4)";
pub(super) const ASSIGNED: &str =
    "INSERT INTO assigned (seq, epoch, worker, at_us, attempts) VALUES (?1, ?2, ?3, ?4, ?5)";
pub(super) const STARTED: &str =
    "INSERT INTO started (seq, epoch, worker, at_us, attempts) VALUES (?1, ?2, ?3, ?4, ?5)";
pub(super) const ATTEMPT: &str = "INSERT INTO attempts (job, number, epoch, worker, started_ms, finished_ms, reason, charge, exit_code, signal, \
     user_ms, system_ms, peak_rss_bytes, stdout_bytes, stderr_bytes, message, result, stderr_tail, wall_ms, due_us, due_ms) \
     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19, ?20, ?21)";
pub(super) const DONE: &str = "INSERT INTO done (id, attempt, epoch, worker, started_ms, finished_ms) VALUES (?1, ?2, ?3, ?4, ?5, ?6)";
/// The same of all from one id to another: a statement's own cost is most of a row's.
pub(super) const DONE_FROM_TO: &str = "INSERT INTO done (id, attempt, epoch, worker, started_ms, finished_ms) \
     SELECT value, ?2, ?3, ?4, ?5, ?6 FROM generate_series(?1, ?7)";
pub(super) const END: &str = "INSERT INTO ends (id, attempt, epoch, worker, started_ms, finished_ms, reason, state, exit_code, signal, \
     user_ms, system_ms, peak_rss_bytes, stdout_bytes, stderr_bytes, message, result, stderr_tail, wall_ms) \
     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19)";
pub(super) const MARK: &str =
    "INSERT OR IGNORE INTO marks (job, at_ms, reason, note) VALUES (?1, ?2, ?3, ?4)";
pub(super) const PURGE: &str = "UPDATE jobs SET body = NULL WHERE id = ?1 AND (EXISTS (SELECT 1 FROM done WHERE done.id = ?1) \
     OR EXISTS (SELECT 1 FROM ends WHERE ends.id = ?1))";
pub(super) const META_COMMIT: &str = "UPDATE meta SET epoch = ?1, batch = ?2, engine_us = ?3, boot = ?4, boottime_us = ?5, wall_ms = ?6, \
     ids_through = ?7 WHERE one = 1";
pub(super) const METRICS: &str = "INSERT OR REPLACE INTO metrics (at_ms, epoch, submitted, succeeded, failed, cancelled, expired, skipped, \
     attempts, \
     commits, refused, live) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)";
pub(super) const TOKEN_NEW: &str = "INSERT INTO tokens (id, role, name, digest, stored_key, server_key, queues, allow, requests_per_second, \
     jobs_per_second, created_ms, created_by, expires_ms) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13)";
pub(super) const TOKEN_REVOKED: &str =
    "UPDATE tokens SET revoked_ms = coalesce(revoked_ms, ?2) WHERE id = ?1";
pub(super) const TOKEN_USED: &str = "UPDATE tokens SET used_ms = ?2 WHERE id = ?1";
pub(super) const AUDIT_NEW: &str = "INSERT INTO audit (at_ms, token, peer, action, object, first, count, requests, status, code) \
     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)";
pub(super) const KEY: &str =
    "SELECT hash, first, count, at_ms FROM keys WHERE token = ?1 AND key = ?2";

// What is carried over the mark.
pub(super) const CARRIED_ONE: &str = "SELECT job, attempt, ended, failures, losses, later, ever_started, run_attempt, run_epoch, run_worker, \
     run_started_us, due_us, due_ms, due_reason, cancelling FROM carried WHERE job = ?1";
pub(super) const CARRIED_ALL: &str = "SELECT job, attempt, ended, failures, losses, later, ever_started, run_attempt, run_epoch, run_worker, \
     run_started_us, due_us, due_ms, due_reason, cancelling FROM carried ORDER BY job";
pub(super) const CARRIED_PUT: &str = "INSERT OR REPLACE INTO carried (job, attempt, ended, failures, losses, later, ever_started, run_attempt, \
     run_epoch, \
     run_worker, run_started_us, due_us, due_ms, due_reason, cancelling) \
     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15)";
pub(super) const CARRIED_IN: &str = "SELECT 1 FROM carried WHERE job >= ?1 AND job <= ?2 LIMIT 1";
pub(super) const CARRIED_DROP: &str = "DELETE FROM carried WHERE job = ?1";

// Recovery.
pub(super) const WORKERS: &str = "SELECT id, name, instance FROM workers ORDER BY id";
pub(super) const ENDS_ABOVE: &str =
    "SELECT id FROM done WHERE id > ?1 UNION ALL SELECT id FROM ends WHERE id > ?1 ORDER BY id";
pub(super) const ASSIGNED_AFTER: &str =
    "SELECT seq, epoch, worker, at_us, attempts FROM assigned WHERE seq > ?1 ORDER BY seq";
pub(super) const STARTED_AFTER: &str =
    "SELECT seq, epoch, worker, at_us, attempts FROM started WHERE seq > ?1 ORDER BY seq";
pub(super) const ATTEMPTS_ABOVE: &str = "SELECT job, number, charge, started_ms IS NOT NULL, due_us, due_ms FROM attempts WHERE job > ?1 \
     ORDER BY job, number";
pub(super) const MARKS_ABOVE: &str = "SELECT job, reason FROM marks WHERE job > ?1 ORDER BY job";
pub(super) const WAITING: &str = "SELECT id, class, priority, due_ms, expires_ms, deadline_ms, engine FROM jobs WHERE id > ?1 AND id <= ?2 \
     ORDER BY id";
/// The same of jobs without times of their own: class and priority as one number (`scan::kind`), NULL for the others.
pub(super) const WAITING_PLAIN: &str = "SELECT id, CASE WHEN coalesce(due_ms, expires_ms, deadline_ms, engine) IS NULL \
     THEN (class << 32) + priority END FROM jobs WHERE id > ?1 AND id <= ?2 ORDER BY id";
pub(super) const WAITING_ONE: &str =
    "SELECT id, class, priority, due_ms, expires_ms, deadline_ms, engine FROM jobs WHERE id = ?1";

// The log's way into the file. Both give: busy, pages in the log, of these in the file.
pub(super) const LOG_LOOK: &str = "PRAGMA wal_checkpoint(NOOP)";
pub(super) const LOG_MOVE: &str = "PRAGMA wal_checkpoint(PASSIVE)";

// Moving the mark.
pub(super) const JOB_LAST: &str = "SELECT coalesce(max(id), 0) FROM jobs";
pub(super) const JOBS_IN: &str = "SELECT count(*) FROM jobs WHERE id > ?1 AND id <= ?2";
pub(super) const ENDS_IN: &str = "SELECT (SELECT count(*) FROM done WHERE id > ?1 AND id <= ?2) + (SELECT count(*) FROM ends WHERE id > ?1 AND id <= ?2)";
pub(super) const LIVE_IN: &str = "SELECT id FROM jobs WHERE id > ?1 AND id <= ?2 AND NOT EXISTS (SELECT 1 FROM done WHERE done.id = jobs.id) \
     AND NOT EXISTS (SELECT 1 FROM ends WHERE ends.id = jobs.id) ORDER BY id LIMIT ?3";
pub(super) const ATTEMPTS_OF: &str = "SELECT job, number, charge, started_ms IS NOT NULL, due_us, due_ms FROM attempts WHERE job = ?1 ORDER BY number";
pub(super) const MARK_OF: &str = "SELECT job, reason FROM marks WHERE job = ?1";
pub(super) const HAS_END: &str =
    "SELECT 1 FROM done WHERE id = ?1 UNION ALL SELECT 1 FROM ends WHERE id = ?1";
pub(super) const HAS_ATTEMPT: &str = "SELECT 1 FROM attempts WHERE job = ?1 AND number = ?2";
pub(super) const META_MARK: &str = "UPDATE meta SET mark_id = ?1, mark_seq = ?2 WHERE one = 1";
/// The shares of both tables in the order they were written: 0 = assigned, 1 = started.
pub(super) const SHARES_AFTER: &str = "SELECT seq, epoch, worker, at_us, attempts, 0 AS what FROM assigned WHERE seq > ?1 \
     UNION ALL SELECT seq, epoch, worker, at_us, attempts, 1 FROM started WHERE seq > ?1 ORDER BY seq LIMIT ?2";

// Retention.
pub(super) const OLD_ENDS: &str = "SELECT id, finished_ms FROM done WHERE id > ?1 AND id <= ?2 UNION ALL SELECT id, finished_ms FROM ends WHERE id > ?1 AND id <= ?2 \
     ORDER BY id LIMIT ?3";
pub(super) const DROP_JOBS: &str = "DELETE FROM jobs WHERE id > ?1 AND id <= ?2 AND (EXISTS (SELECT 1 FROM done WHERE done.id = jobs.id) \
     OR EXISTS (SELECT 1 FROM ends WHERE ends.id = jobs.id))";
pub(super) const DROP_ATTEMPTS: &str = "DELETE FROM attempts WHERE job > ?1 AND job <= ?2 AND (EXISTS (SELECT 1 FROM done WHERE done.id = job) \
     OR EXISTS (SELECT 1 FROM ends WHERE ends.id = job))";
pub(super) const DROP_MARKS: &str = "DELETE FROM marks WHERE job > ?1 AND job <= ?2 AND (EXISTS (SELECT 1 FROM done WHERE done.id = job) \
     OR EXISTS (SELECT 1 FROM ends WHERE ends.id = job))";
pub(super) const DROP_DONE: &str = "DELETE FROM done WHERE id > ?1 AND id <= ?2";
pub(super) const DROP_ENDS: &str = "DELETE FROM ends WHERE id > ?1 AND id <= ?2";
pub(super) const META_PURGED: &str = "UPDATE meta SET purged_id = max(purged_id, ?1) WHERE one = 1";
pub(super) const DROP_ASSIGNED: &str = "DELETE FROM assigned WHERE seq IN (SELECT seq FROM assigned WHERE seq <= ?1 AND at_us < ?2 ORDER BY seq LIMIT ?3)";
pub(super) const DROP_STARTED: &str = "DELETE FROM started WHERE seq IN (SELECT seq FROM started WHERE seq <= ?1 AND at_us < ?2 ORDER BY seq LIMIT ?3)";
pub(super) const DROP_KEYS: &str = "DELETE FROM keys WHERE n IN (SELECT n FROM (SELECT n, at_ms FROM keys ORDER BY n LIMIT ?2) WHERE at_ms < ?1)";
pub(super) const DROP_METRICS: &str = "DELETE FROM metrics WHERE at_ms IN (SELECT at_ms FROM metrics WHERE at_ms < ?1 ORDER BY at_ms LIMIT ?2)";
pub(super) const DROP_TOKENS: &str = "DELETE FROM tokens WHERE revoked_ms < ?1 OR expires_ms < ?1";
pub(super) const DROP_AUDIT: &str = "DELETE FROM audit WHERE n IN (SELECT n FROM (SELECT n, at_ms FROM audit ORDER BY n LIMIT ?2) WHERE at_ms < ?1)";

// Reading.
pub(super) const PURGED_AND_PROMISED: &str =
    "SELECT purged_id, ids_through FROM meta WHERE one = 1";
/// A job and its end: the columns of `read::record`. The body is asked for apart.
pub(super) const RECORD: &str = "SELECT j.id, j.class, j.priority, j.sync, j.created_ms, j.created_by, j.due_ms, j.expires_ms, j.deadline_ms, \
     j.retry_of, j.name, j.labels, CASE WHEN d.id IS NULL THEN e.state ELSE 10 END, coalesce(d.attempt, e.attempt), \
     coalesce(d.epoch, e.epoch), CASE WHEN d.id IS NULL THEN e.reason ELSE 0 END, w.name, \
     coalesce(d.started_ms, e.started_ms), coalesce(d.finished_ms, e.finished_ms), \
     e.exit_code, e.signal, e.user_ms, e.system_ms, e.peak_rss_bytes, e.stdout_bytes, e.stderr_bytes, e.message, \
     e.result, e.stderr_tail, e.wall_ms FROM jobs j LEFT JOIN done d ON d.id = j.id LEFT JOIN ends e ON e.id = j.id \
     LEFT JOIN workers w ON w.id = coalesce(d.worker, e.worker) \
     WHERE j.id = ?1";
pub(super) const ATTEMPTS: &str = "SELECT a.number, a.epoch, a.reason, w.name, a.started_ms, a.finished_ms, a.exit_code, a.signal, a.user_ms, \
     a.system_ms, a.peak_rss_bytes, a.stdout_bytes, a.stderr_bytes, a.message, a.result, a.stderr_tail, a.wall_ms \
     FROM attempts a LEFT JOIN workers w ON w.id = a.worker WHERE a.job = ?1 ORDER BY a.number";
pub(super) const BODY: &str = "SELECT body FROM jobs WHERE id = ?1";
pub(super) const END_OF: &str =
    "SELECT 10, 0 FROM done WHERE id = ?1 UNION ALL SELECT state, reason FROM ends WHERE id = ?1";
pub(super) const CLASS_ONE: &str = "SELECT spec FROM classes WHERE id = ?1";
/// Candidates for a page, by id: what a filter needs, and nothing else of the row.
pub(super) const CANDIDATES_UP: &str = "SELECT j.id, j.class, j.created_ms, j.name, \
     coalesce((SELECT 10 FROM done d WHERE d.id = j.id), (SELECT e.state FROM ends e WHERE e.id = j.id)) FROM jobs j \
     WHERE j.id > ?1 ORDER BY j.id LIMIT ?2";
pub(super) const CANDIDATES_DOWN: &str = "SELECT j.id, j.class, j.created_ms, j.name, \
     coalesce((SELECT 10 FROM done d WHERE d.id = j.id), (SELECT e.state FROM ends e WHERE e.id = j.id)) FROM jobs j \
     WHERE j.id < ?1 ORDER BY j.id DESC LIMIT ?2";
pub(super) const CANDIDATE: &str =
    "SELECT j.id, j.class, j.created_ms, j.name, NULL FROM jobs j WHERE j.id = ?1";
/// Rare ends of one state, by the partial index (which wants to see its own condition).
pub(super) const RARE_UP: &str =
    "SELECT id FROM ends WHERE state <> 10 AND state = ?1 AND id > ?2 ORDER BY id LIMIT ?3";
pub(super) const RARE_DOWN: &str =
    "SELECT id FROM ends WHERE state <> 10 AND state = ?1 AND id < ?2 ORDER BY id DESC LIMIT ?3";
pub(super) const AUDIT_DOWN: &str = "SELECT n, at_ms, token, peer, action, object, first, count, requests, status, code FROM audit \
     WHERE n < ?1 ORDER BY n DESC";
/// For finding by time: the first job from an id on.
pub(super) const CREATED_FROM: &str =
    "SELECT id, created_ms FROM jobs WHERE id >= ?1 ORDER BY id LIMIT 1";

// Verification. Everything by its key, so that it streams.
pub(super) const V_SCHEMA: &str =
    "SELECT type, name, sql FROM sqlite_schema WHERE name NOT LIKE 'sqlite_%' ORDER BY name";
pub(super) const V_META: &str = "SELECT length(cluster), mark_id, mark_seq, purged_id, epoch, batch, ids_through, \
     (engine_us IS NULL) + (boot IS NULL) + (boottime_us IS NULL) + (wall_ms IS NULL) FROM meta WHERE one = 1";
pub(super) const V_EPOCHS: &str = "SELECT epoch, length(nonce) FROM epochs ORDER BY epoch";
pub(super) const V_CLASSES: &str = "SELECT id, queue, max_attempts, spec FROM classes ORDER BY id";
pub(super) const V_WORKERS: &str = "SELECT id FROM workers ORDER BY id";
/// `typeof` looks at a row's head only, never at the body's pages.
pub(super) const V_JOBS: &str = "SELECT id, class, priority, sync, typeof(body) = 'null', length(engine), retry_of FROM jobs \
     WHERE id >= ?1 ORDER BY id";
pub(super) const V_ENDS: &str = "SELECT id, state, reason, attempt, epoch, worker, output_place FROM ends WHERE id >= ?1 \
     UNION ALL SELECT id, 10, 0, attempt, epoch, worker, 0 FROM done WHERE id >= ?1 ORDER BY id";
pub(super) const V_ATTEMPTS: &str = "SELECT job, number, epoch, worker, reason, charge, started_ms IS NOT NULL, \
     due_us IS NOT NULL AND due_ms IS NOT NULL FROM attempts WHERE job >= ?1 ORDER BY job, number, epoch";
pub(super) const V_MARKS: &str = "SELECT job, reason FROM marks WHERE job >= ?1 ORDER BY job";
pub(super) const V_CARRIED: &str = "SELECT job, attempt, ended, failures, losses, later, ever_started, run_attempt, run_epoch, run_worker, \
     due_us IS NOT NULL, due_ms IS NOT NULL, due_reason, cancelling FROM carried WHERE job >= ?1 ORDER BY job";
/// The shares of both tables in the order they were written: 0 = assigned, 1 = started.
pub(super) const V_SHARES: &str = "SELECT seq, epoch, worker, at_us, attempts, 0 AS what FROM assigned \
     UNION ALL SELECT seq, epoch, worker, at_us, attempts, 1 FROM started ORDER BY seq";
pub(super) const V_KEYS: &str = "SELECT n, length(hash), first, count FROM keys ORDER BY n";
pub(super) const V_JOBS_FROM_TO: &str = "SELECT count(*) FROM jobs WHERE id >= ?1 AND id <= ?2";
pub(super) const V_TOKENS: &str = "SELECT id, created_ms, expires_ms, revoked_ms, length(digest), length(stored_key), length(server_key) \
     FROM tokens ORDER BY id";
pub(super) const V_AUDIT: &str = "SELECT n, at_ms, token, peer, action, first, count, requests, status, code FROM audit ORDER BY n";
pub(super) const V_METRICS: &str = "SELECT epoch, commits, submitted, succeeded, failed, cancelled, expired, skipped, attempts, refused, live \
     FROM metrics ORDER BY epoch, commits";
pub(super) const V_NAMES: &str =
    "SELECT code, name FROM state_names UNION ALL SELECT code + 1000, name FROM reason_names";
