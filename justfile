# `just` alone lists the recipes.
default:
    @just --list

# The first thing to run: synthetic patients, two syncs, and what became of the tables
demo *ARGS:
    cargo run -- demo {{ARGS}}

# All tests
test *ARGS:
    cargo test {{ARGS}}

# Formatting and lints, as CI sees them
lint:
    cargo fmt --all --check
    cargo clippy --all-targets -- -D warnings

# The tables, read by Polars, DuckDB and delta-rs; DATA is a folder of NDJSON files
interop DATA="":
    cargo build
    tests/interop/run.sh "$(cargo metadata --format-version 1 --no-deps | python3 -c 'import json, sys; print(json.load(sys.stdin)["target_directory"])')/debug/fhir-sync" {{DATA}}

# The same by every engine that we know, also Spark and Pathling, of tables that `demo --data DATA` left; takes minutes
interop-all LAKE DATA:
    cargo build
    tests/interop/all.sh "$(cargo metadata --format-version 1 --no-deps | python3 -c 'import json, sys; print(json.load(sys.stdin)["target_directory"])')/debug/fhir-sync" {{LAKE}} {{DATA}}

# Tables on S3 (moto), or PARTS of what is tried: whole, commits, outages, pods, machines
interop-s3 *PARTS: (interop-store "s3" PARTS)

# The same on versitygw, an S3 server that checks signatures; needs Go
interop-versity *PARTS: (interop-store "versity" PARTS)

# The same on azurite (Azure); needs Node.js
interop-azure *PARTS: (interop-store "azure" PARTS)

# The same on fake-gcs-server (Google); needs Go
interop-gcs *PARTS: (interop-store "gcs" PARTS)

# The same on STORE; with `requests` instead of parts, the requests to the store by command, kind and table
interop-store STORE *PARTS:
    cargo build
    tests/interop/stores.sh {{STORE}} "$(cargo metadata --format-version 1 --no-deps | python3 -c 'import json, sys; print(json.load(sys.stdin)["target_directory"])')/debug/fhir-sync" {{PARTS}}

# A Spark Connect server as the engine, killed and cut off, beside our own engine; needs Java 17 and Maven, an hour
interop-spark-engine STEPS="200" SEED="20261129":
    cargo build --features spark
    tests/interop/spark_engine.sh "$(cargo metadata --format-version 1 --no-deps | python3 -c 'import json, sys; print(json.load(sys.stdin)["target_directory"])')/debug/fhir-sync" {{STEPS}} {{SEED}}

# Tokens of oidc-provider, a token server that is not ours; needs Node.js
interop-oidc:
    cargo build
    tests/interop/oidc.sh "$(cargo metadata --format-version 1 --no-deps | python3 -c 'import json, sys; print(json.load(sys.stdin)["target_directory"])')/debug/fhir-sync"

# A HAPI FHIR server that runs at BASE, such as http://127.0.0.1:8080/fhir, and is filled and changed; needs openssl
interop-hapi BASE *TYPES:
    cargo build
    tests/interop/hapi.sh "$(cargo metadata --format-version 1 --no-deps | python3 -c 'import json, sys; print(json.load(sys.stdin)["target_directory"])')/debug/fhir-sync" {{BASE}} {{TYPES}}

# Servers with random lives: COUNT of them from SEED on; SHRINK seconds to find what is needed for a failure
histories COUNT=env("HISTORIES_COUNT", "200") SEED=env("HISTORIES_SEED", "1") SHRINK="600":
    HISTORIES_SEED={{SEED}} HISTORIES_COUNT={{COUNT}} HISTORIES_SHRINK_SECONDS={{SHRINK}} cargo test --test it histories

# The daemon over hundreds of runs, and what must not grow; PROGRAM is a release build, without it the debug one is used
week RUNS="504" PROGRAM="":
    WEEK_RUNS={{RUNS}} {{ if PROGRAM == "" { "" } else { "WEEK_PROGRAM=" + PROGRAM } }} cargo test --test it week -- --ignored --nocapture

# Kills and errors at each rename, link, fsync and unlink, by strace; PER_CALL limits them, without it it takes an hour
faults PER_CALL="":
    cargo build
    tests/faults/run.sh "$(cargo metadata --format-version 1 --no-deps | python3 -c 'import json, sys; print(json.load(sys.stdin)["target_directory"])')/debug/fhir-sync" {{PER_CALL}}

# What is fast, as ratios; see docs/performance.md
bench *ARGS:
    cargo bench --locked --bench benches -- {{ARGS}}

# Units, manifests, Dockerfile
deploy-check:
    deploy/check.sh

# A Debian package of PROGRAM, a release build: see docs/install.md
deb PROGRAM FOLDER="target/deb" *OPTIONS:
    deploy/deb.sh {{PROGRAM}} {{FOLDER}} {{OPTIONS}}

# What the program is made of, against deny.toml; needs `cargo install cargo-deny`, and for `advisories` the network
deny +CHECKS="bans licenses sources":
    cargo deny --locked check {{CHECKS}}

# A software bill of materials (CycloneDX), fhir-sync.cdx.json, of the packaged program; needs `cargo install cargo-cyclonedx`
sbom:
    cargo cyclonedx --format json --features sql,spark --describe crate

# What is shipped, tried where it runs, with a release build: size and start, package under systemd, image; needs root
ops:
    cargo build --release --locked
    tests/ops/all.sh "$(cargo metadata --format-version 1 --no-deps | python3 -c 'import json, sys; print(json.load(sys.stdin)["target_directory"])')/release/fhir-sync"

# Size of PROGRAM, and the time from its start to /livez
ops-start PROGRAM:
    tests/ops/start.py {{PROGRAM}}

# What a first load takes of memory in a control group of 512 MiB, and what the idle daemon keeps; needs root, minutes
ops-memory PROGRAM *ARGS:
    tests/ops/memory.py {{PROGRAM}} {{ARGS}}

# The image of the Dockerfile around PROGRAM, run: two syncs, the daemon, the health check; needs root, minutes
ops-image PROGRAM:
    tests/ops/image.sh {{PROGRAM}}

# systemd in a root folder of Debian installs PACKAGE, and does there what the pages say; needs root, minutes
ops-systemd PACKAGE:
    tests/ops/systemd.sh {{PACKAGE}}

# A Prometheus scrapes a daemon and fires our alerts; needs prometheus, a minute
ops-prometheus:
    cargo build
    tests/ops/prometheus.sh "$(cargo metadata --format-version 1 --no-deps | python3 -c 'import json, sys; print(json.load(sys.stdin)["target_directory"])')/debug/fhir-sync"

# The status page in a browser; PICTURES is a folder for screenshots; needs Node.js and Chromium, minutes
ops-page PICTURES="":
    cargo build
    tests/ops/page.sh "$(cargo metadata --format-version 1 --no-deps | python3 -c 'import json, sys; print(json.load(sys.stdin)["target_directory"])')/debug/fhir-sync" {{PICTURES}}

# How fast /health answers while a sync uses all cores; PROGRAM is a release build
ops-health-latency PROGRAM *ARGS:
    tests/ops/health_latency.py {{PROGRAM}} {{ARGS}}

# Everything that must pass
ci:
    .ci/run
