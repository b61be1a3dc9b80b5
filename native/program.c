/* Programs: lists of dispatches and barriers, recorded once, submitted once or many times. */
#include "internal.h"

#include <stdlib.h>
#include <string.h>

/* ---- Command buffers ---- */

static int take_command_buffer(helios_device *device, VkCommandBuffer *commands) {
    if (device->spare_count > 0) {
        *commands = device->spare[--device->spare_count];
        return HELIOS_OK;
    }
    const VkCommandBufferAllocateInfo info = {
        .sType = VK_STRUCTURE_TYPE_COMMAND_BUFFER_ALLOCATE_INFO,
        .commandPool = device->command_pool,
        .level = VK_COMMAND_BUFFER_LEVEL_PRIMARY,
        .commandBufferCount = 1,
    };
    VkResult result = device->vk.AllocateCommandBuffers(device->handle, &info, commands);
    if (result == VK_SUCCESS) return HELIOS_OK;
    return FAIL_DEVICE(device, "vkAllocateCommandBuffers", result, "a program cannot be recorded.");
}

void destroy_program(helios_device *device, void *object) {
    program *recorded = object;
    if (recorded->commands != NULL && device->spare_count < COUNT(device->spare))
        device->spare[device->spare_count++] = recorded->commands;
    else if (recorded->commands != NULL)
        device->vk.FreeCommandBuffers(device->handle, device->command_pool, 1, &recorded->commands);
    device->vk.DestroyQueryPool(device->handle, recorded->timestamps, NULL);
    free(recorded);
}

/* ---- Checking ---- */

/* Refuses commands that would be errors in Vulkan, and counts the dispatches. */
static int check_commands(const helios_device *device, const helios_command *commands, uint64_t count,
                          uint32_t *dispatches) {
    const uint32_t *most = device->probe.properties.limits.maxComputeWorkGroupCount;
    *dispatches = 0;
    for (uint64_t i = 0; i < count; i++) {
        const helios_command *each = &commands[i];
        const unsigned long long number = i;
        if (each->kind == HELIOS_BARRIER) continue;
        if (each->kind != HELIOS_DISPATCH)
            return fail(HELIOS_ERROR, "Command %llu is of the unknown kind %u.", number, each->kind);
        const pipeline *bound = table_find(&device->pipelines, each->pipeline);
        if (bound == NULL)
            return fail(HELIOS_ERROR, "Command %llu: there is no pipeline %#llx.", number,
                        (unsigned long long)each->pipeline);
        if (each->push_bytes != bound->push_bytes)
            return fail(HELIOS_ERROR, "Command %llu has %u bytes of push constants; its pipeline takes %u.", number,
                        each->push_bytes, bound->push_bytes);
        if (each->groups[0] > most[0] || each->groups[1] > most[1] || each->groups[2] > most[2])
            return fail(HELIOS_UNSUPPORTED, "Command %llu: %u x %u x %u workgroups are more than the device's %u x %u x %u.",
                        number, each->groups[0], each->groups[1], each->groups[2], most[0], most[1], most[2]);
        ++*dispatches;
    }
    return HELIOS_OK;
}

/* ---- Recording ---- */

static void record_barrier(const helios_device *device, VkCommandBuffer commands, VkPipelineStageFlags2 from_stages,
                           VkAccessFlags2 writes, VkPipelineStageFlags2 to_stages, VkAccessFlags2 accesses) {
    const VkMemoryBarrier2 memory = {
        .sType = VK_STRUCTURE_TYPE_MEMORY_BARRIER_2,
        .srcStageMask = from_stages,
        .srcAccessMask = writes,
        .dstStageMask = to_stages,
        .dstAccessMask = accesses,
    };
    const VkDependencyInfo info = {
        .sType = VK_STRUCTURE_TYPE_DEPENDENCY_INFO,
        .memoryBarrierCount = 1,
        .pMemoryBarriers = &memory,
    };
    device->vk.CmdPipelineBarrier2(commands, &info);
}

#define COMPUTE VK_PIPELINE_STAGE_2_COMPUTE_SHADER_BIT
#define HOST VK_PIPELINE_STAGE_2_HOST_BIT
#define SHADER_READ VK_ACCESS_2_SHADER_STORAGE_READ_BIT
#define SHADER_WRITE VK_ACCESS_2_SHADER_STORAGE_WRITE_BIT

static void record_commands(const helios_device *device, const program *into, const helios_command *commands,
                            uint64_t count) {
    const device_functions *vk = &device->vk;
    const pipeline *bound = NULL;
    uint32_t query = 0;
    if (into->timestamps != VK_NULL_HANDLE)
        vk->CmdResetQueryPool(into->commands, into->timestamps, 0, 2 * into->dispatches);
    /* What the host has written is seen without a barrier: submitting does that. */
    record_barrier(device, into->commands, COMPUTE, SHADER_WRITE, COMPUTE, SHADER_READ | SHADER_WRITE);
    for (uint64_t i = 0; i < count; i++) {
        const helios_command *each = &commands[i];
        if (each->kind == HELIOS_BARRIER) {
            record_barrier(device, into->commands, COMPUTE, SHADER_WRITE, COMPUTE, SHADER_READ | SHADER_WRITE);
            continue;
        }
        const pipeline *next = table_find(&device->pipelines, each->pipeline);
        if (next != bound) vk->CmdBindPipeline(into->commands, VK_PIPELINE_BIND_POINT_COMPUTE, next->handle);
        bound = next;
        if (next->push_bytes > 0)
            vk->CmdPushConstants(into->commands, next->layout, VK_SHADER_STAGE_COMPUTE_BIT, 0, next->push_bytes,
                                 each->push);
        if (into->timestamps != VK_NULL_HANDLE)
            vk->CmdWriteTimestamp2(into->commands, COMPUTE, into->timestamps, query++);
        vk->CmdDispatch(into->commands, each->groups[0], each->groups[1], each->groups[2]);
        if (into->timestamps != VK_NULL_HANDLE)
            vk->CmdWriteTimestamp2(into->commands, COMPUTE, into->timestamps, query++);
    }
    record_barrier(device, into->commands, COMPUTE, SHADER_WRITE, HOST, VK_ACCESS_2_HOST_READ_BIT);
}

static int record(helios_device *device, program *into, const helios_command *commands, uint64_t count) {
    if (into->flags & HELIOS_PROGRAM_TIMESTAMPS && into->dispatches > 0) {
        if (device->probe.timestamp_bits == 0)
            return fail(HELIOS_UNSUPPORTED, "%s has no timestamps.", device->probe.properties.deviceName);
        const VkQueryPoolCreateInfo info = {
            .sType = VK_STRUCTURE_TYPE_QUERY_POOL_CREATE_INFO,
            .queryType = VK_QUERY_TYPE_TIMESTAMP,
            .queryCount = 2 * into->dispatches,
        };
        VkResult result = device->vk.CreateQueryPool(device->handle, &info, NULL, &into->timestamps);
        if (result != VK_SUCCESS)
            return FAIL_DEVICE(device, "vkCreateQueryPool", result, "do without timestamps.");
    }
    int code = take_command_buffer(device, &into->commands);
    if (code != HELIOS_OK) return code;
    const VkCommandBufferBeginInfo begin = {
        .sType = VK_STRUCTURE_TYPE_COMMAND_BUFFER_BEGIN_INFO,
        .flags = into->flags & HELIOS_PROGRAM_REPEATED ? VK_COMMAND_BUFFER_USAGE_SIMULTANEOUS_USE_BIT
                                                       : VK_COMMAND_BUFFER_USAGE_ONE_TIME_SUBMIT_BIT,
    };
    VkResult result = device->vk.BeginCommandBuffer(into->commands, &begin);
    if (result != VK_SUCCESS)
        return FAIL_DEVICE(device, "vkBeginCommandBuffer", result, "a program cannot be recorded.");
    record_commands(device, into, commands, count);
    result = device->vk.EndCommandBuffer(into->commands);
    if (result != VK_SUCCESS)
        return FAIL_DEVICE(device, "vkEndCommandBuffer", result, "a program of %llu commands cannot be recorded.",
                           (unsigned long long)count);
    return HELIOS_OK;
}

EXPORT int helios_program_create(helios_device *device, const helios_command *commands, uint64_t count, uint32_t flags,
                                 uint64_t *id) {
    if (flags & ~(HELIOS_PROGRAM_REPEATED | HELIOS_PROGRAM_TIMESTAMPS))
        return fail(HELIOS_ERROR, "helios_program_create does not know the flags %#x.", flags);
    int code = check_not_lost(device);
    if (code != HELIOS_OK) return code;
    program *made = calloc(1, sizeof *made);
    if (made == NULL) return fail(HELIOS_OUT_OF_HOST_MEMORY, "There is no memory to keep track of a program.");
    made->flags = flags;
    pthread_mutex_lock(&device->lock);
    code = destroy_retired(device);
    if (code == HELIOS_OK) code = check_commands(device, commands, count, &made->dispatches);
    if (code == HELIOS_OK) code = record(device, made, commands, count);
    if (code == HELIOS_OK) {
        uint64_t added = table_add(&device->programs, made);
        if (added == 0)
            code = fail(HELIOS_OUT_OF_HOST_MEMORY, "There is no memory to keep track of a program.");
        else
            *id = added;
    }
    if (code != HELIOS_OK) destroy_program(device, made);
    pthread_mutex_unlock(&device->lock);
    return code;
}

EXPORT int helios_program_free(helios_device *device, uint64_t id) {
    pthread_mutex_lock(&device->lock);
    program *freed = table_remove(&device->programs, id);
    int code = HELIOS_OK;
    if (freed == NULL)
        code = fail(HELIOS_ERROR, "There is no program %#llx; was it freed before?", (unsigned long long)id);
    else
        code = retire(device, freed, destroy_program);
    pthread_mutex_unlock(&device->lock);
    return code;
}

/* ---- Running ---- */

static int submit(helios_device *device, const uint64_t *programs, uint32_t count, VkCommandBufferSubmitInfo *commands,
                  uint64_t *timeline_value) {
    for (uint32_t i = 0; i < count; i++) {
        const program *each = table_find(&device->programs, programs[i]);
        if (each == NULL)
            return fail(HELIOS_ERROR, "There is no program %#llx to submit; was it freed before?",
                        (unsigned long long)programs[i]);
        int again = each->submitted > 0;
        for (uint32_t j = 0; j < i && !again; j++) again = programs[j] == programs[i];
        if (again && !(each->flags & HELIOS_PROGRAM_REPEATED))
            return fail(HELIOS_ERROR, "Program %#llx was made to be submitted once only.",
                        (unsigned long long)programs[i]);
        commands[i] = (VkCommandBufferSubmitInfo){
            .sType = VK_STRUCTURE_TYPE_COMMAND_BUFFER_SUBMIT_INFO,
            .commandBuffer = each->commands,
        };
    }
    const VkSemaphoreSubmitInfo signal = {
        .sType = VK_STRUCTURE_TYPE_SEMAPHORE_SUBMIT_INFO,
        .semaphore = device->timeline,
        .value = device->submitted + 1,
        .stageMask = VK_PIPELINE_STAGE_2_ALL_COMMANDS_BIT,
    };
    const VkSubmitInfo2 info = {
        .sType = VK_STRUCTURE_TYPE_SUBMIT_INFO_2,
        .commandBufferInfoCount = count,
        .pCommandBufferInfos = commands,
        .signalSemaphoreInfoCount = 1,
        .pSignalSemaphoreInfos = &signal,
    };
    VkResult result = device->vk.QueueSubmit2(device->queue, 1, &info, VK_NULL_HANDLE);
    if (result != VK_SUCCESS) return FAIL_DEVICE(device, "vkQueueSubmit2", result, "the device did not take the work.");
    *timeline_value = ++device->submitted;
    for (uint32_t i = 0; i < count; i++)
        ((program *)table_find(&device->programs, programs[i]))->submitted = device->submitted;
    return HELIOS_OK;
}

EXPORT int helios_submit(helios_device *device, const uint64_t *programs, uint32_t count, uint64_t *timeline_value) {
    int code = check_not_lost(device);
    if (code != HELIOS_OK) return code;
    if (count == 0) return fail(HELIOS_ERROR, "There is no program to submit.");
    VkCommandBufferSubmitInfo few[16], *commands = few;
    if (count > COUNT(few)) commands = malloc(count * sizeof *commands);
    if (commands == NULL) return fail(HELIOS_OUT_OF_HOST_MEMORY, "There is no memory to submit %u programs.", count);
    pthread_mutex_lock(&device->lock);
    code = submit(device, programs, count, commands, timeline_value);
    pthread_mutex_unlock(&device->lock);
    if (commands != few) free(commands);
    return code;
}

/* ---- Timestamps ---- */

static int read_timestamps(helios_device *device, const program *from, uint64_t capacity, uint64_t *nanoseconds) {
    const uint32_t count = 2 * from->dispatches;
    uint64_t completed;
    if (!(from->flags & HELIOS_PROGRAM_TIMESTAMPS)) return fail(HELIOS_ERROR, "The program takes no timestamps.");
    int code = helios_completed(device, &completed);
    if (code != HELIOS_OK) return code;
    if (from->submitted == 0 || from->submitted > completed)
        return fail(HELIOS_ERROR, "The program has no timestamps yet: submit it and wait for it first.");
    if (capacity < count)
        return fail(HELIOS_ERROR, "The program has %u timestamps; there is room for %llu.", count,
                    (unsigned long long)capacity);
    if (count == 0) return HELIOS_OK;
    VkResult result = device->vk.GetQueryPoolResults(device->handle, from->timestamps, 0, count, count * sizeof(uint64_t),
                                                     nanoseconds, sizeof(uint64_t), VK_QUERY_RESULT_64_BIT);
    if (result != VK_SUCCESS)
        return FAIL_DEVICE(device, "vkGetQueryPoolResults", result, "the timestamps cannot be read.");
    const uint32_t bits = device->probe.timestamp_bits;
    const uint64_t mask = bits < 64 ? (1ull << bits) - 1 : UINT64_MAX;
    const double period = (double)device->probe.properties.limits.timestampPeriod;
    for (uint32_t i = 0; i < count; i++) {
        nanoseconds[i] &= mask;
        if (period != 1) nanoseconds[i] = (uint64_t)((double)nanoseconds[i] * period);
    }
    return HELIOS_OK;
}

EXPORT int helios_timestamps(helios_device *device, uint64_t id, uint64_t capacity, uint64_t *nanoseconds) {
    pthread_mutex_lock(&device->lock);
    const program *from = table_find(&device->programs, id);
    int code = from ? read_timestamps(device, from, capacity, nanoseconds)
                    : fail(HELIOS_ERROR, "There is no program %#llx; was it freed before?", (unsigned long long)id);
    pthread_mutex_unlock(&device->lock);
    return code;
}
