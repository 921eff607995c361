-- Version 2: access tokens that were made over HTTP, and the record of who did what.

-- What is kept checks a secret and cannot be used in its place. Those of the first start lie in files instead.
CREATE TABLE tokens (
    id                  TEXT PRIMARY KEY,
    role                TEXT NOT NULL,
    name                TEXT,
    -- for HTTP: SHA-256 of the secret; for workers: the two keys of the handshake
    digest              BLOB,
    stored_key          BLOB,
    server_key          BLOB,
    -- JSON arrays; empty = all
    queues              TEXT NOT NULL,
    allow               TEXT NOT NULL,
    requests_per_second INTEGER,
    jobs_per_second     INTEGER,
    created_ms          INTEGER NOT NULL,
    created_by          TEXT NOT NULL,
    expires_ms          INTEGER,
    revoked_ms          INTEGER,
    -- to a minute
    used_ms             INTEGER
) STRICT;

-- Who did what, from where, and what came of it; in the order of commits, kept for 30 days. One row stands for one
-- request, or for several of the same kind that came together.
CREATE TABLE audit (
    n        INTEGER PRIMARY KEY,
    at_ms    INTEGER NOT NULL,
    -- the id of an access token, empty without one
    token    TEXT NOT NULL,
    peer     TEXT,
    action   TEXT NOT NULL,
    object   TEXT,
    first    INTEGER,
    count    INTEGER,
    requests INTEGER NOT NULL,
    -- of HTTP
    status   INTEGER,
    code     TEXT
) STRICT;
