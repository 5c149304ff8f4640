"""What a device reports: measured beside the model, kept on the disk, sent when there is a way.

settings   the `[telemetry]` table, and which privacy holds at this moment
sensors    memory, temperature and throttling, as far as the system tells
redaction  blots out what must not touch the disk
spool      reports on the disk until a server has them
writer     the one thread of a process that writes to the spool
recorder   turns answers and feedback into reports; lives in the serving process
hashing    vectors of hashed text, from which no text can be read
sender     batches, acknowledgements, patience; `http` and `mqtt` are its two ways
canary     asks the golden prompts again
desk       all of it in the agent's process

The spool is one SQLite file that the agent and the serving process share, so that a release that crashes, or is
replaced, loses nothing that it had reported.
"""
