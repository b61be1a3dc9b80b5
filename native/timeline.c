/* The timeline: a number that each submit raises by one when it is complete; and whether the device was lost. */
#include "internal.h"

#include <sched.h>
#include <time.h>

VkResult note_result(helios_device *device, VkResult result) {
    if (result == VK_ERROR_DEVICE_LOST) device->lost = 1;
    return result;
}

int check_not_lost(const helios_device *device) {
    if (!device->lost) return HELIOS_OK;
    return fail(HELIOS_DEVICE_LOST, "The device %s was lost before this call.", device->probe.properties.deviceName);
}

const char lost_advice[] = "the device stopped, through a fault in a kernel, a reset or its removal; the system's log "
                           "(dmesg) may say why.";

int wait_for(helios_device *device, uint64_t timeline_value, uint64_t timeout_nanoseconds) {
    const VkSemaphoreWaitInfo info = {
        .sType = VK_STRUCTURE_TYPE_SEMAPHORE_WAIT_INFO,
        .semaphoreCount = 1,
        .pSemaphores = &device->timeline,
        .pValues = &timeline_value,
    };
    VkResult result = device->vk.WaitSemaphores(device->handle, &info, timeout_nanoseconds);
    if (result == VK_TIMEOUT)
        return fail(HELIOS_TIMEOUT, "The device has not finished what was submitted within %.3f seconds.",
                    (double)timeout_nanoseconds / 1e9);
    if (result != VK_SUCCESS) return FAIL_DEVICE(device, "vkWaitSemaphores", result, "%s", lost_advice);
    return HELIOS_OK;
}

static uint64_t nanoseconds_now(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* Looks at the timeline until it has reached a value; HELIOS_TIMEOUT, without a message, if it takes longer. */
static int watch(helios_device *device, uint64_t timeline_value, uint64_t nanoseconds) {
    const uint64_t end = nanoseconds_now() + nanoseconds;
    for (;;) {
        uint64_t reached;
        int code = helios_completed(device, &reached);
        if (code != HELIOS_OK || reached >= timeline_value) return code;
        if (nanoseconds_now() >= end) return HELIOS_TIMEOUT;
        sched_yield();
    }
}

EXPORT int helios_wait(helios_device *device, uint64_t timeline_value, uint64_t watch_nanoseconds,
                       uint64_t timeout_nanoseconds) {
    int code = check_not_lost(device);
    if (code != HELIOS_OK) return code;
    pthread_mutex_lock(&device->lock);
    uint64_t submitted = device->submitted;
    pthread_mutex_unlock(&device->lock);
    if (timeline_value > submitted)
        return fail(HELIOS_ERROR, "Waiting for timeline value %llu would never end: the last submit was %llu.",
                    (unsigned long long)timeline_value, (unsigned long long)submitted);
    code = watch_nanoseconds > 0 ? watch(device, timeline_value, watch_nanoseconds) : HELIOS_TIMEOUT;
    return code == HELIOS_TIMEOUT ? wait_for(device, timeline_value, timeout_nanoseconds) : code;
}

EXPORT int helios_completed(helios_device *device, uint64_t *timeline_value) {
    int code = check_not_lost(device);
    if (code != HELIOS_OK) return code;
    VkResult result = device->vk.GetSemaphoreCounterValue(device->handle, device->timeline, timeline_value);
    if (result != VK_SUCCESS) return FAIL_DEVICE(device, "vkGetSemaphoreCounterValue", result, "%s", lost_advice);
    return HELIOS_OK;
}
