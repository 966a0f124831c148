-- +goose Up

-- Times are nanoseconds since 1970 (UTC), 0 for none.

CREATE TABLE jobs (
    id            INTEGER PRIMARY KEY AUTOINCREMENT,
    epoch         INTEGER NOT NULL,
    state         TEXT    NOT NULL CHECK (state IN ('claimed', 'started', 'finished')),
    runner        TEXT    NOT NULL,
    gitlab_url    TEXT    NOT NULL,
    gitlab_job_id INTEGER NOT NULL,
    agent         TEXT    NOT NULL,
    salt          BLOB    NOT NULL, -- of the job's data key
    token         BLOB    NOT NULL, -- sealed
    envelope      TEXT    NOT NULL, -- JSON
    result        TEXT,             -- JSON
    claimed_at    INTEGER NOT NULL,
    started_at    INTEGER NOT NULL DEFAULT 0,
    UNIQUE (gitlab_url, gitlab_job_id)
) STRICT;

-- AUTOINCREMENT keeps its mark here; the row must be there before the first job.
INSERT INTO sqlite_sequence (name, seq) VALUES ('jobs', 0);

-- A table of its own, so that no change of a job's row writes its payload again.
CREATE TABLE payloads (
    job  INTEGER PRIMARY KEY,
    body BLOB NOT NULL -- sealed
) STRICT;

CREATE TABLE join_tokens (
    id            TEXT    PRIMARY KEY,
    secret_digest BLOB    NOT NULL UNIQUE,
    uses          INTEGER NOT NULL CHECK (uses >= 0),
    created_at    INTEGER NOT NULL,
    expires_at    INTEGER NOT NULL,
    revoked       INTEGER NOT NULL
) STRICT;

CREATE TABLE agents (
    id          TEXT    PRIMARY KEY,
    name        TEXT    NOT NULL,
    enrolled_at INTEGER NOT NULL,
    key_digest  TEXT    NOT NULL,
    token_id    TEXT    NOT NULL,
    removed     INTEGER NOT NULL,
    UNIQUE (token_id, key_digest)
) STRICT;

CREATE UNIQUE INDEX agents_by_name ON agents (name) WHERE removed = 0;

CREATE TABLE runners (
    name      TEXT PRIMARY KEY,
    system_id TEXT NOT NULL
) STRICT;

-- One row, sealed with the master key that belongs to this store.
CREATE TABLE master_key_check (
    id     INTEGER PRIMARY KEY CHECK (id = 1),
    salt   BLOB NOT NULL,
    sealed BLOB NOT NULL
) STRICT;
