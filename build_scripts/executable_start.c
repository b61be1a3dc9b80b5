/* What the executable does before Python starts: it finds itself where /proc is not mounted, and it makes sure that
 * libraries which nearly every system has, such as libstdc++, are there on the others, too. And Ctrl-C waits until Alpha's
 * own code can answer it.
 */

#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/syscall.h>
#include <unistd.h>

static const char own_path[] = "/proc/self/exe";

/* The start of a compiled program asks readlink for its own path and aborts when there is no answer. This function
 * takes the place of the C library's in the executable; it answers that one question with the path that the kernel was
 * given to execute, and passes everything else on.
 *
 * Returns the number of bytes written to `buffer`, which is not terminated by a zero, or -1 with errno set.
 */
ssize_t readlink(const char *path, char *buffer, size_t size) {
    ssize_t length = syscall(SYS_readlinkat, AT_FDCWD, path, buffer, size);
    if (length >= 0 || strcmp(path, own_path) != 0) {
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

/* Opens the library of this name, the system's own if it has one. Graphics drivers are built for that one, and would not
 * start beside an older one. Returns whether it is open now. */
static bool open_library(const char *folder, const char *name) {
    char path[PATH_MAX];
    return dlopen(name, RTLD_LAZY) != NULL ||
           (snprintf(path, sizeof path, "%s/%s", folder, name) < PATH_MAX && dlopen(path, RTLD_LAZY) != NULL);
}

/* Opens the libraries whose names are in the folder `fallback` beside the executable. A library that another one needs
 * may come after it, so there are two rounds. What cannot be opened is reported by whoever needs it. */
__attribute__((constructor)) static void open_fallback_libraries(void) {
    char folder[PATH_MAX];
    ssize_t length = readlink(own_path, folder, sizeof folder);
    if (length <= 0 || length >= (ssize_t)sizeof folder) {
        return;
    }
    folder[length] = '\0';
    char *name = strrchr(folder, '/') + 1;
    if (snprintf(name, sizeof folder - (size_t)(name - folder), "fallback") >= PATH_MAX - (name - folder)) {
        return;
    }
    for (int round = 0; round < 2; round++) {
        DIR *libraries = opendir(folder);
        if (libraries == NULL) {
            return;
        }
        for (struct dirent *each; (each = readdir(libraries)) != NULL;) {
            if (each->d_name[0] != '.') {
                open_library(folder, each->d_name);
            }
        }
        closedir(libraries);
    }
}

/* Python would answer Ctrl-C in its own start with a traceback; `alpha.process` lets it through again. */
__attribute__((constructor)) static void block_interrupts(void) {
    sigset_t interrupts;
    sigemptyset(&interrupts);
    sigaddset(&interrupts, SIGINT);
    sigprocmask(SIG_BLOCK, &interrupts, NULL);
}
