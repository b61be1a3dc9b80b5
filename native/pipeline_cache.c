/* The file of compiled pipelines. What the driver gives is wrapped, because drivers trust what they are given back: a
 * file that is damaged, or of another device or driver, must not reach them. */
#include "internal.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
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
    FILE *file = fopen(path, "rb");
    if (file == NULL) return NULL;
    file_header header;
    unsigned char *data = NULL;
    if (fread(&header, sizeof header, 1, file) == 1 && memcmp(header.mark, file_mark, sizeof file_mark) == 0 &&
        header.bytes > 0 && header.bytes <= largest_file)
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

static int write_file(const char *path, const file_header *header, const unsigned char *data) {
    size_t length = strlen(path) + sizeof ".XXXXXX";
    char *temporary = malloc(length);
    if (temporary == NULL) return fail(HELIOS_OUT_OF_HOST_MEMORY, "There is no memory for a file's name.");
    snprintf(temporary, length, "%s.XXXXXX", path);
    int descriptor = mkstemp(temporary);
    FILE *file = descriptor < 0 ? NULL : fdopen(descriptor, "wb");
    int whole = file != NULL && fwrite(header, sizeof *header, 1, file) == 1 &&
                fwrite(data, 1, header->bytes, file) == header->bytes && fflush(file) == 0 && fsync(descriptor) == 0;
    int error = errno;
    if (file != NULL) {
        if (fclose(file) != 0 && whole) whole = 0, error = errno;
    } else if (descriptor >= 0) {
        close(descriptor);
    }
    if (whole && rename(temporary, path) != 0) whole = 0, error = errno;
    if (!whole && descriptor >= 0) unlink(temporary);
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
