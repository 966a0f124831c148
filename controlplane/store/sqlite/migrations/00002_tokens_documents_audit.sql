-- +goose Up

CREATE TABLE runner_tokens (
    runner      TEXT    PRIMARY KEY,
    salt        BLOB    NOT NULL,
    token       BLOB    NOT NULL, -- sealed
    configured  TEXT    NOT NULL,
    obtained_at INTEGER NOT NULL,
    expires_at  INTEGER NOT NULL
) STRICT;

CREATE TABLE documents (
    name       TEXT    PRIMARY KEY,
    version    INTEGER NOT NULL,
    body       BLOB    NOT NULL,
    changed_at INTEGER NOT NULL,
    changed_by TEXT    NOT NULL
) STRICT;

CREATE TABLE audit (
    id      INTEGER PRIMARY KEY AUTOINCREMENT,
    at      INTEGER NOT NULL,
    actor   TEXT    NOT NULL,
    action  TEXT    NOT NULL,
    subject TEXT    NOT NULL,
    detail  TEXT    NOT NULL
) STRICT;
