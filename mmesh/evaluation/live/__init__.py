"""What an evaluation sends to the mesh and gets back: the pool, the searches, the answers.

What may enter: calls of the client, and what makes them go on after a break. Nothing here judges
an answer.
"""
