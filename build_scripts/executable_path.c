/* The executable's own path, where /proc is not mounted.
 *
 * The start of a compiled program asks readlink for /proc/self/exe and aborts when there is no answer. This function
 * takes the place of the C library's in the executable; it answers that one question with the path that the kernel was
 * given to execute, and passes everything else on.
 *
 * Returns the number of bytes written to `buffer`, which is not terminated by a zero, or -1 with errno set.
 */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/syscall.h>
#include <unistd.h>

ssize_t readlink(const char *path, char *buffer, size_t size) {
    ssize_t length = syscall(SYS_readlinkat, AT_FDCWD, path, buffer, size);
    if (length >= 0 || strcmp(path, "/proc/self/exe") != 0) {
        return length;
    }
    const char *executed = (const char *)getauxval(AT_EXECFN);
    char absolute[PATH_MAX];
    if (executed == NULL || realpath(executed, absolute) == NULL) {
        return -1;
    }
    size_t needed = strlen(absolute);
    if (needed > size) {
        errno = ENAMETOOLONG;
        return -1;
    }
    memcpy(buffer, absolute, needed);
    return (ssize_t)needed;
}
