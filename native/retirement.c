/* Retirement: what was freed while the device may still use it is destroyed when the timeline has passed. */
#include "internal.h"

#include <stdlib.h>
#include <string.h>

static void destroy_first(helios_device *device, uint32_t count) {
    for (uint32_t i = 0; i < count; i++) device->retired[i].destroy(device, device->retired[i].object);
    device->retired_count -= count;
    if (count > 0) memmove(device->retired, device->retired + count, device->retired_count * sizeof *device->retired);
}

int destroy_retired(helios_device *device) {
    if (device->retired_count == 0) return HELIOS_OK;
    uint64_t completed;
    int code = helios_completed(device, &completed);
    if (code != HELIOS_OK) return code;
    uint32_t done = 0;
    while (done < device->retired_count && device->retired[done].timeline_value <= completed) done++;
    destroy_first(device, done);
    return HELIOS_OK;
}

int retire(helios_device *device, void *object, destroyer *destroy) {
    if (device->retired_count == device->retired_capacity) {
        uint32_t capacity = device->retired_capacity ? 2 * device->retired_capacity : 64;
        retired *larger = realloc(device->retired, capacity * sizeof *larger);
        if (larger != NULL) {
            device->retired = larger;
            device->retired_capacity = capacity;
        }
    }
    if (device->retired_count == device->retired_capacity) { /* no memory to remember it */
        VkResult result = device->vk.DeviceWaitIdle(device->handle);
        destroy(device, object);
        return result == VK_SUCCESS ? HELIOS_OK : FAIL_DEVICE(device, "vkDeviceWaitIdle", result, "%s", lost_advice);
    }
    device->retired[device->retired_count++] = (retired){device->submitted, object, destroy};
    return destroy_retired(device);
}

void end_retirement(helios_device *device) {
    destroy_first(device, device->retired_count);
    free(device->retired);
}
