"""`mmesh logs`: what the processes of a local mesh wrote, put together by time.

`lines` reads, merges and chooses; `command` prints. What may enter: the logs of one data folder.
What may not: collectors of logs from many machines, which read the same JSON.
"""
