-- Version 3: a narrow row for the ends that most small jobs have. A column that holds nothing costs as much to write as
-- one that holds something, and `ends` has twenty.

-- Jobs that succeeded and have no more to tell: no figures, no result, no message. A job has a row here or in `ends`,
-- never in both.
CREATE TABLE done (
    id          INTEGER PRIMARY KEY,
    attempt     INTEGER NOT NULL,
    epoch       INTEGER NOT NULL,
    worker      INTEGER NOT NULL,
    started_ms  INTEGER,
    finished_ms INTEGER NOT NULL
) STRICT;

DROP VIEW job;
DROP VIEW attempt;

CREATE VIEW job AS
SELECT j.id                              AS id,
       coalesce(s.name, 'unfinished')    AS state,
       r.name                            AS reason,
       c.queue                           AS queue,
       j.name                            AS name,
       j.priority                        AS priority,
       coalesce(d.attempt, nullif(e.attempt, 0)) AS attempt,
       c.max_attempts                    AS max_attempts,
       w.name                            AS worker,
       j.created_ms                      AS created_at,
       coalesce(d.started_ms, e.started_ms)   AS started_at,
       coalesce(d.finished_ms, e.finished_ms) AS finished_at,
       e.exit_code                       AS exit_code,
       e.signal                          AS signal
FROM jobs j
LEFT JOIN classes c ON c.id = j.class
LEFT JOIN done d ON d.id = j.id
LEFT JOIN ends e ON e.id = j.id
LEFT JOIN state_names s ON s.code = CASE WHEN d.id IS NULL THEN e.state ELSE 10 END
LEFT JOIN reason_names r ON r.code = CASE WHEN d.id IS NULL THEN e.reason ELSE 0 END
LEFT JOIN workers w ON w.id = coalesce(d.worker, e.worker);

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
WHERE e.attempt > 0
UNION ALL
SELECT d.id, d.attempt, s.name, r.name, w.name, d.started_ms, d.finished_ms, NULL, NULL, NULL, NULL, NULL, NULL, NULL
FROM done d
LEFT JOIN state_names s ON s.code = 10
LEFT JOIN reason_names r ON r.code = 0
LEFT JOIN workers w ON w.id = d.worker;
