"""The log: the system of record, one gap-free sequence a collection, in SQLite or PostgreSQL.

`ledger` decides what a group of writes does before any SQL (pure), `log` runs it as one
transaction, `committer` gathers writes into groups (group commit), `tail` reads what came since a
sequence number, `copying` makes read-only copies of collections, `databases` are SQLite and
PostgreSQL. What may enter: SQL, rows and their rules. What may not: FAISS, threads of searches,
protobuf. It uses `store` for the addresses of pictures.
"""
