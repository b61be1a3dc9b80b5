/* Error codes and messages. */
#include "internal.h"

#include <stdio.h>

static _Thread_local char message[1024] = "There has been no error on this thread.";

EXPORT const char *helios_last_error(void) {
    return message;
}

int fail(int code, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(message, sizeof message, format, arguments);
    va_end(arguments);
    return code;
}

static const char *result_name(VkResult result) {
    static const struct {
        VkResult result;
        const char *name;
    } names[] = {
#define NAMED(result) {result, #result}
        NAMED(VK_NOT_READY),
        NAMED(VK_TIMEOUT),
        NAMED(VK_INCOMPLETE),
        NAMED(VK_ERROR_OUT_OF_HOST_MEMORY),
        NAMED(VK_ERROR_OUT_OF_DEVICE_MEMORY),
        NAMED(VK_ERROR_INITIALIZATION_FAILED),
        NAMED(VK_ERROR_DEVICE_LOST),
        NAMED(VK_ERROR_MEMORY_MAP_FAILED),
        NAMED(VK_ERROR_LAYER_NOT_PRESENT),
        NAMED(VK_ERROR_EXTENSION_NOT_PRESENT),
        NAMED(VK_ERROR_FEATURE_NOT_PRESENT),
        NAMED(VK_ERROR_INCOMPATIBLE_DRIVER),
        NAMED(VK_ERROR_TOO_MANY_OBJECTS),
        NAMED(VK_ERROR_FORMAT_NOT_SUPPORTED),
        NAMED(VK_ERROR_FRAGMENTED_POOL),
        NAMED(VK_ERROR_OUT_OF_POOL_MEMORY),
        NAMED(VK_ERROR_INVALID_EXTERNAL_HANDLE),
        NAMED(VK_ERROR_FRAGMENTATION),
        NAMED(VK_ERROR_INVALID_OPAQUE_CAPTURE_ADDRESS),
        NAMED(VK_PIPELINE_COMPILE_REQUIRED),
        NAMED(VK_ERROR_UNKNOWN),
#undef NAMED
    };
    for (size_t i = 0; i < COUNT(names); i++)
        if (names[i].result == result) return names[i].name;
    return NULL;
}

int fail_vulkan(const char *call, VkResult result, const char *format, ...) {
    char advice[512], number[32];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(advice, sizeof advice, format, arguments);
    va_end(arguments);
    const char *name = result_name(result);
    if (name == NULL) {
        snprintf(number, sizeof number, "VkResult %d", (int)result);
        name = number;
    }
    int code = HELIOS_ERROR;
    switch (result) {
    case VK_ERROR_OUT_OF_DEVICE_MEMORY: code = HELIOS_OUT_OF_DEVICE_MEMORY; break;
    case VK_ERROR_OUT_OF_HOST_MEMORY: code = HELIOS_OUT_OF_HOST_MEMORY; break;
    case VK_ERROR_DEVICE_LOST: code = HELIOS_DEVICE_LOST; break;
    case VK_TIMEOUT: code = HELIOS_TIMEOUT; break;
    default: break;
    }
    return fail(code, "%s returned %s; %s", call, name, advice);
}
