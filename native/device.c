/* Opening and closing a device, and its validation messages. */
#include "internal.h"

#include <stdlib.h>
#include <string.h>

/* ---- Opening ---- */

/* Validation layers take extensions that came after them for errors. */
static int check_validation_layers(const helios_device *device) {
    const struct {
        int present;
        uint32_t version; /* of Vulkan's headers that have it */
        const char *extension;
    } extensions[] = {
        {device->probe.has_matrix, VK_MAKE_API_VERSION(0, 1, 3, 255), VK_KHR_COOPERATIVE_MATRIX_EXTENSION_NAME},
        {device->probe.has_workgroup_matrix, VK_MAKE_API_VERSION(0, 1, 3, 300), VK_NV_COOPERATIVE_MATRIX_2_EXTENSION_NAME},
        {device->probe.has_bfloat16, VK_MAKE_API_VERSION(0, 1, 4, 312), VK_KHR_SHADER_BFLOAT16_EXTENSION_NAME},
    };
    const uint32_t version = device->instance.validation_version;
    for (size_t i = 0; version != 0 && i < COUNT(extensions); i++)
        if (extensions[i].present && version < extensions[i].version)
            return fail(HELIOS_UNSUPPORTED,
                        "VK_LAYER_KHRONOS_validation is of version %u.%u.%u and does not know %s, which this device has; "
                        "install newer Vulkan validation layers, or do not ask for them.",
                        VK_API_VERSION_MAJOR(version), VK_API_VERSION_MINOR(version), VK_API_VERSION_PATCH(version),
                        extensions[i].extension);
    return HELIOS_OK;
}

static int choose_device(helios_device *device, uint32_t index) {
    VkPhysicalDevice *devices;
    uint32_t count;
    int code = list_physical_devices(&device->instance, &devices, &count);
    if (code != HELIOS_OK) return code;
    if (index < count)
        code = probe_device(&device->instance, devices[index], &device->probe);
    else
        code = fail(HELIOS_NO_DEVICE, "There is no device %u; this machine has %u, counted from 0.", index, count);
    free(devices);
    if (code != HELIOS_OK || device->probe.missing[0] == NULL) return code;
    char missing[256];
    list_missing(&device->probe, missing, sizeof missing);
    return fail(HELIOS_UNSUPPORTED, "The device %s cannot be used, because it or its driver lacks %s; a newer driver may help.",
                device->probe.properties.deviceName, missing);
}

/* Enables what Helios requires and, of what it can use, what the device has. */
static int create_device(helios_device *device) {
    const probe *has = &device->probe;
    VkPhysicalDeviceVulkan11Features features11 = {
        .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VULKAN_1_1_FEATURES,
        .storageBuffer16BitAccess = has->features11.storageBuffer16BitAccess,
    };
    VkPhysicalDeviceVulkan12Features features12 = {
        .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VULKAN_1_2_FEATURES,
        .pNext = &features11,
        .storageBuffer8BitAccess = has->features12.storageBuffer8BitAccess,
        .shaderFloat16 = has->features12.shaderFloat16,
        .shaderInt8 = has->features12.shaderInt8,
        .scalarBlockLayout = VK_TRUE,
        .shaderSubgroupExtendedTypes = has->features12.shaderSubgroupExtendedTypes,
        .timelineSemaphore = VK_TRUE,
        .bufferDeviceAddress = VK_TRUE,
        .vulkanMemoryModel = VK_TRUE,
        .vulkanMemoryModelDeviceScope = has->features12.vulkanMemoryModelDeviceScope,
    };
    VkPhysicalDeviceVulkan13Features features13 = {
        .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VULKAN_1_3_FEATURES,
        .pNext = &features12,
        .subgroupSizeControl = has->features13.subgroupSizeControl,
        .computeFullSubgroups = has->features13.computeFullSubgroups,
        .synchronization2 = VK_TRUE,
        .maintenance4 = VK_TRUE,
    };
    VkPhysicalDeviceCooperativeMatrixFeaturesKHR matrix = {
        .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_COOPERATIVE_MATRIX_FEATURES_KHR,
        .cooperativeMatrix = has->matrix_features.cooperativeMatrix,
    };
    VkPhysicalDeviceCooperativeMatrix2FeaturesNV workgroup_matrix = has->workgroup_matrix_features;
    VkPhysicalDeviceShaderBfloat16FeaturesKHR bfloat16 = has->bfloat16_features;
    VkPhysicalDeviceFeatures2 features = {
        .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_FEATURES_2,
        .pNext = &features13,
        .features = {.shaderInt64 = VK_TRUE, .shaderInt16 = has->features.shaderInt16},
    };
    const char *extensions[4];
    uint32_t count = 0;
    if (has->has_matrix) {
        matrix.pNext = features.pNext;
        features.pNext = &matrix;
        extensions[count++] = VK_KHR_COOPERATIVE_MATRIX_EXTENSION_NAME;
    }
    if (has->has_workgroup_matrix) {
        workgroup_matrix.pNext = features.pNext;
        features.pNext = &workgroup_matrix;
        extensions[count++] = VK_NV_COOPERATIVE_MATRIX_2_EXTENSION_NAME;
    }
    if (has->has_bfloat16) {
        bfloat16.pNext = features.pNext;
        features.pNext = &bfloat16;
        extensions[count++] = VK_KHR_SHADER_BFLOAT16_EXTENSION_NAME;
    }
    if (has->has_budget) extensions[count++] = VK_EXT_MEMORY_BUDGET_EXTENSION_NAME;

    const float priority = 1;
    const VkDeviceQueueCreateInfo queue = {
        .sType = VK_STRUCTURE_TYPE_DEVICE_QUEUE_CREATE_INFO,
        .queueFamilyIndex = has->queue_family,
        .queueCount = 1,
        .pQueuePriorities = &priority,
    };
    const VkDeviceCreateInfo info = {
        .sType = VK_STRUCTURE_TYPE_DEVICE_CREATE_INFO,
        .pNext = &features,
        .queueCreateInfoCount = 1,
        .pQueueCreateInfos = &queue,
        .enabledExtensionCount = count,
        .ppEnabledExtensionNames = extensions,
    };
    VkResult result = device->instance.CreateDevice(has->physical, &info, NULL, &device->handle);
    if (result != VK_SUCCESS)
        return fail_vulkan("vkCreateDevice", result, "%s cannot be opened; another process may be using it up.",
                           has->properties.deviceName);
    int code = load_device_functions(&device->instance, device->handle, &device->vk);
    if (code == HELIOS_OK) device->vk.GetDeviceQueue(device->handle, has->queue_family, 0, &device->queue);
    return code;
}

static int create_timeline_and_command_pool(helios_device *device) {
    const VkSemaphoreTypeCreateInfo type = {
        .sType = VK_STRUCTURE_TYPE_SEMAPHORE_TYPE_CREATE_INFO,
        .semaphoreType = VK_SEMAPHORE_TYPE_TIMELINE,
    };
    const VkSemaphoreCreateInfo timeline = {.sType = VK_STRUCTURE_TYPE_SEMAPHORE_CREATE_INFO, .pNext = &type};
    VkResult result = device->vk.CreateSemaphore(device->handle, &timeline, NULL, &device->timeline);
    if (result != VK_SUCCESS) return FAIL_DEVICE(device, "vkCreateSemaphore", result, "the device cannot be opened.");
    const VkCommandPoolCreateInfo pool = {
        .sType = VK_STRUCTURE_TYPE_COMMAND_POOL_CREATE_INFO,
        .flags = VK_COMMAND_POOL_CREATE_RESET_COMMAND_BUFFER_BIT,
        .queueFamilyIndex = device->probe.queue_family,
    };
    result = device->vk.CreateCommandPool(device->handle, &pool, NULL, &device->command_pool);
    if (result != VK_SUCCESS) return FAIL_DEVICE(device, "vkCreateCommandPool", result, "the device cannot be opened.");
    return HELIOS_OK;
}

EXPORT int helios_open(uint32_t device_index, uint32_t flags, const char *pipeline_cache_path, helios_device **opened) {
    if (flags & ~HELIOS_VALIDATE) return fail(HELIOS_ERROR, "helios_open does not know the flags %#x.", flags);
    helios_device *device = calloc(1, sizeof *device);
    if (device == NULL) return fail(HELIOS_OUT_OF_HOST_MEMORY, "There is no memory to open a device.");
    pthread_mutex_init(&device->lock, NULL);
    pthread_mutex_init(&device->log.lock, NULL);
    int code = create_instance(&device->instance, flags & HELIOS_VALIDATE ? &device->log : NULL);
    if (code == HELIOS_OK) code = choose_device(device, device_index);
    if (code == HELIOS_OK) code = check_validation_layers(device);
    if (code == HELIOS_OK) code = create_device(device);
    if (code == HELIOS_OK) code = create_timeline_and_command_pool(device);
    if (code == HELIOS_OK) code = load_pipeline_cache(device, pipeline_cache_path);
    if (code != HELIOS_OK) {
        helios_close(device);
        return code;
    }
    *opened = device;
    return HELIOS_OK;
}

/* ---- Closing ---- */

static void destroy_objects(helios_device *device, const table *of, destroyer *destroy) {
    for (uint32_t i = 0; i < of->count; i++)
        if (of->slots[i].object) destroy(device, of->slots[i].object);
}

static void destroy_everything(helios_device *device) {
    const device_functions *vk = &device->vk;
    vk->DeviceWaitIdle(device->handle); /* an error means that the device is lost, and then it is idle, too */
    end_retirement(device);
    destroy_objects(device, &device->allocations, destroy_allocation);
    destroy_objects(device, &device->programs, destroy_program);
    destroy_objects(device, &device->pipelines, destroy_pipeline);
    for (size_t i = 0; i < COUNT(device->layouts); i++)
        vk->DestroyPipelineLayout(device->handle, device->layouts[i], NULL);
    vk->DestroyPipelineCache(device->handle, device->cache, NULL);
    vk->DestroyCommandPool(device->handle, device->command_pool, NULL); /* and its command buffers */
    vk->DestroySemaphore(device->handle, device->timeline, NULL);
    vk->DestroyDevice(device->handle, NULL);
}

EXPORT void helios_close(helios_device *device) {
    if (device == NULL) return;
    /* Without its functions a device cannot be destroyed; that is a driver which lacks a part of Vulkan 1.3. */
    if (device->handle != NULL && device->vk.GetQueryPoolResults != NULL) destroy_everything(device);
    free_probe(&device->probe);
    destroy_instance(&device->instance);
    free(device->allocations.slots);
    free(device->pipelines.slots);
    free(device->programs.slots);
    free(device->cache_path);
    free(device->log.text);
    pthread_mutex_destroy(&device->log.lock);
    pthread_mutex_destroy(&device->lock);
    free(device);
}

/* ---- Validation messages ---- */

EXPORT int helios_messages(helios_device *device, char *text, uint64_t capacity, uint64_t *needed) {
    message_log *log = &device->log;
    pthread_mutex_lock(&log->lock);
    *needed = log->length + 1;
    if (capacity >= *needed) {
        if (log->length > 0) memcpy(text, log->text, log->length);
        text[log->length] = 0;
        log->length = 0;
    }
    pthread_mutex_unlock(&log->lock);
    return HELIOS_OK;
}
