"""A Spark session with Delta, from the jars beside the Python that runs this, for a machine with two cores."""

import os
import pathlib
import sys

from pyspark.sql import SparkSession

INSTALLED = pathlib.Path(sys.prefix)


def session(scratch: pathlib.Path, memory: str = "2g") -> SparkSession:
    """`scratch` takes what Spark spills; it is the caller's to remove."""
    if (INSTALLED / "java").exists():
        os.environ["JAVA_HOME"] = str(INSTALLED / "java")
    os.environ["SPARK_LOCAL_IP"] = "127.0.0.1"
    settings = {
        "spark.jars": ",".join(str(jar) for jar in sorted((INSTALLED / "jars").glob("*.jar"))),
        "spark.sql.extensions": "io.delta.sql.DeltaSparkSessionExtension",
        "spark.sql.catalog.spark_catalog": "org.apache.spark.sql.delta.catalog.DeltaCatalog",
        "spark.sql.session.timeZone": "UTC",
        "spark.driver.memory": memory,
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
        "spark.local.dir": str(scratch / "spark"),
        "spark.sql.warehouse.dir": str(scratch / "warehouse"),
        # Delta's own numbers are for clusters: 50 partitions for a snapshot, 200 for a shuffle.
        "spark.databricks.delta.snapshotPartitions": "2",
        "spark.sql.shuffle.partitions": "4",
        "spark.sql.sources.parallelPartitionDiscovery.parallelism": "2",
    }
    builder = SparkSession.builder.master("local[2]").appName("fhir-sync interop")
    for name, value in settings.items():
        builder = builder.config(name, value)
    spark = builder.getOrCreate()
    spark.sparkContext.setLogLevel("ERROR")
    return spark
