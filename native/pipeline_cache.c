/* The file of compiled pipelines. What the driver gives is wrapped, because drivers trust what they are given back: a
 * file that is damaged, or of another device or driver, must not reach them. */
#define _GNU_SOURCE /* getrandom, flock */
#include "internal.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

static const char file_mark[8] = "HELIOS1"; /* with its zero */
static const uint64_t largest_file = 1ull << 30;

typedef struct file_header {
    char mark[8];
    uint64_t bytes;    /* of what follows, which is the driver's */
    uint64_t checksum; /* of the same */
} file_header;

/* FNV-1a, 64 bits. */
static uint64_t checksum(const unsigned char *data, uint64_t bytes) {
    uint64_t sum = 0xcbf29ce484222325u;
    for (uint64_t i = 0; i < bytes; i++) sum = (sum ^ data[i]) * 0x100000001b3u;
    return sum;
}

/* ---- Reading ---- */

/* Whether the driver's own header names this device and driver. */
static int is_of_device(const probe *device, const unsigned char *data, uint64_t bytes) {
    VkPipelineCacheHeaderVersionOne header;
    if (bytes < sizeof header) return 0;
    memcpy(&header, data, sizeof header);
    return header.headerVersion == VK_PIPELINE_CACHE_HEADER_VERSION_ONE && header.headerSize >= sizeof header &&
           header.headerSize <= bytes && header.vendorID == device->properties.vendorID &&
           header.deviceID == device->properties.deviceID &&
           memcmp(header.pipelineCacheUUID, device->properties.pipelineCacheUUID, VK_UUID_SIZE) == 0;
}

/* The driver's data from a whole file of this device, for the caller to free; else NULL. */
static unsigned char *read_data(const probe *device, const char *path, uint64_t *bytes) {
    /* A named pipe would wait for a writer, and a device never end. */
    int descriptor = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
    struct stat status;
    int regular = descriptor >= 0 && fstat(descriptor, &status) == 0 && S_ISREG(status.st_mode);
    FILE *file = regular ? fdopen(descriptor, "rb") : NULL;
    if (file == NULL) {
        if (descriptor >= 0) close(descriptor);
        return NULL;
    }
    file_header header;
    unsigned char *data = NULL;
    if (fread(&header, sizeof header, 1, file) == 1 && memcmp(header.mark, file_mark, sizeof file_mark) == 0 &&
        header.bytes > 0 && header.bytes <= largest_file && (uint64_t)status.st_size == sizeof header + header.bytes)
        data = malloc(header.bytes);
    if (data != NULL && (fread(data, 1, header.bytes, file) != header.bytes || fgetc(file) != EOF ||
                         checksum(data, header.bytes) != header.checksum || !is_of_device(device, data, header.bytes))) {
        free(data);
        data = NULL;
    }
    fclose(file);
    if (data != NULL) *bytes = header.bytes;
    return data;
}

int load_pipeline_cache(helios_device *device, const char *path) {
    VkPipelineCacheCreateInfo info = {.sType = VK_STRUCTURE_TYPE_PIPELINE_CACHE_CREATE_INFO};
    unsigned char *data = NULL;
    if (path != NULL) {
        device->cache_path = strdup(path);
        if (device->cache_path == NULL) return fail(HELIOS_OUT_OF_HOST_MEMORY, "There is no memory for a file's name.");
        uint64_t bytes = 0;
        data = read_data(&device->probe, path, &bytes);
        info.pInitialData = data;
        info.initialDataSize = (size_t)bytes;
    }
    VkResult result = device->vk.CreatePipelineCache(device->handle, &info, NULL, &device->cache);
    free(data);
    if (result == VK_SUCCESS) return HELIOS_OK;
    return FAIL_DEVICE(device, "vkCreatePipelineCache", result, "remove the file %s.", path ? path : "of pipelines");
}

/* ---- Writing ---- */

/* A new file in the folder of `path`, under the name and the lock by which files.py knows leftovers; -1 and errno when
 * there is none. `name` has room for the folder and TEMPORARY_NAME. */
#define TEMPORARY_NAME sizeof ".alpha-0123456789abcdef0123456789abcdef.tmp"
static int create_temporary(const char *path, char *name) {
    const char *slash = strrchr(path, '/');
    size_t folder = slash ? (size_t)(slash - path) + 1 : 0;
    memcpy(name, path, folder);
    for (;;) {
        uint64_t random[2];
        if (getrandom(random, sizeof random, 0) != (ssize_t)sizeof random) return -1;
        snprintf(name + folder, TEMPORARY_NAME, ".alpha-%016llx%016llx.tmp", (unsigned long long)random[0],
                 (unsigned long long)random[1]);
        int descriptor = open(name, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
        if (descriptor < 0) return -1;
        struct stat status;
        (void)flock(descriptor, LOCK_EX); /* no locks on this file system: then nobody takes it for a leftover */
        if (fstat(descriptor, &status) != 0 || status.st_nlink > 0) return descriptor;
        close(descriptor); /* removed as a leftover in the instant before it was locked */
    }
}

/* Whether there is nothing at `path`, or a regular file; else errno says why it must not be replaced. */
static int may_replace(const char *path) {
    struct stat status;
    if (lstat(path, &status) != 0) return errno == ENOENT;
    errno = S_ISLNK(status.st_mode) ? ELOOP : S_ISDIR(status.st_mode) ? EISDIR : EINVAL;
    return S_ISREG(status.st_mode);
}

static int write_file(const char *path, const file_header *header, const unsigned char *data) {
    char *temporary = malloc(strlen(path) + TEMPORARY_NAME);
    if (temporary == NULL) return fail(HELIOS_OUT_OF_HOST_MEMORY, "There is no memory for a file's name.");
    int descriptor = may_replace(path) ? create_temporary(path, temporary) : -1;
    FILE *file = descriptor < 0 ? NULL : fdopen(descriptor, "wb");
    int whole = file != NULL && fwrite(header, sizeof *header, 1, file) == 1 &&
                fwrite(data, 1, header->bytes, file) == header->bytes && fflush(file) == 0 && fsync(descriptor) == 0;
    int error = errno;
    if (whole && rename(temporary, path) != 0) whole = 0, error = errno; /* before the lock goes with the descriptor */
    if (!whole && descriptor >= 0) unlink(temporary);
    if (file != NULL) fclose(file);
    else if (descriptor >= 0) close(descriptor);
    free(temporary);
    if (whole) return HELIOS_OK;
    return fail(HELIOS_ERROR, "Cannot write the compiled pipelines to %s: %s.", path, strerror(error));
}

EXPORT int helios_save_pipelines(helios_device *device) {
    int code = HELIOS_OK;
    pthread_mutex_lock(&device->lock);
    uint64_t compiled = device->compiled;
    pthread_mutex_unlock(&device->lock);
    if (device->cache_path == NULL || compiled == 0 || device->lost) return HELIOS_OK;
    size_t bytes = 0;
    unsigned char *data = NULL;
    VkResult result = device->vk.GetPipelineCacheData(device->handle, device->cache, &bytes, NULL);
    if (result == VK_SUCCESS) {
        data = malloc(bytes ? bytes : 1);
        if (data == NULL) return fail(HELIOS_OUT_OF_HOST_MEMORY, "There is no memory to save the compiled pipelines.");
        result = device->vk.GetPipelineCacheData(device->handle, device->cache, &bytes, data);
    }
    if (result != VK_SUCCESS && result != VK_INCOMPLETE) { /* incomplete: another thread compiled; the data are sound */
        code = FAIL_DEVICE(device, "vkGetPipelineCacheData", result, "the compiled pipelines cannot be saved.");
    } else if (data != NULL && bytes <= largest_file) {
        file_header header = {.bytes = bytes, .checksum = checksum(data, bytes)};
        memcpy(header.mark, file_mark, sizeof file_mark);
        code = write_file(device->cache_path, &header, data);
    }
    free(data);
    if (code != HELIOS_OK) return code;
    pthread_mutex_lock(&device->lock);
    device->compiled -= compiled;
    pthread_mutex_unlock(&device->lock);
    return HELIOS_OK;
}
