"""The endings of files of rows."""

JSON = (".jsonl", ".ndjson", ".json")
SUFFIXES = (*JSON, ".csv", ".tsv", ".txt", ".parquet")
