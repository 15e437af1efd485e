"""The databases of the log: connections, dialects and migrations of SQLite and PostgreSQL.

`database` is what both have in common (transactions, errors of drivers), `sqlite` and `postgres`
are the two, `engines` chooses by address, `schema` brings the tables to this release's version.
What may enter: drivers and SQL dialects. What may not: what a write means.
"""
