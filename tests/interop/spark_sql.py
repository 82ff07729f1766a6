"""Spark for other programs: each input line is a statement in JSON, each output line its rows or its error."""

import json
import os
import pathlib
import sys
import tempfile

from pyspark.errors import PySparkException
from session import session


def main() -> None:
    # Java itself writes to the output, for example in VACUUM; that is sent to the errors.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    with tempfile.TemporaryDirectory() as scratch:
        spark = session(pathlib.Path(scratch))
        for line in sys.stdin:
            try:
                answer = [row.asDict() for row in spark.sql(json.loads(line)).collect()]
            except PySparkException as error:
                answer = str(error)
            print(json.dumps(answer, default=str), file=answers, flush=True)
        spark.stop()


if __name__ == "__main__":
    main()
