#!/usr/bin/env python3
"""Writes pathling.txt: what Pathling's encoders make of each R4 resource type, as leaves and SHA-256 of its columns.

By hand, when Pathling changes; no test needs this script. With Java 21, pathling 9.4.0 and its library-runtime jar:

    pip install pathling==9.4.0
    ./pathling.py <library-runtime-9.4.0.jar>

A leaf is a column of a data file. What is hashed is Spark's `catalogString` of the schema.
"""

import glob
import hashlib
import os
import pathlib
import re
import sys

import pyspark
from py4j.java_gateway import JavaGateway
from py4j.protocol import Py4JJavaError

# A leaf is a type without `<` after it; only Spark's own words stand here, because a field may be called `date`.
LEAF = re.compile(r"[:<,](?:boolean|int|string|binary|timestamp|decimal\(\d+,\d+\))(?=[,>])")


def main():
    spark = glob.glob(os.path.join(os.path.dirname(pyspark.__file__), "jars", "*.jar"))
    gateway = JavaGateway.launch_gateway(classpath=os.pathsep.join([sys.argv[1], *spark]), die_on_exit=True)
    java = gateway.jvm
    config = java.au.csiro.pathling.config.EncodingConfiguration.builder().enableExtensions(True).build()
    encoders = (
        java.au.csiro.pathling.encoders.FhirEncoders.forR4()
        .withMaxNestingLevel(config.getMaxNestingLevel())
        .withExtensionsEnabled(True)
        .withOpenTypes(config.getOpenTypes())
        .getOrCreate()
    )
    lines = []
    for name in sorted(java.ca.uhn.fhir.context.FhirContext.forR4Cached().getResourceTypes()):
        try:
            columns = encoders.of(name).schema().catalogString()
        except Py4JJavaError as error:
            if "UnsupportedResourceError" not in str(error):
                raise
            continue
        lines.append(f"{name} {len(LEAF.findall(columns))} {hashlib.sha256(columns.encode()).hexdigest()}\n")
    gateway.shutdown()
    pathlib.Path(__file__).with_name("pathling.txt").write_text("".join(lines))


if __name__ == "__main__":
    main()
