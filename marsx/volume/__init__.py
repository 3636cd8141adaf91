"""One resource's data on this host: recovery, the primary's volume, replay. Promises that no position moves before the
data it speaks of are durable, and that nothing but verified groups ever reaches the data device. May import base, log
and the extensions marslog, marsreplay. Starts no threads: it offers bodies, `daemon` runs them."""
