"""A Spark for other programs: a statement per line of the input, as JSON; per line of the output its rows, or what is wrong."""

import json
import pathlib
import sys
import tempfile

from pyspark.errors import PySparkException
from session import session


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        spark = session(pathlib.Path(scratch))
        for line in sys.stdin:
            try:
                answer = [row.asDict() for row in spark.sql(json.loads(line)).collect()]
            except PySparkException as error:
                answer = str(error)
            print(json.dumps(answer, default=str), flush=True)
        spark.stop()


if __name__ == "__main__":
    main()
