"""A Spark for other programs: a statement per line of the input, as JSON; per line of the output its rows, or what is wrong."""

import json
import os
import pathlib
import sys
import tempfile

from pyspark.errors import PySparkException
from session import session


def main() -> None:
    # Java writes to the output of its own accord, VACUUM for one; what it says goes to the errors.
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
