"""The record: spool reader, recorder, SQLite, queries, exports."""
