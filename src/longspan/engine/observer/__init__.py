"""A process beside the engine's, which writes the event log and works out what pages show.

The engine's process hands it records as they are, some dozens at a time, and passes on to pages what it answers. That
costs a tenth of what to write and to count does. There is such a process only while there is something to write or
somebody looks.
"""
