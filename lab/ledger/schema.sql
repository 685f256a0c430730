-- The ledger of runs. Everything in here is made from the records in the runs' folders.
CREATE TABLE run (
    name TEXT PRIMARY KEY,
    stamp TEXT NOT NULL,           -- of its record.json: what was read
    created TEXT NOT NULL,
    finished TEXT NOT NULL,
    outcome TEXT NOT NULL,
    sentence TEXT NOT NULL,
    title TEXT NOT NULL,
    series_digest TEXT NOT NULL,
    kernel TEXT NOT NULL,
    version TEXT NOT NULL,
    "commit" TEXT NOT NULL,
    tree TEXT NOT NULL,
    profile TEXT NOT NULL,
    archs TEXT NOT NULL,           -- comma-separated
    plan_digest TEXT NOT NULL,
    lab_version TEXT NOT NULL,
    findings INTEGER NOT NULL,
    trials INTEGER NOT NULL,
    wall_s REAL NOT NULL
) STRICT;

-- Records that could not be read, so that they are not read again until they change.
CREATE TABLE unreadable (
    name TEXT PRIMARY KEY,
    stamp TEXT NOT NULL,
    reason TEXT NOT NULL
) STRICT;

-- What two results must share before they may be compared, besides the kernel.
CREATE TABLE ground (
    id INTEGER PRIMARY KEY,
    arch TEXT NOT NULL,
    profile TEXT NOT NULL,
    accelerator TEXT NOT NULL,
    cpu TEXT NOT NULL,
    setup TEXT NOT NULL,
    UNIQUE (arch, profile, accelerator, cpu, setup)
) STRICT;

CREATE TABLE case_count (
    run TEXT NOT NULL REFERENCES run ON DELETE CASCADE,
    ground INTEGER NOT NULL REFERENCES ground,
    side TEXT NOT NULL,
    kernel_key TEXT NOT NULL,
    name TEXT NOT NULL,
    passed INTEGER NOT NULL,
    failed INTEGER NOT NULL,
    skipped INTEGER NOT NULL,
    unknown INTEGER NOT NULL,
    duration_s REAL NOT NULL,
    comparison TEXT,
    reason TEXT NOT NULL,
    PRIMARY KEY (run, ground, side, kernel_key, name)
) STRICT, WITHOUT ROWID;
CREATE INDEX case_by_name ON case_count (name, ground);

CREATE TABLE splat_count (
    run TEXT NOT NULL REFERENCES run ON DELETE CASCADE,
    ground INTEGER NOT NULL REFERENCES ground,
    side TEXT NOT NULL,
    kernel_key TEXT NOT NULL,
    key TEXT NOT NULL,
    kind TEXT NOT NULL,
    title TEXT NOT NULL,
    seen INTEGER NOT NULL,
    exposed INTEGER NOT NULL,
    allowed INTEGER NOT NULL,
    comparison TEXT,
    PRIMARY KEY (run, ground, side, kernel_key, key)
) STRICT, WITHOUT ROWID;
CREATE INDEX splat_by_key ON splat_count (key, ground);

CREATE TABLE metric (
    run TEXT NOT NULL REFERENCES run ON DELETE CASCADE,
    ground INTEGER NOT NULL REFERENCES ground,
    side TEXT NOT NULL,
    kernel_key TEXT NOT NULL,
    name TEXT NOT NULL,
    metric TEXT NOT NULL,
    median REAL NOT NULL,
    count INTEGER NOT NULL,
    PRIMARY KEY (run, ground, side, kernel_key, name, metric)
) STRICT, WITHOUT ROWID;
CREATE INDEX metric_by_name ON metric (name, metric, ground);
