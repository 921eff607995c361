-- Hostler's database, version 2. Append-only where it is hot: a job that succeeds at its first try writes one row of
-- `jobs`, one of `ends`, and its share of one row of `assigned`.
--
-- Times: *_ms are wall-clock milliseconds since 1970 (UTC), *_us are microseconds of the engine's own clock.
-- The views `job` and `attempt` at the end are public and stable; everything else may change with the version.

-- What is true of the whole file. One row; the second group is written with each commit.
CREATE TABLE meta (
    one         INTEGER PRIMARY KEY CHECK (one = 1),
    cluster     BLOB NOT NULL,
    -- the low-water mark: what recovery needs of jobs up to mark_id is in `carried`, but for assigned and started
    -- rows after mark_seq
    mark_id     INTEGER NOT NULL DEFAULT 0,
    mark_seq    INTEGER NOT NULL DEFAULT 0,
    -- finished jobs up to here have been dropped
    purged_id   INTEGER NOT NULL DEFAULT 0,
    -- the last commit: whose, which, and the four clocks at it
    epoch       INTEGER NOT NULL DEFAULT 0,
    batch       INTEGER NOT NULL DEFAULT 0,
    engine_us   INTEGER,
    boot        BLOB,
    boottime_us INTEGER,
    wall_ms     INTEGER,
    -- ids below this are used or promised
    ids_through INTEGER NOT NULL DEFAULT 1
) STRICT;

-- The server's starts. The nonce tells a worker whether an epoch is the one it knows, or a number in a restored backup.
CREATE TABLE epochs (
    epoch INTEGER PRIMARY KEY,
    nonce BLOB NOT NULL
) STRICT;

-- What jobs of one kind have in common.
CREATE TABLE classes (
    id           INTEGER PRIMARY KEY,
    queue        TEXT NOT NULL,
    max_attempts INTEGER NOT NULL,
    spec         TEXT NOT NULL
) STRICT;

-- Accepted jobs. The body comes last, so that reading the rest of a row never touches its overflow pages.
CREATE TABLE jobs (
    id          INTEGER PRIMARY KEY,
    class       INTEGER NOT NULL,
    priority    INTEGER NOT NULL,
    sync        INTEGER NOT NULL,
    created_ms  INTEGER NOT NULL,
    due_ms      INTEGER,
    expires_ms  INTEGER,
    deadline_ms INTEGER,
    -- the same three where they lie on the engine's clock, exactly: 3 × 8 bytes, little-endian, all ones = none
    engine      BLOB,
    retry_of    INTEGER,
    created_by  TEXT NOT NULL,
    name        TEXT,
    labels      TEXT,
    body        BLOB
) STRICT;

-- How jobs ended: one row each, for ever.
CREATE TABLE ends (
    id             INTEGER PRIMARY KEY,
    state          INTEGER NOT NULL,
    reason         INTEGER NOT NULL,
    attempt        INTEGER NOT NULL,
    epoch          INTEGER NOT NULL,
    worker         INTEGER,
    started_ms     INTEGER,
    finished_ms    INTEGER NOT NULL,
    exit_code      INTEGER,
    signal         INTEGER,
    wall_ms        INTEGER,
    user_ms        INTEGER,
    system_ms      INTEGER,
    peak_rss_bytes INTEGER,
    stdout_bytes   INTEGER,
    stderr_bytes   INTEGER,
    message        TEXT,
    result         BLOB,
    stderr_tail    BLOB,
    -- Where the attempt's output lives: 0 = the segments beside this file. Other stores of output get other numbers.
    output_place   INTEGER NOT NULL DEFAULT 0
) STRICT;

-- Ends other than success (10) are rare, and what people look for.
CREATE INDEX ends_rare ON ends (state, id) WHERE state <> 10;

-- Attempts given to a worker, one row a worker and commit; `attempts` holds ranges (store/ranges.rs).
CREATE TABLE assigned (
    seq      INTEGER PRIMARY KEY,
    epoch    INTEGER NOT NULL,
    worker   INTEGER NOT NULL,
    at_us    INTEGER NOT NULL,
    attempts BLOB NOT NULL
) STRICT;

-- Attempts that were still running when their start was written. Shares its numbers with `assigned`.
CREATE TABLE started (
    seq      INTEGER PRIMARY KEY,
    epoch    INTEGER NOT NULL,
    worker   INTEGER NOT NULL,
    at_us    INTEGER NOT NULL,
    attempts BLOB NOT NULL,
    output_place INTEGER NOT NULL DEFAULT 0
) STRICT;

-- Attempts that ended and did not end their job.
CREATE TABLE attempts (
    job            INTEGER NOT NULL,
    number         INTEGER NOT NULL,
    epoch          INTEGER NOT NULL,
    worker         INTEGER NOT NULL,
    reason         INTEGER NOT NULL,
    charge         INTEGER NOT NULL,
    started_ms     INTEGER,
    finished_ms    INTEGER NOT NULL,
    due_us         INTEGER,
    due_ms         INTEGER,
    exit_code      INTEGER,
    signal         INTEGER,
    wall_ms        INTEGER,
    user_ms        INTEGER,
    system_ms      INTEGER,
    peak_rss_bytes INTEGER,
    stdout_bytes   INTEGER,
    stderr_bytes   INTEGER,
    message        TEXT,
    result         BLOB,
    stderr_tail    BLOB,
    output_place   INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (job, number, epoch)
) STRICT, WITHOUT ROWID;

-- Running jobs that were told to stop.
CREATE TABLE marks (
    job    INTEGER PRIMARY KEY,
    at_ms  INTEGER NOT NULL,
    reason INTEGER NOT NULL,
    note   TEXT
) STRICT;

-- The history of unfinished jobs up to the mark. A row goes with its job's end.
CREATE TABLE carried (
    job            INTEGER PRIMARY KEY,
    attempt        INTEGER NOT NULL,
    ended          INTEGER NOT NULL,
    failures       INTEGER NOT NULL,
    losses         INTEGER NOT NULL,
    later          INTEGER NOT NULL,
    ever_started   INTEGER NOT NULL,
    run_attempt    INTEGER,
    run_epoch      INTEGER,
    run_worker     INTEGER,
    run_started_us INTEGER,
    due_us         INTEGER,
    due_ms         INTEGER,
    due_reason     INTEGER,
    cancelling     INTEGER
) STRICT;

-- Worker instances.
CREATE TABLE workers (
    id       INTEGER PRIMARY KEY,
    name     TEXT NOT NULL,
    instance INTEGER NOT NULL,
    at_ms    INTEGER NOT NULL
) STRICT;

-- Idempotency keys, oldest first.
CREATE TABLE keys (
    n     INTEGER PRIMARY KEY,
    token TEXT NOT NULL,
    key   TEXT NOT NULL,
    hash  BLOB NOT NULL,
    first INTEGER NOT NULL,
    count INTEGER NOT NULL,
    at_ms INTEGER NOT NULL,
    UNIQUE (token, key)
) STRICT;

-- Counters since the server's start, every 10 s while they change.
CREATE TABLE metrics (
    at_ms     INTEGER PRIMARY KEY,
    epoch     INTEGER NOT NULL,
    submitted INTEGER NOT NULL,
    succeeded INTEGER NOT NULL,
    failed    INTEGER NOT NULL,
    cancelled INTEGER NOT NULL,
    expired   INTEGER NOT NULL,
    skipped   INTEGER NOT NULL,
    attempts  INTEGER NOT NULL,
    commits   INTEGER NOT NULL,
    refused   INTEGER NOT NULL,
    live      INTEGER NOT NULL
) STRICT;

-- Names for the numbers above; filled at each start from the program's own lists.
CREATE TABLE state_names (code INTEGER PRIMARY KEY, name TEXT NOT NULL) STRICT;
CREATE TABLE reason_names (code INTEGER PRIMARY KEY, name TEXT NOT NULL) STRICT;

CREATE VIEW job AS
SELECT j.id                              AS id,
       coalesce(s.name, 'unfinished')    AS state,
       r.name                            AS reason,
       c.queue                           AS queue,
       j.name                            AS name,
       j.priority                        AS priority,
       nullif(e.attempt, 0)              AS attempt,
       c.max_attempts                    AS max_attempts,
       w.name                            AS worker,
       j.created_ms                      AS created_at,
       e.started_ms                      AS started_at,
       e.finished_ms                     AS finished_at,
       e.exit_code                       AS exit_code,
       e.signal                          AS signal
FROM jobs j
LEFT JOIN classes c ON c.id = j.class
LEFT JOIN ends e ON e.id = j.id
LEFT JOIN state_names s ON s.code = e.state
LEFT JOIN reason_names r ON r.code = e.reason
LEFT JOIN workers w ON w.id = e.worker;

CREATE VIEW attempt AS
SELECT a.job                             AS job,
       a.number                          AS number,
       CASE a.charge WHEN 0 THEN 'returned' WHEN 1 THEN 'failed' WHEN 2 THEN 'lost' ELSE 'later' END AS state,
       r.name                            AS reason,
       w.name                            AS worker,
       a.started_ms                      AS started_at,
       a.finished_ms                     AS finished_at,
       a.exit_code                       AS exit_code,
       a.signal                          AS signal,
       a.user_ms                         AS user_ms,
       a.system_ms                       AS system_ms,
       a.peak_rss_bytes                  AS peak_rss_bytes,
       a.stdout_bytes + a.stderr_bytes   AS output_bytes,
       a.wall_ms                         AS wall_ms
FROM attempts a
LEFT JOIN reason_names r ON r.code = a.reason
LEFT JOIN workers w ON w.id = a.worker
UNION ALL
SELECT e.id, e.attempt, s.name, r.name, w.name, e.started_ms, e.finished_ms, e.exit_code, e.signal,
       e.user_ms, e.system_ms, e.peak_rss_bytes, e.stdout_bytes + e.stderr_bytes, e.wall_ms
FROM ends e
LEFT JOIN state_names s ON s.code = e.state
LEFT JOIN reason_names r ON r.code = e.reason
LEFT JOIN workers w ON w.id = e.worker
WHERE e.attempt > 0;
