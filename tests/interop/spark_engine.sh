#!/usr/bin/env bash
# Syncs with tables.engine = "spark" into a Spark Connect server that is started here, and compares with our own engine:
# a random history, kills of both sides, cut connections, and tables with features that our own engine does not write.
#   tests/interop/spark_engine.sh PROGRAM [STEPS] [SEED]
# PROGRAM is built with `cargo build --features spark`; just interop-spark-engine does both. Needs Java 17 and Maven. An
# hour; fewer STEPS take less.
set -euo pipefail

here=$(dirname "${BASH_SOURCE[0]}")
connect=$("$here/install.sh" connect)
PYTHONDONTWRITEBYTECODE=1 "$connect/bin/python" "$here/spark_engine.py" "$@"
