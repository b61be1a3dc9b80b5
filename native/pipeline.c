/* Pipelines: a SPIR-V module with its specialization constants, compiled. */
#include "internal.h"

#include <stdlib.h>

/* The layout with so many bytes of push constants; all pipelines with that number share it. */
static int find_layout(helios_device *device, uint32_t push_bytes, VkPipelineLayout *layout) {
    VkPipelineLayout *shared = &device->layouts[push_bytes / 4];
    VkResult result = VK_SUCCESS;
    pthread_mutex_lock(&device->lock);
    if (*shared == VK_NULL_HANDLE) {
        const VkPushConstantRange range = {.stageFlags = VK_SHADER_STAGE_COMPUTE_BIT, .size = push_bytes};
        const VkPipelineLayoutCreateInfo info = {
            .sType = VK_STRUCTURE_TYPE_PIPELINE_LAYOUT_CREATE_INFO,
            .pushConstantRangeCount = push_bytes > 0,
            .pPushConstantRanges = &range,
        };
        result = device->vk.CreatePipelineLayout(device->handle, &info, NULL, shared);
    }
    *layout = *shared;
    pthread_mutex_unlock(&device->lock);
    if (result == VK_SUCCESS) return HELIOS_OK;
    return FAIL_DEVICE(device, "vkCreatePipelineLayout", result, "a kernel cannot be prepared.");
}

void destroy_pipeline(helios_device *device, void *object) {
    pipeline *compiled = object;
    device->vk.DestroyPipeline(device->handle, compiled->handle, NULL);
    free(compiled);
}

/* Compiles without holding the lock: this takes up to seconds, and the pipeline cache guards itself. */
static int compile(helios_device *device, const VkShaderModuleCreateInfo *code, const uint32_t *constants,
                   uint32_t count, uint32_t subgroup_size, VkPipelineLayout layout, VkPipeline *compiled) {
    VkSpecializationMapEntry *entries = calloc(count ? count : 1, sizeof *entries);
    if (entries == NULL) return fail(HELIOS_OUT_OF_HOST_MEMORY, "There is no memory for specialization constants.");
    for (uint32_t i = 0; i < count; i++)
        entries[i] = (VkSpecializationMapEntry){constants[2 * i], (2 * i + 1) * 4, 4};
    const VkSpecializationInfo specialization = {
        .mapEntryCount = count,
        .pMapEntries = entries,
        .dataSize = (size_t)count * 8,
        .pData = constants,
    };
    const VkPipelineShaderStageRequiredSubgroupSizeCreateInfo subgroup = {
        .sType = VK_STRUCTURE_TYPE_PIPELINE_SHADER_STAGE_REQUIRED_SUBGROUP_SIZE_CREATE_INFO,
        .requiredSubgroupSize = subgroup_size,
    };
    VkComputePipelineCreateInfo info = {
        .sType = VK_STRUCTURE_TYPE_COMPUTE_PIPELINE_CREATE_INFO,
        .stage =
            {
                .sType = VK_STRUCTURE_TYPE_PIPELINE_SHADER_STAGE_CREATE_INFO,
                .pNext = subgroup_size ? &subgroup : NULL,
                .stage = VK_SHADER_STAGE_COMPUTE_BIT,
                .pName = "main",
                .pSpecializationInfo = &specialization,
            },
        .layout = layout,
    };
    VkResult result = device->vk.CreateShaderModule(device->handle, code, NULL, &info.stage.module);
    int status = HELIOS_OK;
    if (result != VK_SUCCESS) {
        status = FAIL_DEVICE(device, "vkCreateShaderModule", result, "the driver refuses a kernel.");
    } else {
        result = device->vk.CreateComputePipelines(device->handle, device->cache, 1, &info, NULL, compiled);
        device->vk.DestroyShaderModule(device->handle, info.stage.module, NULL);
        if (result != VK_SUCCESS)
            status = FAIL_DEVICE(device, "vkCreateComputePipelines", result,
                                 "the driver cannot compile a kernel; a newer driver may.");
    }
    free(entries);
    return status;
}

static int check_subgroup_size(const probe *device, uint32_t size) {
    const VkPhysicalDeviceVulkan13Properties *limits = &device->properties13;
    if (size == 0) return HELIOS_OK;
    if (!device->features13.subgroupSizeControl || !(limits->requiredSubgroupSizeStages & VK_SHADER_STAGE_COMPUTE_BIT))
        return fail(HELIOS_UNSUPPORTED, "On %s the size of subgroups cannot be chosen.", device->properties.deviceName);
    if (size & (size - 1) || size < limits->minSubgroupSize || size > limits->maxSubgroupSize)
        return fail(HELIOS_UNSUPPORTED, "On %s subgroups have %u to %u invocations, a power of two; not %u.",
                    device->properties.deviceName, limits->minSubgroupSize, limits->maxSubgroupSize, size);
    return HELIOS_OK;
}

EXPORT int helios_pipeline(helios_device *device, const uint32_t *spirv, uint64_t bytes, const uint32_t *constants,
                           uint32_t count, uint32_t push_bytes, uint32_t subgroup_size, uint64_t *id) {
    int code = check_not_lost(device);
    if (code != HELIOS_OK) return code;
    if (push_bytes > HELIOS_PUSH_BYTES || push_bytes % 4)
        return fail(HELIOS_ERROR, "Push constants are a multiple of 4 bytes and at most %d; not %u.", HELIOS_PUSH_BYTES,
                    push_bytes);
    if (bytes % 4 || bytes > SIZE_MAX)
        return fail(HELIOS_ERROR, "A SPIR-V module is a multiple of 4 bytes long; not %llu.", (unsigned long long)bytes);
    code = check_spirv(&device->probe, spirv, bytes / 4, constants, count);
    if (code == HELIOS_OK) code = check_subgroup_size(&device->probe, subgroup_size);
    pipeline made = {.push_bytes = push_bytes};
    if (code == HELIOS_OK) code = find_layout(device, push_bytes, &made.layout);
    if (code != HELIOS_OK) return code;
    const VkShaderModuleCreateInfo module = {
        .sType = VK_STRUCTURE_TYPE_SHADER_MODULE_CREATE_INFO,
        .codeSize = (size_t)bytes,
        .pCode = spirv,
    };
    code = compile(device, &module, constants, count, subgroup_size, made.layout, &made.handle);
    if (code != HELIOS_OK) return code;
    pipeline *kept = malloc(sizeof *kept);
    pthread_mutex_lock(&device->lock);
    uint64_t added = 0;
    if (kept != NULL) {
        *kept = made;
        added = table_add(&device->pipelines, kept);
        device->compiled++;
    }
    pthread_mutex_unlock(&device->lock);
    if (added == 0) {
        free(kept);
        device->vk.DestroyPipeline(device->handle, made.handle, NULL);
        return fail(HELIOS_OUT_OF_HOST_MEMORY, "There is no memory to keep track of a pipeline.");
    }
    *id = added;
    return HELIOS_OK;
}
