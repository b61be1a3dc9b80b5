/* The one file: it holds the packed folder of the executable, unpacks it into the user's cache at its first start, and
 * becomes the program in there. Later starts find the folder, which is named by its content.
 *
 * The build defines ARCHIVE (path of the folder as tar.zst), FILES (path of the list of its files), CONTENT (the name).
 */

#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pwd.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <time.h>
#include <unistd.h>

/* zstd's decompressor, in one piece: its files use each other's inner functions. */
#define ZSTDERRORLIB_VISIBILITY
#define ZSTDLIB_VISIBILITY
#include "zstd.h"

#include "common/error_private.c"
#include "common/fse_decompress.c"
#include "common/xxhash.c"
#include "common/zstd_common.c"
#include "common/entropy_common.c"
#include "decompress/huf_decompress.c"
#include "decompress/zstd_ddict.c"
#include "decompress/zstd_decompress.c"
#include "decompress/zstd_decompress_block.c"

__asm__(".section .rodata\n.balign 16\narchive: .incbin \"" ARCHIVE "\"\narchive_end:\n.previous\n");
extern const unsigned char archive[], archive_end[];

static const struct {
    const char *path;
    long long size;
} files[] = {
#include FILES
};

enum { UNUSED_SECONDS = 30 * 24 * 3600, BLOCK = 512, CHUNK = 1 << 18 };
static const char partial[] = "partial-";
static const int signals[] = {SIGINT, SIGTERM, SIGHUP, SIGQUIT};

/* Why a folder cannot be used, for the user. */
static char problem[2 * PATH_MAX];

__attribute__((format(printf, 1, 2))) static bool fail(const char *format, ...) {
    va_list values;
    va_start(values, format);
    vsnprintf(problem, sizeof problem, format, values);
    va_end(values);
    return false;
}

/* The signal that asks this program to end, 0 where there is none. They are blocked, so nothing is left half done. */
static int interrupting(void) {
    sigset_t pending;
    sigpending(&pending);
    for (size_t i = 0; i < sizeof signals / sizeof *signals; i++) {
        struct sigaction action;
        if (sigismember(&pending, signals[i]) && sigaction(signals[i], NULL, &action) == 0 &&
            action.sa_handler != SIG_IGN) {
            return signals[i];
        }
    }
    return 0;
}

static void remove_tree(int parent, const char *name) {
    if (unlinkat(parent, name, 0) == 0) {
        return;
    }
    int folder = openat(parent, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    DIR *entries = folder < 0 ? NULL : fdopendir(folder);
    if (entries != NULL) {
        for (struct dirent *each; (each = readdir(entries)) != NULL;) {
            if (strcmp(each->d_name, ".") != 0 && strcmp(each->d_name, "..") != 0) {
                remove_tree(folder, each->d_name);
            }
        }
        closedir(entries);
    }
    unlinkat(parent, name, AT_REMOVEDIR);
}

/* --- the archive ------------------------------------------------------------------------------------------------- */

static ZSTD_DStream *stream;
static ZSTD_inBuffer packed;

/* The next `size` bytes of the archive. */
static bool take(void *to, size_t size) {
    ZSTD_outBuffer out = {to, size, 0};
    while (out.pos < size) {
        size_t before = out.pos;
        size_t result = ZSTD_decompressStream(stream, &out, &packed);
        if (ZSTD_isError(result) || (out.pos == before && packed.pos == packed.size)) {
            return fail("this file is damaged; copy it again");
        }
    }
    return true;
}

static bool write_file(int folder, const char *path, mode_t mode, size_t size) {
    static char chunk[CHUNK];
    int file = openat(folder, path, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, mode & 0100 ? 0700 : 0600);
    bool good = file >= 0;
    while (good && size > 0) {
        size_t length = size < CHUNK ? size : CHUNK;
        if (interrupting() || !take(chunk, length)) {
            close(file);
            return false;
        }
        size -= length;
        for (char *from = chunk; good && length > 0;) {
            ssize_t written = write(file, from, length);
            good = written > 0;
            from += written;
            length -= (size_t)written;
        }
    }
    if (!good) {
        fail("%s", strerror(errno));
    }
    if (file >= 0) {
        close(file);
    }
    return good;
}

/* Writes the folders and files of the archive, a tar file in ustar format, below `folder`. */
static bool unpack(int folder) {
    stream = ZSTD_createDStream();
    packed = (ZSTD_inBuffer){archive, (size_t)(archive_end - archive), 0};
    bool good = stream != NULL || fail("there is not enough memory");
    for (char header[BLOCK]; good;) {
        good = take(header, sizeof header);
        if (!good || header[0] == '\0') {
            break;
        }
        char path[300], rest[BLOCK];
        snprintf(path, sizeof path, "%.155s%s%.100s", header + 345, header[345] ? "/" : "", header);
        size_t size = strtoul(header + 124, NULL, 8);
        if (header[156] == '5') {
            good = mkdirat(folder, path, 0700) == 0 || fail("%s", strerror(errno));
        } else {
            good = write_file(folder, path, (mode_t)strtoul(header + 100, NULL, 8), size) &&
                   take(rest, (BLOCK - size % BLOCK) % BLOCK);
        }
    }
    ZSTD_freeDStream(stream);
    if (good && syncfs(folder) != 0) {
        good = fail("%s", strerror(errno));
    }
    return good;
}

/* --- folders ----------------------------------------------------------------------------------------------------- */

/* Whether nobody else can have put anything into this open folder. */
static bool is_private(int folder) {
    struct stat status;
    return fstat(folder, &status) == 0 && status.st_uid == geteuid() && (status.st_mode & 077) == 0;
}

/* Opens a folder that only this user can use, which is made where there is none; -1 where that cannot be. */
static int open_private(const char *path) {
    if (mkdir(path, 0700) != 0 && errno != EEXIST) {
        fail("%s cannot be made (%s)", path, strerror(errno));
        return -1;
    }
    int folder = open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (folder < 0) {
        fail("%s cannot be used (%s)", path, errno == ELOOP || errno == ENOTDIR ? "it is not a folder" : strerror(errno));
    } else if (!is_private(folder)) {
        fail("%s is not used, because other users may have written to it", path);
        close(folder);
        folder = -1;
    }
    return folder;
}

/* Opens the unpacked folder in `base` if it is whole; -1 otherwise. It stays open, and so locked, as long as the program
 * runs: what is locked is not removed. */
static int open_unpacked(int base) {
    int folder = openat(base, CONTENT, O_RDONLY | O_DIRECTORY | O_NOFOLLOW);
    if (folder < 0) {
        return -1;
    }
    bool whole = is_private(folder) && (flock(folder, LOCK_SH | LOCK_NB) == 0 || errno != EWOULDBLOCK);
    for (size_t i = 0; whole && i < sizeof files / sizeof *files; i++) {
        struct stat status;
        whole = fstatat(folder, files[i].path, &status, AT_SYMLINK_NOFOLLOW) == 0 && S_ISREG(status.st_mode) &&
                status.st_size == files[i].size;
    }
    if (!whole) {
        close(folder);
        return -1;
    }
    futimens(folder, NULL);
    return folder;
}

/* Removes what starts that were killed have left, and the folders of other versions that nobody has used for long. The
 * caller has the lock of `base`. */
static void clean(int base) {
    int again = openat(base, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *entries = again < 0 ? NULL : fdopendir(again);
    if (entries == NULL) {
        return;
    }
    for (struct dirent *each; (each = readdir(entries)) != NULL;) {
        bool left = strncmp(each->d_name, partial, strlen(partial)) == 0;
        int folder = each->d_name[0] == '.' ? -1 : openat(base, each->d_name, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
        struct stat status;
        if (folder >= 0 && fstat(folder, &status) == 0 &&
            (left || (strlen(each->d_name) == strlen(CONTENT) && status.st_mtime + UNUSED_SECONDS < time(NULL))) &&
            flock(folder, LOCK_EX | LOCK_NB) == 0) {
            remove_tree(base, each->d_name);
        }
        if (folder >= 0) {
            close(folder);
        }
    }
    closedir(entries);
}

/* Waits until no other start is unpacking into `base`; false when interrupted. A file system without locks has none to
 * wait for, and there, too, the folder gets its name only when it is whole. */
static bool lock(int base, const char *path) {
    const struct timespec pause = {0, 20 * 1000 * 1000};
    for (int tries = 0; flock(base, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK; tries++) {
        if (interrupting()) {
            return false;
        }
        if (tries == 100) {
            fprintf(stderr, "alpha: waiting for another start of Alpha, which is unpacking into %s\n", path);
        }
        nanosleep(&pause, NULL);
    }
    return true;
}

/* Unpacks into `base`, whose lock the caller has, and opens what is there then; -1 where that fails. */
static int unpack_into(int base, const char *path) {
    struct statvfs system;
    if (fstatvfs(base, &system) == 0 && system.f_flag & ST_NOEXEC) {
        fail("%s is on a file system that does not let programs run (noexec)", path);
        return -1;
    }
    char name[64];
    snprintf(name, sizeof name, "%s%ld-damaged", partial, (long)getpid());
    renameat(base, CONTENT, base, name); /* what is there is not whole */
    clean(base);
    snprintf(name, sizeof name, "%s%ld-%lx", partial, (long)getpid(), (unsigned long)time(NULL));
    int folder = mkdirat(base, name, 0700) == 0 ? openat(base, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC) : -1;
    bool good = folder >= 0 || fail("%s", strerror(errno));
    good = good && unpack(folder);
    if (good && renameat(base, name, base, CONTENT) != 0 && errno != ENOTEMPTY && errno != EEXIST) {
        good = fail("%s", strerror(errno));
    }
    remove_tree(base, name);
    if (folder >= 0) {
        close(folder);
    }
    if (!good && !interrupting()) {
        char reason[256];
        snprintf(reason, sizeof reason, "%.255s", problem);
        fail("%s cannot be filled (%s)", path, reason);
        return -1;
    }
    return good ? open_unpacked(base) : -1;
}

/* The unpacked folder below `path`, open and locked; -1 where there is none and none can be made. */
static int use(const char *path, bool *unpacked) {
    int base = open_private(path);
    if (base < 0) {
        return -1;
    }
    int folder = open_unpacked(base);
    if (folder < 0 && lock(base, path)) {
        folder = open_unpacked(base); /* another start may have made it meanwhile */
        if (folder < 0) {
            folder = unpack_into(base, path);
            *unpacked = folder >= 0;
        }
    }
    close(base);
    return folder;
}

/* Where Alpha keeps what can be made again, with the folders above it; false where there is no such place. */
static bool cache_folder(char *path) {
    const char *base = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
    if (base != NULL && base[0] != '\0') {
        snprintf(path, PATH_MAX, "%s/alpha/executable", base);
    } else {
        struct passwd *user = home == NULL ? getpwuid(getuid()) : NULL;
        home = user != NULL ? user->pw_dir : home;
        if (home == NULL) {
            return fail("there is no home folder to unpack Alpha into");
        }
        snprintf(path, PATH_MAX, "%s/.cache/alpha/executable", home);
    }
    for (char *end = path + 1; (end = strchr(end, '/')) != NULL; end++) {
        *end = '\0';
        mkdir(path, 0700); /* where that is impossible, the last one says why */
        *end = '/';
    }
    return true;
}

/* A place for the folder of this user among everybody's temporary files. */
static bool temporary_folder(char *path) {
    const char *base = getenv("TMPDIR");
    base = base != NULL && base[0] != '\0' ? base : "/tmp";
    struct stat status;
    if (stat(base, &status) != 0) {
        return fail("%s cannot be used (%s)", base, strerror(errno));
    }
    if (status.st_mode & S_IWOTH && !(status.st_mode & S_ISVTX)) {
        return fail("%s is not used, because other users may rename what is in it", base);
    }
    snprintf(path, PATH_MAX, "%s/alpha-%ld", base, (long)geteuid());
    return true;
}

int main(int count, char **arguments) {
    (void)count;
    sigset_t blocked, before;
    sigemptyset(&blocked);
    for (size_t i = 0; i < sizeof signals / sizeof *signals; i++) {
        sigaddset(&blocked, signals[i]);
    }
    sigprocmask(SIG_BLOCK, &blocked, &before);

    char path[PATH_MAX];
    bool unpacked = false;
    int folder = cache_folder(path) ? use(path, &unpacked) : -1;
    if (folder < 0 && !interrupting()) {
        char first[sizeof problem];
        memcpy(first, problem, sizeof first);
        folder = temporary_folder(path) ? use(path, &unpacked) : -1;
        if (folder < 0 && !interrupting()) {
            long long size = 0;
            for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
                size += files[i].size;
            }
            fprintf(stderr, "alpha: error: %s, and %s; name a folder with %lld MB free by XDG_CACHE_HOME.\n", first,
                problem, size / 1000000 + 1);
            return 1;
        }
        if (unpacked) {
            fprintf(stderr, "alpha: warning: %s; Alpha was unpacked into %s\n", first, path);
        }
    }
    if (folder < 0) {
        fputs("alpha: interrupted\n", stderr);
        return 128 + interrupting();
    }
    char program[PATH_MAX + 128];
    snprintf(program, sizeof program, "%s/%s/alpha/alpha", path, CONTENT);
    sigprocmask(SIG_SETMASK, &before, NULL); /* a signal that has come since ends the program here */
    execv(program, arguments);
    fprintf(stderr, "alpha: error: %s cannot be started (%s).\n", program, strerror(errno));
    return 1;
}
