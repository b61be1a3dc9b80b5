/* The devices of this machine as JSON. */
#include "internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- JSON ---- */

/* A text that may not fit: `length` counts on, but nothing is written past `capacity`. */
typedef struct json {
    char *text;
    uint64_t capacity, length;
    int after_value; /* the next value needs a comma */
} json;

static void put(json *to, const char *text) {
    for (; *text; text++, to->length++)
        if (to->length + 1 < to->capacity) to->text[to->length] = *text;
}

static void put_string(json *to, const char *text) {
    put(to, "\"");
    for (; *text; text++) {
        char one[8] = {*text, 0};
        unsigned char c = (unsigned char)*text;
        if (c == '"' || c == '\\' || c < 0x20) snprintf(one, sizeof one, "\\u%04x", c);
        if (c >= 0x7f) snprintf(one, sizeof one, "?"); /* drivers do not say which encoding they use */
        put(to, one);
    }
    put(to, "\"");
}

static void begin_value(json *to, const char *key) {
    if (to->after_value) put(to, ",");
    to->after_value = 1;
    if (key == NULL) return;
    put_string(to, key);
    put(to, ":");
}

static void open_bracket(json *to, const char *key, const char *bracket) {
    begin_value(to, key);
    put(to, bracket);
    to->after_value = 0;
}

static void close_bracket(json *to, const char *bracket) {
    put(to, bracket);
    to->after_value = 1;
}

static void put_number(json *to, const char *key, uint64_t value) {
    char digits[24];
    begin_value(to, key);
    snprintf(digits, sizeof digits, "%llu", (unsigned long long)value);
    put(to, digits);
}

static void put_text(json *to, const char *key, const char *value) {
    begin_value(to, key);
    put_string(to, value);
}

static void put_truth(json *to, const char *key, int value) {
    begin_value(to, key);
    put(to, value ? "true" : "false");
}

static void put_numbers(json *to, const char *key, const uint32_t *values, size_t count) {
    open_bracket(to, key, "[");
    for (size_t i = 0; i < count; i++) put_number(to, NULL, values[i]);
    close_bracket(to, "]");
}

/* ---- Words ---- */

static const char *element_name(VkComponentTypeKHR type) {
    switch (type) {
    case VK_COMPONENT_TYPE_FLOAT16_KHR: return "f16";
    case VK_COMPONENT_TYPE_FLOAT32_KHR: return "f32";
    case VK_COMPONENT_TYPE_FLOAT64_KHR: return "f64";
    case VK_COMPONENT_TYPE_SINT8_KHR: return "i8";
    case VK_COMPONENT_TYPE_SINT16_KHR: return "i16";
    case VK_COMPONENT_TYPE_SINT32_KHR: return "i32";
    case VK_COMPONENT_TYPE_SINT64_KHR: return "i64";
    case VK_COMPONENT_TYPE_UINT8_KHR: return "u8";
    case VK_COMPONENT_TYPE_UINT16_KHR: return "u16";
    case VK_COMPONENT_TYPE_UINT32_KHR: return "u32";
    case VK_COMPONENT_TYPE_UINT64_KHR: return "u64";
    case VK_COMPONENT_TYPE_BFLOAT16_KHR: return "bf16";
    default: return "other";
    }
}

static const char *kind_name(VkPhysicalDeviceType type) {
    switch (type) {
    case VK_PHYSICAL_DEVICE_TYPE_DISCRETE_GPU: return "discrete";
    case VK_PHYSICAL_DEVICE_TYPE_INTEGRATED_GPU: return "integrated";
    case VK_PHYSICAL_DEVICE_TYPE_VIRTUAL_GPU: return "virtual";
    case VK_PHYSICAL_DEVICE_TYPE_CPU: return "cpu";
    default: return "other";
    }
}

/* ---- Devices ---- */

static void put_features(json *to, const probe *device) {
    const VkPhysicalDeviceCooperativeMatrix2FeaturesNV *matrix = &device->workgroup_matrix_features;
    const struct {
        const char *name;
        int present;
    } features[] = {
        {"float16", device->features12.shaderFloat16 && device->features.shaderInt16 &&
                        device->features11.storageBuffer16BitAccess},
        {"bfloat16", device->bfloat16_features.shaderBFloat16Type && device->features11.storageBuffer16BitAccess},
        {"int8", device->features12.shaderInt8 && device->features12.storageBuffer8BitAccess},
        {"int16", device->features.shaderInt16 && device->features11.storageBuffer16BitAccess},
        {"cooperative_matrix_f16", has_matrix_product(device, VK_COMPONENT_TYPE_FLOAT16_KHR)},
        {"cooperative_matrix_bf16", has_matrix_product(device, VK_COMPONENT_TYPE_BFLOAT16_KHR)},
        {"workgroup_matrix_f16", has_workgroup_matrix_product(device, VK_COMPONENT_TYPE_FLOAT16_KHR)},
        {"workgroup_matrix_bf16", has_workgroup_matrix_product(device, VK_COMPONENT_TYPE_BFLOAT16_KHR)},
        {"cooperative_matrix_2", matrix->cooperativeMatrixConversions && matrix->cooperativeMatrixReductions &&
                                     matrix->cooperativeMatrixPerElementOperations},
        {"subgroup_size_control", device->features13.subgroupSizeControl &&
                                      (device->properties13.requiredSubgroupSizeStages & VK_SHADER_STAGE_COMPUTE_BIT)},
        {"memory_budget", device->has_budget},
        {"timestamps", device->timestamp_bits > 0},
    };
    open_bracket(to, "features", "[");
    for (size_t i = 0; i < COUNT(features); i++)
        if (features[i].present) put_text(to, NULL, features[i].name);
    close_bracket(to, "]");
}

static void put_heaps(json *to, const probe *device) {
    open_bracket(to, "heaps", "[");
    for (uint32_t i = 0; i < device->memory.memoryHeapCount; i++) {
        int mapped = 0;
        for (uint32_t j = 0; j < device->memory.memoryTypeCount; j++)
            mapped |= device->memory.memoryTypes[j].heapIndex == i &&
                      (device->memory.memoryTypes[j].propertyFlags & VK_MEMORY_PROPERTY_HOST_VISIBLE_BIT);
        open_bracket(to, NULL, "{");
        put_number(to, "bytes", device->memory.memoryHeaps[i].size);
        put_number(to, "budget", device->budget.heapBudget[i]);
        put_number(to, "usage", device->budget.heapUsage[i]);
        put_truth(to, "device_local", (device->memory.memoryHeaps[i].flags & VK_MEMORY_HEAP_DEVICE_LOCAL_BIT) != 0);
        put_truth(to, "host_visible", mapped);
        close_bracket(to, "}");
    }
    close_bracket(to, "]");
}

static void put_matrix_elements(json *to, VkComponentTypeKHR a, VkComponentTypeKHR b, VkComponentTypeKHR c,
                                VkComponentTypeKHR result) {
    put_text(to, NULL, element_name(a));
    put_text(to, NULL, element_name(b));
    put_text(to, NULL, element_name(c));
    put_text(to, NULL, element_name(result));
}

static void put_matrices(json *to, const probe *device) {
    open_bracket(to, "cooperative_matrices", "[");
    for (uint32_t i = 0; i < device->matrix_count; i++) {
        const VkCooperativeMatrixPropertiesKHR *shape = &device->matrices[i];
        if (shape->saturatingAccumulation) continue;
        open_bracket(to, NULL, "[");
        put_number(to, NULL, shape->MSize);
        put_number(to, NULL, shape->NSize);
        put_number(to, NULL, shape->KSize);
        put_matrix_elements(to, shape->AType, shape->BType, shape->CType, shape->ResultType);
        close_bracket(to, "]");
    }
    close_bracket(to, "]");
    open_bracket(to, "workgroup_matrices", "[");
    for (uint32_t i = 0; i < device->workgroup_matrix_count; i++) {
        const VkCooperativeMatrixFlexibleDimensionsPropertiesNV *shape = &device->workgroup_matrices[i];
        if (shape->saturatingAccumulation) continue;
        open_bracket(to, NULL, "[");
        put_number(to, NULL, shape->workgroupInvocations);
        put_number(to, NULL, shape->MGranularity);
        put_number(to, NULL, shape->NGranularity);
        put_number(to, NULL, shape->KGranularity);
        put_matrix_elements(to, shape->AType, shape->BType, shape->CType, shape->ResultType);
        close_bracket(to, "]");
    }
    close_bracket(to, "]");
}

static void put_device(json *to, const probe *device, uint32_t index) {
    const VkPhysicalDeviceLimits *limits = &device->properties.limits;
    char text[64];
    open_bracket(to, NULL, "{");
    put_number(to, "index", index);
    put_text(to, "name", device->properties.deviceName);
    put_text(to, "kind", kind_name(device->properties.deviceType));
    put_number(to, "vendor_id", device->properties.vendorID);
    put_number(to, "device_id", device->properties.deviceID);
    put_text(to, "driver_name", device->properties12.driverName);
    put_text(to, "driver_info", device->properties12.driverInfo);
    snprintf(text, sizeof text, "%u.%u.%u", VK_API_VERSION_MAJOR(device->properties.apiVersion),
             VK_API_VERSION_MINOR(device->properties.apiVersion), VK_API_VERSION_PATCH(device->properties.apiVersion));
    put_text(to, "api_version", text);
    for (size_t i = 0; i < VK_UUID_SIZE; i++)
        snprintf(text + 2 * i, 3, "%02x", device->properties.pipelineCacheUUID[i]);
    put_text(to, "pipeline_cache_uuid", text);
    open_bracket(to, "missing", "[");
    for (size_t i = 0; device->missing[i] != NULL; i++) put_text(to, NULL, device->missing[i]);
    close_bracket(to, "]");
    put_heaps(to, device);
    put_number(to, "multiprocessors", count_multiprocessors(device));
    put_number(to, "subgroup_size", device->properties11.subgroupSize);
    put_number(to, "subgroup_size_min", device->properties13.minSubgroupSize);
    put_number(to, "subgroup_size_max", device->properties13.maxSubgroupSize);
    put_number(to, "shared_memory", limits->maxComputeSharedMemorySize);
    put_number(to, "max_workgroup_invocations", limits->maxComputeWorkGroupInvocations);
    put_numbers(to, "max_workgroup_count", limits->maxComputeWorkGroupCount, 3);
    put_number(to, "max_push_constants", limits->maxPushConstantsSize);
    put_features(to, device);
    put_matrices(to, device);
    close_bracket(to, "}");
}

EXPORT int helios_describe(char *text, uint64_t capacity, uint64_t *needed) {
    json to = {.text = text, .capacity = text ? capacity : 0};
    instance made;
    VkPhysicalDevice *devices = NULL;
    uint32_t count = 0;
    int code = create_instance(&made, NULL);
    if (code != HELIOS_OK) return code;
    code = list_physical_devices(&made, &devices, &count);
    open_bracket(&to, NULL, "{");
    open_bracket(&to, "devices", "[");
    for (uint32_t i = 0; code == HELIOS_OK && i < count; i++) {
        probe answer;
        code = probe_device(&made, devices[i], &answer);
        if (code == HELIOS_OK) put_device(&to, &answer, i);
        free_probe(&answer);
    }
    close_bracket(&to, "]");
    close_bracket(&to, "}");
    free(devices);
    destroy_instance(&made);
    if (code != HELIOS_OK) return code;
    *needed = to.length + 1;
    if (to.capacity >= *needed) text[to.length] = 0;
    return HELIOS_OK;
}
