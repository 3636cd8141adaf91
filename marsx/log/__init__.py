"""The transaction log of a resource: what its bytes mean, how far they can be believed, and how histories compare.

Lives here: the format (`record`), reading and scanning (`reader`), making, ending and finding log files (`writer`),
version links and split brain (`chain`). The append engine is not here: it is `ext/marslog.pyx` behind `volume`.

Promises: a byte counts only when header, chain and payload CRC hold; a scan says why it ended; equal digests mean equal
history; nothing here is tolerant. May import `base`, and the extensions marsscan (reader) and marssum (record).
"""
