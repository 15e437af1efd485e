"""Commands of operators over log and store: `python -m services.index.commands.NAME`.

`migrate` brings the log's tables to this release, `sweep` collects garbage of the store, `verify`
compares snapshots with the log; `mmesh index` calls them. What may enter: what is run once and
ends, beside a mesh or without one. What may not: what processes of a mesh need. It uses all rooms.
"""
