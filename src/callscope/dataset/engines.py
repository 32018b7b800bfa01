"""Engines that answer SQL over a data set: DuckDB in this process, or Spark where it is installed."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from callscope.dataset.collect import CALLS, read_index
from callscope.errors import TraceError, UsageError
from callscope.reports.database import MEMORY_LIMIT, quoted

Rows = list[dict[str, Any]]


def ask_duckdb(dataset: Path, sql: str) -> Rows:
    """The rows of a query, by DuckDB. Raises TraceError when files of the data set are damaged."""
    import duckdb

    files = quoted(str(dataset / CALLS / "**" / "*.parquet"))
    try:
        with duckdb.connect(config={"memory_limit": MEMORY_LIMIT}) as connection:
            connection.execute(
                f"CREATE VIEW calls AS SELECT * FROM "
                f"read_parquet({files}, hive_partitioning = true, hive_types_autocast = false)"
            )
            cursor = connection.execute(sql)
            names = [column[0] for column in cursor.description or ()]
            return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]
    except duckdb.Error as error:
        raise _unreadable(dataset, error) from None


def ask_spark(dataset: Path, sql: str) -> Rows:
    """The same by Spark: a cluster's, if SPARK_MASTER names one, else one in this process.

    Raises UsageError when it is not installed, TraceError when files are damaged.
    """
    try:
        from pyspark.errors import PySparkException
        from pyspark.sql import SparkSession
    except ImportError:
        raise UsageError(
            "Spark is not installed here: pip install 'callscope[spark]', or use --engine duckdb"
        ) from None
    builder = SparkSession.builder.appName("callscope").master(os.environ.get("SPARK_MASTER", "local[*]"))
    builder = builder.config("spark.ui.enabled", "false").config("spark.ui.showConsoleProgress", "false")
    builder = builder.config("spark.sql.session.timeZone", "UTC")
    session = builder.config("spark.sql.sources.partitionColumnTypeInference.enabled", "false").getOrCreate()
    session.sparkContext.setLogLevel("ERROR")
    try:
        session.read.parquet(str(dataset.absolute() / CALLS)).createOrReplaceTempView("calls")
        return [row.asDict() for row in session.sql(sql).collect()]
    except PySparkException as error:
        raise _unreadable(dataset, error) from None


ENGINES: Final[dict[str, Callable[[Path, str], Rows]]] = {"duckdb": ask_duckdb, "spark": ask_spark}


def ask(dataset: Path, sql: str, engine: str = "duckdb") -> Rows:
    """The rows of a query over the table `calls` of a data set. Raises UsageError, TraceError."""
    if not read_index(dataset)["traces"]:
        raise UsageError(f"{dataset} holds no trace: add some with callscope collect TRACE... -o {dataset}")
    return ENGINES[engine](dataset, sql)


def _unreadable(dataset: Path, error: Exception) -> TraceError:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return TraceError(f"the data set {dataset} cannot be asked ({reason}): collect the traces again")
