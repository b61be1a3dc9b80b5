/* Parts of a piece of work, done side by side. */
#ifndef CREW_H
#define CREW_H

#include <stddef.h>

/* Calls the function with each of `count` parts of `size` bytes, on this thread and up to `threads` - 1 others, and returns
 * when all are done. Where others do not start, or are at another thread's work, this one does everything. */
void share_out(void (*function)(const void *part), const void *parts, size_t size, size_t count, size_t threads);

#endif
