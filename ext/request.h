/* request.h: what a front end and a volume know of one request. A volume keeps a copy until the request is answered and
 * calls done() exactly once, from any device thread, without holding a lock. */
#ifndef MARS_REQUEST_H
#define MARS_REQUEST_H

#include <stdint.h>

struct mars_req {
    void (*done)(const struct mars_req *req, int error);   /* error: 0 or a negative errno */
    uint64_t unique;            /* as the kernel gave it (top bit: sent again) */
    uint64_t start_ns;          /* CLOCK_MONOTONIC when it was read */
    uint32_t size;              /* bytes of a write */
    int32_t fd;                 /* where the answer goes */
};

#endif
