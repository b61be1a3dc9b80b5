/* What a device offers, asked once and used both to describe it and to open it. */
#include "internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- Extensions, queues, matrix shapes ---- */

static int find_extensions(const instance *from, probe *answer) {
    uint32_t count = 0;
    VkResult result = from->EnumerateDeviceExtensionProperties(answer->physical, NULL, &count, NULL);
    VkExtensionProperties *extensions = calloc(count ? count : 1, sizeof *extensions);
    if (extensions == NULL) return fail(HELIOS_OUT_OF_HOST_MEMORY, "There is no memory for a list of extensions.");
    if (result == VK_SUCCESS)
        result = from->EnumerateDeviceExtensionProperties(answer->physical, NULL, &count, extensions);
    for (uint32_t i = 0; result == VK_SUCCESS && i < count; i++) {
        const char *name = extensions[i].extensionName;
        answer->has_matrix |= strcmp(name, VK_KHR_COOPERATIVE_MATRIX_EXTENSION_NAME) == 0;
        answer->has_workgroup_matrix |= strcmp(name, VK_NV_COOPERATIVE_MATRIX_2_EXTENSION_NAME) == 0;
        answer->has_bfloat16 |= strcmp(name, VK_KHR_SHADER_BFLOAT16_EXTENSION_NAME) == 0;
        answer->has_budget |= strcmp(name, VK_EXT_MEMORY_BUDGET_EXTENSION_NAME) == 0;
        answer->has_multiprocessors |= strcmp(name, VK_NV_SHADER_SM_BUILTINS_EXTENSION_NAME) == 0;
        answer->has_compute_units |= strcmp(name, VK_AMD_SHADER_CORE_PROPERTIES_EXTENSION_NAME) == 0;
        answer->has_active_compute_units |= strcmp(name, VK_AMD_SHADER_CORE_PROPERTIES_2_EXTENSION_NAME) == 0;
    }
    free(extensions);
    if (result != VK_SUCCESS)
        return fail_vulkan("vkEnumerateDeviceExtensionProperties", result, "vulkaninfo may show more.");
    answer->has_workgroup_matrix &= answer->has_matrix;
    return HELIOS_OK;
}

/* The first queue family that computes; one with timestamps is preferred. */
static int find_queue_family(const instance *from, probe *answer) {
    uint32_t count = 0;
    from->GetPhysicalDeviceQueueFamilyProperties(answer->physical, &count, NULL);
    VkQueueFamilyProperties *families = calloc(count ? count : 1, sizeof *families);
    if (families == NULL) return fail(HELIOS_OUT_OF_HOST_MEMORY, "There is no memory for a list of queues.");
    from->GetPhysicalDeviceQueueFamilyProperties(answer->physical, &count, families);
    answer->queue_family = UINT32_MAX;
    for (uint32_t i = 0; i < count; i++) {
        if (!(families[i].queueFlags & VK_QUEUE_COMPUTE_BIT) || families[i].queueCount == 0) continue;
        if (answer->queue_family == UINT32_MAX || (answer->timestamp_bits == 0 && families[i].timestampValidBits > 0)) {
            answer->queue_family = i;
            answer->timestamp_bits = families[i].timestampValidBits;
        }
    }
    free(families);
    return HELIOS_OK;
}

static int find_matrices(const instance *from, probe *answer) {
    VkResult result = VK_SUCCESS;
    uint32_t count = 0;
    if (answer->matrix_features.cooperativeMatrix && from->GetPhysicalDeviceCooperativeMatrixPropertiesKHR) {
        result = from->GetPhysicalDeviceCooperativeMatrixPropertiesKHR(answer->physical, &count, NULL);
        answer->matrices = calloc(count ? count : 1, sizeof *answer->matrices);
        if (answer->matrices == NULL) return fail(HELIOS_OUT_OF_HOST_MEMORY, "There is no memory for matrix shapes.");
        for (uint32_t i = 0; i < count; i++)
            answer->matrices[i].sType = VK_STRUCTURE_TYPE_COOPERATIVE_MATRIX_PROPERTIES_KHR;
        if (result == VK_SUCCESS)
            result = from->GetPhysicalDeviceCooperativeMatrixPropertiesKHR(answer->physical, &count, answer->matrices);
        for (uint32_t i = 0; result == VK_SUCCESS && i < count; i++)
            if (answer->matrices[i].scope == VK_SCOPE_SUBGROUP_KHR)
                answer->matrices[answer->matrix_count++] = answer->matrices[i];
    }
    if (result == VK_SUCCESS && answer->workgroup_matrix_features.cooperativeMatrixFlexibleDimensions &&
        from->GetPhysicalDeviceCooperativeMatrixFlexibleDimensionsPropertiesNV) {
        PFN_vkGetPhysicalDeviceCooperativeMatrixFlexibleDimensionsPropertiesNV list =
            from->GetPhysicalDeviceCooperativeMatrixFlexibleDimensionsPropertiesNV;
        result = list(answer->physical, &count, NULL);
        answer->workgroup_matrices = calloc(count ? count : 1, sizeof *answer->workgroup_matrices);
        if (answer->workgroup_matrices == NULL)
            return fail(HELIOS_OUT_OF_HOST_MEMORY, "There is no memory for matrix shapes.");
        for (uint32_t i = 0; i < count; i++)
            answer->workgroup_matrices[i].sType =
                VK_STRUCTURE_TYPE_COOPERATIVE_MATRIX_FLEXIBLE_DIMENSIONS_PROPERTIES_NV;
        if (result == VK_SUCCESS) result = list(answer->physical, &count, answer->workgroup_matrices);
        for (uint32_t i = 0; result == VK_SUCCESS && i < count; i++)
            if (answer->workgroup_matrices[i].scope == VK_SCOPE_WORKGROUP_KHR)
                answer->workgroup_matrices[answer->workgroup_matrix_count++] = answer->workgroup_matrices[i];
    }
    if (result != VK_SUCCESS)
        return fail_vulkan("listing the shapes of matrix units", result, "the driver may need an update.");
    return HELIOS_OK;
}

/* ---- Features and properties ---- */

/* Puts a structure in front of the rest of a chain of pNext. */
#define CHAIN(first, structure, type) \
    ((structure).sType = (type), (structure).pNext = (first), (first) = &(structure))

static void ask_features(const instance *from, probe *answer) {
    VkPhysicalDeviceFeatures2 all = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_FEATURES_2};
    CHAIN(all.pNext, answer->features11, VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VULKAN_1_1_FEATURES);
    CHAIN(all.pNext, answer->features12, VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VULKAN_1_2_FEATURES);
    CHAIN(all.pNext, answer->features13, VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VULKAN_1_3_FEATURES);
    if (answer->has_matrix)
        CHAIN(all.pNext, answer->matrix_features, VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_COOPERATIVE_MATRIX_FEATURES_KHR);
    if (answer->has_workgroup_matrix)
        CHAIN(all.pNext, answer->workgroup_matrix_features,
              VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_COOPERATIVE_MATRIX_2_FEATURES_NV);
    if (answer->has_bfloat16)
        CHAIN(all.pNext, answer->bfloat16_features, VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SHADER_BFLOAT16_FEATURES_KHR);
    from->GetPhysicalDeviceFeatures2(answer->physical, &all);
    answer->features = all.features;
}

static void ask_properties(const instance *from, probe *answer) {
    VkPhysicalDeviceProperties2 all = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_PROPERTIES_2};
    CHAIN(all.pNext, answer->properties11, VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VULKAN_1_1_PROPERTIES);
    CHAIN(all.pNext, answer->properties12, VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VULKAN_1_2_PROPERTIES);
    CHAIN(all.pNext, answer->properties13, VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VULKAN_1_3_PROPERTIES);
    if (answer->has_multiprocessors)
        CHAIN(all.pNext, answer->multiprocessors, VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SHADER_SM_BUILTINS_PROPERTIES_NV);
    if (answer->has_compute_units)
        CHAIN(all.pNext, answer->compute_units, VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SHADER_CORE_PROPERTIES_AMD);
    if (answer->has_active_compute_units)
        CHAIN(all.pNext, answer->active_compute_units,
              VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SHADER_CORE_PROPERTIES_2_AMD);
    from->GetPhysicalDeviceProperties2(answer->physical, &all);
}

static void ask_memory(const instance *from, probe *answer) {
    VkPhysicalDeviceMemoryProperties2 all = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_MEMORY_PROPERTIES_2};
    if (answer->has_budget)
        CHAIN(all.pNext, answer->budget, VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_MEMORY_BUDGET_PROPERTIES_EXT);
    from->GetPhysicalDeviceMemoryProperties2(answer->physical, &all);
    answer->memory = all.memoryProperties;
    for (uint32_t i = 0; i < answer->memory.memoryHeapCount && !answer->has_budget; i++)
        answer->budget.heapBudget[i] = answer->memory.memoryHeaps[i].size;
}

static void find_missing(probe *answer) {
    const VkSubgroupFeatureFlags subgroup =
        answer->properties11.subgroupSupportedStages & VK_SHADER_STAGE_COMPUTE_BIT
            ? answer->properties11.subgroupSupportedOperations
            : 0;
    const struct {
        int present;
        const char *name;
    } required[] = {
        {answer->queue_family != UINT32_MAX, "a compute queue"},
        {answer->features12.bufferDeviceAddress != 0, "bufferDeviceAddress"},
        {answer->features12.timelineSemaphore != 0, "timelineSemaphore"},
        {answer->features12.vulkanMemoryModel != 0, "vulkanMemoryModel"},
        {answer->features12.scalarBlockLayout != 0, "scalarBlockLayout"},
        {answer->features13.synchronization2 != 0, "synchronization2"},
        {answer->features13.maintenance4 != 0, "maintenance4"},
        {answer->features.shaderInt64 != 0, "shaderInt64"},
        {(subgroup & VK_SUBGROUP_FEATURE_ARITHMETIC_BIT) != 0, "subgroup arithmetic"},
        {(subgroup & VK_SUBGROUP_FEATURE_BALLOT_BIT) != 0, "subgroup ballot"},
        {(subgroup & VK_SUBGROUP_FEATURE_SHUFFLE_BIT) != 0, "subgroup shuffle"},
    };
    uint32_t count = 0;
    for (size_t i = 0; i < COUNT(required); i++)
        if (!required[i].present) answer->missing[count++] = required[i].name;
}

int probe_device(const instance *from, VkPhysicalDevice physical, probe *answer) {
    *answer = (probe){.physical = physical, .queue_family = UINT32_MAX};
    from->GetPhysicalDeviceProperties(physical, &answer->properties);
    if (answer->properties.apiVersion < VK_API_VERSION_1_3) {
        answer->missing[0] = "Vulkan 1.3";
        return HELIOS_OK;
    }
    int code = find_extensions(from, answer);
    if (code == HELIOS_OK) code = find_queue_family(from, answer);
    if (code != HELIOS_OK) return code;
    ask_features(from, answer);
    ask_properties(from, answer);
    ask_memory(from, answer);
    find_missing(answer);
    return find_matrices(from, answer);
}

void free_probe(probe *answer) {
    free(answer->matrices);
    free(answer->workgroup_matrices);
    answer->matrices = NULL;
    answer->workgroup_matrices = NULL;
}

/* ---- Questions about the answer ---- */

int has_matrix_product(const probe *device, VkComponentTypeKHR operands) {
    if (operands == VK_COMPONENT_TYPE_BFLOAT16_KHR && !device->bfloat16_features.shaderBFloat16CooperativeMatrix) return 0;
    for (uint32_t i = 0; i < device->matrix_count; i++) {
        const VkCooperativeMatrixPropertiesKHR *shape = &device->matrices[i];
        if (shape->AType == operands && shape->BType == operands && shape->CType == VK_COMPONENT_TYPE_FLOAT32_KHR &&
            shape->ResultType == VK_COMPONENT_TYPE_FLOAT32_KHR)
            return 1;
    }
    return 0;
}

int has_workgroup_matrix_product(const probe *device, VkComponentTypeKHR operands) {
    const VkPhysicalDeviceCooperativeMatrix2FeaturesNV *features = &device->workgroup_matrix_features;
    if (!features->cooperativeMatrixWorkgroupScope || !features->cooperativeMatrixFlexibleDimensions ||
        !features->cooperativeMatrixReductions || !features->cooperativeMatrixConversions ||
        !features->cooperativeMatrixPerElementOperations || !features->cooperativeMatrixTensorAddressing ||
        !has_matrix_product(device, operands))
        return 0;
    for (uint32_t i = 0; i < device->workgroup_matrix_count; i++) {
        const VkCooperativeMatrixFlexibleDimensionsPropertiesNV *shape = &device->workgroup_matrices[i];
        if (shape->AType == operands && shape->BType == operands && shape->CType == VK_COMPONENT_TYPE_FLOAT32_KHR &&
            shape->ResultType == VK_COMPONENT_TYPE_FLOAT32_KHR)
            return 1;
    }
    return 0;
}

uint32_t count_multiprocessors(const probe *device) {
    const VkPhysicalDeviceShaderCorePropertiesAMD *units = &device->compute_units;
    if (device->multiprocessors.shaderSMCount) return device->multiprocessors.shaderSMCount;
    if (device->active_compute_units.activeComputeUnitCount) return device->active_compute_units.activeComputeUnitCount;
    return units->shaderEngineCount * units->shaderArraysPerEngineCount * units->computeUnitsPerShaderArray;
}

void list_missing(const probe *device, char *text, size_t capacity) {
    size_t length = 0;
    text[0] = 0;
    for (size_t i = 0; device->missing[i] != NULL && length < capacity; i++)
        length += (size_t)snprintf(text + length, capacity - length, "%s%s", i ? ", " : "", device->missing[i]);
}
